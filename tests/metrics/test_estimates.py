"""One call gives every figure, by site too, and never NaN."""

import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from sklearn import metrics as oracle

from medopt.core.errors import DataError
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration, probabilities
from medopt.metrics.estimates import all_figures
from medopt.metrics.figures import METRICS
from medopt.metrics.thresholds import OperatingPoint, choose_threshold

SETTINGS = {"bootstrap": 300, "confidence": 0.95, "seed": 11}
HALF = OperatingPoint(0.5, "fixed")


def scored(predictions):
    return CalibratedPredictions(predictions, "binary", operating_point=HALF)


def test_binary_figures_equal_scikit_learn_and_lie_in_their_intervals(drawn):
    predictions = drawn(180, patients=120, decimals=1)
    probability = probabilities(predictions.logits, 1.4, "binary")
    point = choose_threshold(probability, predictions.labels, "youden")
    found = all_figures(
        CalibratedPredictions(predictions, "binary", Calibration("temperature", 1.4), point), **SETTINGS
    )
    assert tuple(found.by_name()) == METRICS
    truth, called = predictions.labels, probability[:, 0] >= point.threshold
    expected = {
        "auc": oracle.roc_auc_score(truth, probability),
        "average_precision": oracle.average_precision_score(truth, probability),
        "accuracy": oracle.accuracy_score(truth, called),
        "sensitivity": oracle.recall_score(truth, called),
        "specificity": oracle.recall_score(truth, called, pos_label=0),
        "ppv": oracle.precision_score(truth, called),
        "npv": oracle.precision_score(truth, called, pos_label=0),
        "f1": oracle.f1_score(truth, called),
        "brier": oracle.brier_score_loss(truth, probability[:, 0]),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    for name in expected:
        assert found[name].low < found[name].value < found[name].high, name
        assert found[name].n == 180
    assert found["ece"].value > 0 and found["ece"].low is None and "no interval" in found["ece"].note


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 4), ("multilabel", 3)])
def test_studies_with_several_outputs(drawn, task, outputs):
    predictions = drawn(200, outputs, task=task)
    point = choose_threshold(probabilities(predictions.logits, 1.0, task), predictions.labels, "youden")
    found = all_figures(CalibratedPredictions(predictions, task, operating_point=point), **SETTINGS)
    assert all(0 < found[name].value < 1 for name in METRICS)
    assert found["auc"].low < found["auc"].value < found["auc"].high
    if task == "multiclass":
        expected = oracle.balanced_accuracy_score(predictions.labels, predictions.logits.argmax(axis=1))
        assert found["sensitivity"].value == pytest.approx(expected)


def test_the_same_seed_gives_the_same_intervals_in_any_order_of_rows(drawn):
    predictions = drawn(100, patients=70)
    again = predictions.where(np.random.default_rng(0).permutation(100))
    one, other = (all_figures(scored(rows), **SETTINGS) for rows in (predictions, again))
    for name in METRICS:
        assert (one[name].value, one[name].low) == pytest.approx((other[name].value, other[name].low), abs=1e-12)
    elsewhere = all_figures(scored(predictions), **(SETTINGS | {"seed": 12}))
    assert elsewhere["auc_bootstrap"].low != one["auc_bootstrap"].low


def degenerate(drawn):
    both = drawn(40)
    yield "one class", replace(both, labels=np.ones(40, dtype=np.int64))
    yield "one patient", drawn(40, patients=1)
    yield "five patients", drawn(40, patients=5)
    yield "one case", both.where(np.arange(40) == 0)
    yield "no case", both.where(np.arange(40) < 0)
    yield "two cases", both.where(np.array([both.labels.argmin(), both.labels.argmax()]))
    yield "constant", replace(both, logits=np.zeros((40, 1)))
    yield "perfect", replace(both, logits=(2.0 * both.labels - 1)[:, None] * 50)


