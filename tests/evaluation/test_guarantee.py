"""What is promised of int8 on the test cases, by group: figures of other functions, and where they are not known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from results import run_metrics

from medopt.config import Gate
from medopt.core.records import Predictions
from medopt.core.result import ByKind
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.guarantee import NOT_RECORDED, GuaranteeTable, guarantee_table
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.conformal import PredictionSets
from medopt.metrics.proportions import proportion
from medopt.metrics.thresholds import OperatingPoint, with_sets
from medopt.release.card import card_of, render_card

SETS = PredictionSets(0.9, (0.3, 0.25), (40, 40))
POINT = with_sets(OperatingPoint(0.5, "fixed"), SETS)
SEX = np.array(["F"] * 190 + ["M"] * 7 + [""] * 3)


@pytest.fixture(scope="module")
def pair(drawn_once: Predictions) -> ByKind[CalibratedPredictions]:
    table = replace(drawn_once, subgroups={"sex": SEX})
    blurred = table.logits + np.random.default_rng(3).normal(0, 0.3, table.logits.shape)
    before = CalibratedPredictions(table, "binary", operating_point=POINT)
    return ByKind(float=before, int8=replace(before, predictions=replace(table, model="int8", logits=blurred)))


@pytest.fixture(scope="module")
def drawn_once() -> Predictions:
    from predictions_drawn import draw

    return draw(200, seed=5)


def table_of(pair: ByKind[CalibratedPredictions], **gate: float) -> GuaranteeTable:
    return guarantee_table(pair, Gate(**gate), ["clear", "blob"], 10, 0.95)  # type: ignore[arg-type]


def test_the_figures_are_those_of_the_group_alone(pair: ByKind[CalibratedPredictions]) -> None:
    table = table_of(pair)
    assert [(one.variable, one.group) for one in table.rows] == [
        ("", "all"), ("site", "north"), ("site", "south"), ("sex", "F"), ("sex", "M"),
    ]  # fmt: skip
    assert table.classes == ("blob", "clear") and table.coverage == 0.9
    for row, mask in (
        (table.rows[0], np.ones(200, bool)),
        (table.rows[1], pair.int8.predictions.site == "north"),
        (table.rows[3], SEX == "F"),
    ):
        before, after = pair.float.where(mask), pair.int8.where(mask)
        assert row.cases == mask.sum()
        assert row.auc_difference == area_difference(before, after, 0.95)[0]
        flips = before.decided[:, 0] != after.decided[:, 0]
        assert row.decision_flips == proportion(flips, after.patients, 0.95, len(flips))
        truth, probability = after.target[:, 0], after.probability[:, 0]
        # kept: decided so, or left undecided, which is neither clearly above nor clearly below
        undecided = after.undecided
        blob = (after.decided[:, 0] | undecided)[truth]
        clear = (~after.decided[:, 0] | undecided)[~truth]
        assert [one.value for one in row.kept] == pytest.approx([blob.mean(), clear.mean()])
        assert undecided.any() and len(probability) == mask.sum()


def test_a_group_of_few_patients_is_not_known_and_says_how_few(pair: ByKind[CalibratedPredictions]) -> None:
    table = table_of(pair)
    few = table.cells[-1]
    assert few[:3] == ["sex M", "7", "7"]
    assert few[3] == few[4] == "not known (7 patients)"
    assert all(cell.startswith("not known (") for cell in few[5:])
    assert not any("not known" in cell for cell in table.cells[0])
    assert "Not known: fewer than 10 patients" in table.note


def test_a_class_of_few_patients_is_not_known_where_the_others_are(pair: ByKind[CalibratedPredictions]) -> None:
    rows = np.concatenate([np.flatnonzero(pair.int8.target[:, 0])[:4], np.flatnonzero(~pair.int8.target[:, 0])])
    few = ByKind(float=pair.float.where(rows), int8=pair.int8.where(rows))
    first = table_of(few).cells[0]
    assert first[5] == "not known (4 patients)" and "%" in first[6]


def test_a_figure_is_kept_broken_or_not_shown_by_its_interval(pair: ByKind[CalibratedPredictions]) -> None:
    whole = table_of(pair, auc_margin=0.5, max_decision_flips=0.9).cells[0]
    assert whole[3].endswith(": kept") and whole[4].endswith(": kept")
    reversed_ = replace(pair.int8, predictions=replace(pair.int8.predictions, logits=-pair.int8.predictions.logits))
    broken = table_of(ByKind(float=pair.float, int8=reversed_)).cells[0]
    assert broken[3].endswith(": BROKEN") and broken[4].endswith(": BROKEN")
    assert broken[5].endswith(": BROKEN") and broken[6].endswith(": BROKEN")
    value = table_of(pair).rows[0].decision_flips.value
    assert value is not None
    assert table_of(pair, flips_bound=value, max_decision_flips=0).cells[0][4].endswith(": not shown")


def test_a_strict_gate_promises_its_limits(pair: ByKind[CalibratedPredictions]) -> None:
    assert (table_of(pair).auc_bound, table_of(pair).flips_bound) == (0.05, 0.1)
    assert (table_of(pair, strict=True).auc_bound, table_of(pair, strict=True).flips_bound) == (0.01, 0.05)


def test_the_card_has_the_table_or_says_that_there_is_none(pair: ByKind[CalibratedPredictions]) -> None:
    from test_golden import release_info  # a release by hand

    table = table_of(pair)
    card = render_card(card_of(release_info(figures=run_metrics(guarantee=table).for_release())))
    for cells in table.cells:
        assert f"| {' | '.join(cells)} |" in card
    assert all(one in card for one in (*table.promises, table.note))
    assert NOT_RECORDED[1:] in render_card(card_of(release_info()))
    assert GuaranteeTable.model_validate(table.json_values()) == table
