"""Labels that are not known: each label's figures are those of the cases of which it is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from predictions_drawn import draw

from medopt.core.errors import ConfigError, DataError
from medopt.core.records import UNKNOWN, Predictions
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.run_averages import mean_figures, pooled_figures
from medopt.metrics import evaluate
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import fit_calibration, refuse_few, targets
from medopt.metrics.curves import roc_curve
from medopt.metrics.delong import auc_with_covariance
from medopt.metrics.estimates import all_figures
from medopt.metrics.figures import METRICS
from medopt.metrics.nearest_neighbours import neighbour_scores
from medopt.metrics.net_benefit import decision_curve
from medopt.metrics.selective import coverage_risk
from medopt.metrics.thresholds import OperatingPoint, choose_threshold

HOW = {"bootstrap": 100, "confidence": 0.95, "seed": 1}
POINT = OperatingPoint((0.4, 0.5, 0.6), "fixed")


def partly(cases: int = 300, share: float = 0.4) -> Predictions:
    table = draw(cases, 3, task="multilabel", patients=cases // 3)
    unknown = np.random.default_rng(5).random(table.labels.shape) < share
    return replace(table, labels=np.where(unknown, UNKNOWN, table.labels))


def otherwise(table: Predictions) -> Predictions:
    """Another model that differs only in what it says of unknown labels."""
    noise = np.random.default_rng(6).normal(0, 4, table.logits.shape)
    return replace(table, logits=np.where(table.labels == UNKNOWN, noise, table.logits))


def alone(table: Predictions, output: int) -> CalibratedPredictions:
    """One label as a binary study of its known cases."""
    rows = table.labels[:, output] != UNKNOWN
    part = table.where(rows)
    binary = replace(part, labels=part.labels[:, output], logits=part.logits[:, [output]])
    return CalibratedPredictions(binary, "binary", operating_point=OperatingPoint(POINT.thresholds[output], "fixed"))


def test_each_figure_is_the_mean_over_labels_of_that_of_the_known_cases() -> None:
    table = partly()
    found = all_figures(CalibratedPredictions(table, "multilabel", operating_point=POINT), **HOW)
    single = [all_figures(alone(table, output), **HOW) for output in range(3)]
    for name in METRICS:
        expected = np.mean([figures[name].value for figures in single])
        assert found[name].value == pytest.approx(expected, abs=1e-12), name


@pytest.mark.parametrize("cases", [300, 21_000], ids=["patients are drawn", "groups of them are drawn"])
def test_what_a_model_says_of_unknown_labels_changes_no_figure(cases: int) -> None:
    table = partly(cases)
    one, two = (CalibratedPredictions(part, "multilabel", operating_point=POINT) for part in (table, otherwise(table)))
    first, second = (all_figures(scored, **HOW) for scored in (one, two))
    for name in METRICS:
        assert first[name].value == pytest.approx(second[name].value, abs=1e-12), name
    assert first.auc.low == pytest.approx(second.auc.low)
    for output in range(3):
        assert decision_curve(one, output, **HOW) == decision_curve(two, output, **HOW)
        curves = [roc_curve(scored, output, **HOW) for scored in (one, two)]
        assert curves[0].auc == curves[1].auc and curves[0].point == curves[1].point
    assert coverage_risk(one, **HOW).aurc.value == pytest.approx(coverage_risk(two, **HOW).aurc.value)
    assert np.array_equal(one.wrong, two.wrong)


def test_calibration_and_thresholds_are_fitted_on_known_labels() -> None:
    table = partly()
    other = otherwise(table)
    for method in ("temperature", "isotonic"):
        fitted = [fit_calibration(one.logits, one.labels, "multilabel", method, enough=True) for one in (table, other)]
        assert fitted[0] == fitted[1] and fitted[0].method == method
    for rule in ("youden", "sensitivity", "specificity", "cost"):
        chosen = [
            choose_threshold(CalibratedPredictions(one, "multilabel").probability, one.labels, rule, 0.8)
            for one in (table, other)
        ]
        assert chosen[0] == chosen[1]
    with pytest.raises(ConfigError, match=r"validation holds 1.., and"):
        refuse_few(table.labels, 3, "multilabel")


def test_a_paired_difference_is_that_of_known_labels() -> None:
    table = partly()
    first, second = (CalibratedPredictions(one, "multilabel") for one in (table, otherwise(table)))
    assert area_difference(first, second, 0.95)[0].value == 0


def test_delongs_covariance_of_a_label_alone() -> None:
    table = partly()
    scored = CalibratedPredictions(table, "multilabel")
    together = auc_with_covariance(scored.score, scored.truth, scored.patients)
    for output in range(3):
        one = alone(table, output)
        single = auc_with_covariance(one.score, one.truth, one.patients)
        assert together.value[output] == pytest.approx(single.value[0])
        assert together.covariance[output, output] == pytest.approx(single.covariance[0, 0])


def test_a_place_that_forgets_to_ask_is_refused() -> None:
    table = partly()
    with pytest.raises(DataError, match="labels are not known"):
        _ = CalibratedPredictions(table, "multilabel").target
    with pytest.raises(DataError, match="1 of 2 labels"):
        targets(np.array([[1, UNKNOWN]]), 2, "multilabel")
    assert np.isnan(CalibratedPredictions(table, "multilabel").truth).sum() == (table.labels == UNKNOWN).sum()


def test_a_label_that_is_known_of_no_case_leaves_the_mean_undefined() -> None:
    table = partly()
    labels = table.labels.copy()
    labels[:, 1] = UNKNOWN
    scored = CalibratedPredictions(replace(table, labels=labels), "multilabel", operating_point=POINT)
    found = all_figures(scored, **HOW)
    assert {found[name].value for name in METRICS} == {None}
    assert roc_curve(scored, 1, **HOW) is None and decision_curve(scored, 1, **HOW) is None


def test_arrays_with_nan() -> None:
    truth, logits = [[1, 0], [0, np.nan], [1, 1], [0, 1]], [[2.0, -1], [-1, 9], [0.5, 1], [-2, 2]]
    found = evaluate(truth, logits, bootstrap=100)
    assert found.auc.value == 1 and found.accuracy.value == 1
    with pytest.raises(DataError, match=r"labels hold -1.*NaN where a label is not known"):
        evaluate([[1, -1], [0, 1]], [[2.0, 1], [1, 2]])
    with pytest.raises(DataError, match="labels hold nan"):
        evaluate([1, np.nan], [2.0, 1])


def test_neighbours_whose_label_is_not_known_have_no_vote() -> None:
    features = np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    targets = np.array([[1.0, np.nan], [1, np.nan], [0, 1], [0, np.nan]])
    scores = neighbour_scores(features, targets, features, neighbours=2)
    assert scores[0, 0] > 0.9 and scores[3, 0] < 0.1
    assert scores[:, 1] == pytest.approx(1)  # of the one that is known, or the mean of those


def test_a_case_without_any_known_label_is_not_counted() -> None:
    table = partly()
    labels = table.labels.copy()
    labels[::10] = UNKNOWN
    table = replace(table, labels=labels)
    known = int((labels != UNKNOWN).any(axis=1).sum())
    assert known < len(table) - 25
    scored = CalibratedPredictions(table, "multilabel", operating_point=POINT)
    found = all_figures(scored, **HOW)
    assert {found[name].n for name in METRICS} == {known}
    alone = all_figures(scored.where((labels != UNKNOWN).any(axis=1)), **HOW)
    assert found == alone
    means = mean_figures([scored, scored], **HOW)
    assert means["auc"].mean.n == known and means["brier"].mean.value == pytest.approx(found.brier.value)
    pooled = pooled_figures(table, "multilabel", **HOW)
    assert (pooled.auc.n, pooled.brier.n) == (known, known)
    assert area_difference(scored, scored, 0.95)[0].n == known
