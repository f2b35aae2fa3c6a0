"""The verdict on the model: chance, one answer for all, classes never chosen, a linear model; and what follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from predictions_drawn import draw
from results import estimate, gate, run_metrics, verdict

from medopt.core.records import Estimate, Override, Task
from medopt.core.result import ByKind, by_kind
from medopt.evaluation.analysis_results import BaselineResult, BaselinesResult
from medopt.evaluation.model_verdict import ModelVerdict, judge_model
from medopt.evaluation.verdict_lines import verdict_lines
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.thresholds import OperatingPoint

CLASSES = ("left", "middle", "right")


def scored(task: Task = "binary", outputs: int = 1, shift: Any = 0.0, **how: Any) -> CalibratedPredictions:
    table = draw(outputs=outputs, task=task, **how)
    table.logits[:] += np.asarray(shift)
    half = {"binary": 0.5, "multiclass": None, "multilabel": (0.5,) * outputs}[task]
    return CalibratedPredictions(table, task, operating_point=OperatingPoint(half, "fixed"))


def auc_of(one: CalibratedPredictions) -> Estimate:
    return mean_auc(auc_with_covariance(one.score, one.target, one.patients), len(one.predictions), 0.95)


def judged(
    one: CalibratedPredictions, labels: tuple[str, ...], linear: BaselinesResult | None = None, **auc: Estimate
) -> ModelVerdict:
    test: ByKind[CalibratedPredictions] = by_kind(lambda _: one)
    figures = by_kind(lambda kind: auc.get(kind, auc_of(one)))
    return judge_model(test, figures, labels, linear)


def thumbnail(gain: Estimate) -> BaselinesResult:
    model = BaselineResult(
        reads="thumbnails", features=1024, strength=1.0, validation_auc=0.8, auc=estimate(0.8), gain=gain
    )
    return BaselinesResult(models={"thumbnail": model})


def test_a_model_that_ranks_well_and_chooses_both_answers_is_better_than_chance() -> None:
    found = judged(scored(), ("no", "yes"), thumbnail(Estimate(0.1, 0.02, 0.18, 120)))
    assert found.better_than_chance and found.remarks == () and found.word == "better than chance"
    assert sum(found.chosen.int8.values()) == 120 and min(found.chosen.int8.values()) > 0


def test_three_classes_with_a_wide_interval_and_one_answer_for_all_are_refused() -> None:
    useless = scored("multiclass", 3, shift=(0, 0, 50), cases=24, separation=0.3, seed=4)
    wide = Estimate(0.644, 0.429, 0.814, 24)
    found = judged(useless, CLASSES, float=wide, int8=wide)
    assert not found.better_than_chance and found.chosen.float == {"left": 0, "middle": 0, "right": 24}
    assert found.reasons[0] == "float: test AUC 0.644 (0.429 to 0.814), whose interval holds 0.5, which is chance"
    assert "int8: it answers right for all 24 test cases" in found.reasons


@pytest.mark.parametrize(
    ("auc", "said"),
    [
        (Estimate(0.6, 0.5, 0.7, 40), "holds 0.5"),
        (Estimate(0.3, 0.2, 0.4, 40), "lies below 0.5"),
        (Estimate(0.9, None, None, 40, "no interval: one patient only"), "0.900 (no interval: one patient only)"),
        (Estimate(None, None, None, 40, "a class is missing"), "not defined (a class is missing)"),
    ],
)
def test_what_is_not_shown_is_refused_and_says_why(auc: Estimate, said: str) -> None:
    found = judged(scored(), ("no", "yes"), int8=auc)
    assert len(found.reasons) == 1 and found.reasons[0].startswith("int8: test AUC") and said in found.reasons[0]


def test_one_answer_for_all_is_no_better_than_chance_however_well_it_ranks() -> None:
    found = judged(scored(shift=30.0), ("no", "yes"))
    assert found.reasons == tuple(f"{kind}: it answers yes for all 120 test cases" for kind in ("float", "int8"))


def test_a_class_that_is_never_chosen_is_a_remark() -> None:
    found = judged(scored("multiclass", 3, shift=(0, 0, -50)), CLASSES)
    assert found.better_than_chance
    assert "int8 never chooses right on the test split" in found.remarks
    labels = judged(scored("multilabel", 3, shift=(0, -50, 0)), CLASSES)
    assert labels.better_than_chance and labels.chosen.int8["middle"] == 0
    assert "float never chooses middle on the test split" in labels.remarks


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            Estimate(0.02, -0.05, 0.09, 120),
            "not shown to be better than a linear model on thumbnails: AUC +0.020",
        ),
        (Estimate(-0.1, -0.15, -0.05, 120), "worse than a linear model on thumbnails: AUC -0.100"),
        (Estimate(0.0, None, None, 120, "no interval"), "not shown to be better than a linear model"),
    ],
)
def test_a_linear_model_that_is_as_good_is_a_remark(gain: Estimate, said: str) -> None:
    found = judged(scored(), ("no", "yes"), thumbnail(gain))
    assert found.better_than_chance and said in found.remarks[0] and found.over_linear == gain


USELESS = verdict(reasons=("int8: test AUC 0.644 (0.429 to 0.814)",))
SOMEBODY = Override("Dr. Winter", "for a phantom study", "2026-11-23T12:00:00+00:00")


@pytest.mark.parametrize(
    ("changed", "released", "outcome"),
    [
        ({}, True, "released"),
        ({"verdict": None}, True, "released"),
        ({"verdict": USELESS}, False, "model refused"),
        ({"verdict": USELESS, "gate": gate(True, SOMEBODY)}, True, "released against the verdict on the model"),
        ({"gate": gate(False)}, False, "gate refused"),
        ({"gate": gate(False, undecided=True)}, False, "gate cannot tell"),
        ({"gate": gate(False, SOMEBODY, undecided=True)}, True, "released against the gate"),
        ({"verdict": None, "gate": gate(False)}, False, "gate refused"),
    ],
)
def test_both_verdicts_decide_on_the_release(changed: dict[str, Any], released: bool, outcome: str) -> None:
    metrics = run_metrics(**changed)
    assert (metrics.is_released, metrics.outcome) == (released, outcome)
    assert metrics.is_passed == (outcome == "released") == (not metrics.refusals)


def test_the_lines_begin_with_the_model_and_end_with_who_answers() -> None:
    metrics = run_metrics(verdict=USELESS, gate=gate(True, SOMEBODY))
    lines = verdict_lines(metrics, metrics.gate)
    assert [one.tone for one in lines] == ["bad", "good", "bad"]
    assert lines[0].text == "the model is not shown to be better than chance: int8: test AUC 0.644 (0.429 to 0.814)"
    assert lines[1].head == "int8 passed the gate"
    assert lines[2].text == "released all the same by Dr. Winter: for a phantom study"
    told = verdict_lines(run_metrics(verdict=verdict(remarks=("int8 never chooses yes",))), gate(False, undecided=True))
    assert [(one.head, one.tone) for one in told] == [
        ("the model is better than chance", "good"),
        ("int8 never chooses yes", "unsure"),
        ("int8: the gate cannot tell", "unsure"),
    ]


def test_the_verdict_is_kept_in_the_file_and_in_the_release() -> None:
    metrics = run_metrics(verdict=USELESS)
    assert metrics.for_release().verdict == USELESS
    assert ModelVerdict.model_validate(metrics.json_values()["verdict"]) == USELESS