def test_degenerate_sets_say_why_and_never_nan(drawn):
    for name, predictions in degenerate(drawn):
        found = all_figures(scored(predictions), **SETTINGS)
        assert tuple(found.by_name()) == METRICS
        for metric, estimate in found.by_name().items():
            json.dumps(asdict(estimate), allow_nan=False)
            assert estimate.n == len(predictions)
            assert (estimate.low is None) == (estimate.high is None)
            assert estimate.note or (estimate.value is not None and estimate.low is not None), (name, metric)
    perfect, fewest = found["auc"], min(int(predictions.labels.sum()), int((1 - predictions.labels).sum()))
    assert (perfect.value, perfect.high, perfect.note) == (1.0, 1.0, f"exact interval from {fewest} patients")
    assert perfect.low == pytest.approx(0.025 ** (1 / fewest))


def test_one_class_keeps_what_is_defined(drawn):
    predictions = replace(drawn(40), labels=np.ones(40, dtype=np.int64))
    found = all_figures(scored(predictions), **SETTINGS)
    assert found["auc"].value is None and found["specificity"].value is None
    assert found["sensitivity"].value == found["accuracy"].value > 0


def test_damaged_logits_are_refused(drawn):
    predictions = drawn(20)
    predictions.logits[3] = np.inf
    with pytest.raises(DataError, match="not a finite number"):
        all_figures(scored(predictions), **SETTINGS)


def test_two_thousand_draws_of_five_hundred_cases_take_less_than_two_seconds(drawn):
    predictions = drawn(500, patients=400)
    start = time.process_time()
    all_figures(scored(predictions), bootstrap=2000, confidence=0.95, seed=0)
    assert time.process_time() - start < 2


def test_values_at_a_stated_prevalence_are_those_of_bayes(drawn):
    one = scored(drawn(200))
    found = all_figures(one, **SETTINGS, prevalence=0.05)
    hit, right = found["sensitivity"].value, found["specificity"].value
    ppv = 0.05 * hit / (0.05 * hit + 0.95 * (1 - right))
    npv = 0.95 * right / (0.95 * right + 0.05 * (1 - hit))
    assert (found["ppv"].value, found["npv"].value) == pytest.approx((ppv, npv))
    assert found["ppv"].low < ppv < found["ppv"].high and found["npv"].note == "at a prevalence of 0.05"
    own = all_figures(one, **SETTINGS, prevalence=float(one.target.mean()))
    plain = all_figures(one, **SETTINGS)
    assert own["ppv"].value == pytest.approx(plain["ppv"].value)
    assert own["ppv"].high - own["ppv"].low == pytest.approx(plain["ppv"].high - plain["ppv"].low, rel=0.5)
    perfect = replace(one.predictions, logits=(2.0 * one.predictions.labels - 1)[:, None] * 50)
    sure = all_figures(scored(perfect), **SETTINGS, prevalence=0.05)["ppv"]
    assert (sure.value, sure.high) == (1.0, 1.0) and 0.4 < sure.low < 1
    blind = replace(one.predictions, logits=np.full((200, 1), -9.0))
    assert all_figures(scored(blind), **SETTINGS, prevalence=0.05)["ppv"].value is None


def test_many_cases_in_groups_have_the_intervals_of_patients(drawn, monkeypatch):
    """The same 3000 cases of 1800 patients, drawn one by one and in a thousand groups."""
    one = scored(drawn(3000, patients=1800))
    alone = all_figures(one, **SETTINGS)
    monkeypatch.setattr("medopt.metrics.bootstrap.LARGE", 100)
    many = all_figures(one, **SETTINGS)
    for name in ("auc_bootstrap", "average_precision", "f1", "brier"):
        assert many[name].value == alone[name].value
        assert many[name].high - many[name].low == pytest.approx(alone[name].high - alone[name].low, rel=0.2), name
        assert many[name].low == pytest.approx(alone[name].low, abs=0.25 * (alone[name].high - alone[name].low))


def test_the_interval_of_the_auc_knows_the_patients(drawn):
    table = drawn(300, patients=40)
    _, index = np.unique(table.patient_id, return_inverse=True)
    alike = replace(table, logits=table.logits[index], labels=table.labels[index])
    found = all_figures(scored(alike), **SETTINGS)
    images = all_figures(scored(replace(alike, patient_id=alike.case_id)), **SETTINGS)
    for name in ("auc", "sensitivity", "specificity"):
        assert found[name].high - found[name].low > 1.8 * (images[name].high - images[name].low)
