"""The numbers behind the pictures equal scikit-learn's, the metrics' and published intervals."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as oracle

from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.curves import reliability, roc_curve
from medopt.metrics.estimates import all_figures
from medopt.metrics.thresholds import OperatingPoint

SETTINGS = {"bootstrap": 300, "confidence": 0.95, "seed": 5}
HALF = OperatingPoint(0.5, "fixed")


def test_roc_curve_is_scikit_learns_and_its_band_holds_it(drawn):
    predictions = drawn(150, patients=100, decimals=1)
    found = roc_curve(CalibratedPredictions(predictions, "binary", operating_point=HALF), 0, **SETTINGS)
    false, true, _ = oracle.roc_curve(predictions.labels, predictions.logits, drop_intermediate=False)
    assert found.false_positive_rate == pytest.approx(false) and found.sensitivity == pytest.approx(true)
    middle = np.interp(found.grid, false, true)[5:-5]
    assert (found.low[5:-5] <= middle + 1e-12).all() and (middle <= found.high[5:-5] + 1e-12).all()
    assert (found.high - found.low)[20] > 0.05
    called = predictions.logits[:, 0] >= 0
    rates = called[predictions.labels == 0].mean(), called[predictions.labels == 1].mean()
    assert found.point == pytest.approx(rates)


def test_the_pictures_interval_is_the_tables(drawn):
    predictions = drawn(90, patients=60)
    table = all_figures(CalibratedPredictions(predictions, "binary", operating_point=HALF), **SETTINGS)["auc"]
    found = roc_curve(CalibratedPredictions(predictions, "binary", operating_point=HALF), 0, **SETTINGS)
    assert (found.auc.value, found.auc.low, found.auc.high) == pytest.approx((table.value, table.low, table.high))


def test_no_roc_curve_of_one_class_and_no_point_without_threshold(drawn):
    predictions = drawn(60, 3, task="multiclass")
    scored = CalibratedPredictions(predictions, "multiclass", operating_point=OperatingPoint(None, "argmax"))
    assert roc_curve(scored, 1, **SETTINGS).point is None
    assert roc_curve(replace(scored, predictions=predictions.where(predictions.labels != 1)), 1, **SETTINGS) is None


def test_one_patient_has_a_curve_without_band(drawn):
    found = roc_curve(CalibratedPredictions(drawn(30, patients=1), "binary", operating_point=HALF), 0, **SETTINGS)
    assert np.isnan(found.low).all() and found.auc.low is None


def test_reliability_bins_hold_equally_many_cases_and_wilsons_interval():
    """Newcombe 1998 (Statist. Med. 17:857), table I: 81 of 263 is 0.2553 to 0.3662, 0 of 20 is 0 to 0.1611."""
    for events, cases, low, high in [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (15, 148, 0.0624, 0.1605)]:
        found = reliability(np.full(cases, 0.3), np.arange(cases) < events)
        assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=5e-5)
        assert found.observed[0] == pytest.approx(events / cases) and found.predicted[0] == pytest.approx(0.3)
    probability = (np.arange(500) + 0.5)[::-1] ** 2 / 500**2  # crowded at 0
    found = reliability(probability, probability > 0.25)
    assert found.predicted == pytest.approx(probability[::-1].reshape(10, 50).mean(axis=1))
    assert found.observed.tolist() == [0] * 5 + [1] * 5


def test_reliability_of_few_cases_is_one_bin():
    found = reliability(np.array([0.2, 0.4, 0.9]), np.array([False, True, True]))
    assert found.predicted == pytest.approx([0.5]) and found.observed == pytest.approx([2 / 3])
