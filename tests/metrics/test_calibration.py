"""Calibrations against scikit-learn's, and what an isotonic one refuses."""

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.special import expit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from medopt.core.errors import ConfigError
from medopt.core.records import UNKNOWN
from medopt.metrics.calibration import UNCALIBRATED, Calibration, fit_calibration, fit_curve, probabilities, refuse_few
from medopt.metrics.calibration_error import adaptive_calibration_error, expected_calibration_error


def crooked(cases=900, seed=0):
    """Logits whose probability is right in no straight line, which one temperature cannot mend."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(cases, 1))
    labels = (random.random(cases) < expit(logits[:, 0] ** 3 / 4 + 1)).astype(np.int64)
    return logits, labels


@pytest.mark.parametrize("decimals", [1, 8])
def test_isotonic_is_scikit_learns_but_for_the_ends(decimals):
    logits, labels = crooked()
    logits = logits.round(decimals)
    oracle = IsotonicRegression(y_min=1 / 902, y_max=1 - 1 / 902, out_of_bounds="clip").fit(logits[:, 0], labels)
    curve, grid = fit_curve(logits[:, 0], labels == 1), np.linspace(-8, 8, 500)
    assert curve.at(grid) == pytest.approx(oracle.predict(grid), abs=1e-9)
    assert (np.diff(curve.probability) >= 0).all() and 0 < min(curve.probability) < max(curve.probability) < 1


def test_isotonic_mends_what_a_temperature_cannot():
    fit, (fresh, truth) = crooked(), crooked(4000, seed=1)
    errors = {}
    for method in ("none", "temperature", "isotonic"):
        calibration = fit_calibration(*fit, "binary", method)
        probability = calibration.probabilities(fresh, "binary")
        errors[method] = expected_calibration_error(probability, truth, "binary")
        record = TypeAdapter(Calibration)
        assert record.validate_json(record.dump_json(calibration)) == calibration
        assert expit(calibration.logits(fresh, "binary")) == pytest.approx(probability)
    assert errors["isotonic"] < 0.5 * errors["temperature"] and errors["isotonic"] < 0.5 * errors["none"]


def test_isotonic_of_classes_sums_to_one():
    random = np.random.default_rng(0)
    labels = random.integers(3, size=600)
    logits = random.normal(size=(600, 3)) + 2 * np.eye(3)[labels]
    calibration = fit_calibration(logits, labels, "multiclass", "isotonic")
    probability = calibration.probabilities(logits, "multiclass")
    assert probability.sum(axis=1) == pytest.approx(np.ones(600)) and len(calibration.curves) == 3
    assert softmax(calibration.logits(logits, "multiclass"), axis=1) == pytest.approx(probability)


def test_isotonic_of_few_cases_is_refused_with_the_way_out():
    logits, labels = crooked(199)
    with pytest.raises(ConfigError, match=r"needs 200 validation cases .* holds 199.*Set it to temperature"):
        fit_calibration(logits, labels, "binary", "isotonic")
    with pytest.raises(ConfigError, match="and 49 of the rarest"):
        refuse_few(np.arange(300) % 300 < 49, 1, "binary")
    refuse_few((np.arange(300) < 50).astype(np.int64), 1, "binary")


def test_none_leaves_probabilities_as_they_are():
    logits, labels = crooked(50)
    assert fit_calibration(logits, labels, "binary", "none") == UNCALIBRATED
    assert np.array_equal(UNCALIBRATED.probabilities(logits, "binary"), probabilities(logits, 1.0, "binary"))


def test_adaptive_error_of_worked_cases():
    """Two bins of two: |0.15 - 0.5| and |0.85 - 1|, so 0.25; equal probabilities stay in one bin."""
    probability, labels = np.array([[0.1], [0.2], [0.8], [0.9]]), np.array([0, 1, 1, 1])
    assert adaptive_calibration_error(probability, labels, "binary", bins=2) == pytest.approx(0.25)
    alike = np.full((4, 1), 0.5)
    assert adaptive_calibration_error(alike, labels, "binary", bins=4) == pytest.approx(0.25)
    crowded = np.linspace(0.001, 0.01, 90)[:, None]  # one bin of equal width, fifteen of equal count
    truth = (np.arange(90) >= 84).astype(np.int64)
    assert expected_calibration_error(crowded, truth, "binary") == pytest.approx(abs(crowded.mean() - 6 / 90))
    assert adaptive_calibration_error(crowded, truth, "binary") > 0.06


def weighted_study(seed, cases, labels=1):
    """Logits of a network that was trained with balanced weights where 5 % have the finding: shifted by log 19."""
    random = np.random.default_rng(seed)
    truth = (random.random((cases, labels)) < 0.05).astype(np.int64)
    logits = random.normal(size=truth.shape) + 2 * truth - 1 + np.arange(labels)  # log odds: 2 z - log 19
    return 2 * (logits - np.arange(labels)) + np.arange(labels), truth if labels > 1 else truth[:, 0]


def test_a_bias_takes_back_the_shift_of_class_weights():
    fresh, truth = weighted_study(1, 40000)
    means = {}
    for method in ("temperature", "logistic"):
        found = fit_calibration(*weighted_study(0, 600), "binary", method).probabilities(fresh, "binary")
        means[method] = float(found.mean()), expected_calibration_error(found, truth, "binary")
    assert means["temperature"][0] > 0.2 and means["temperature"][1] > 0.15
    assert 0.03 < means["logistic"][0] < 0.07 and means["logistic"][1] < 0.025


def test_logistic_is_the_likelihoods_maximum_as_scikit_learn_finds_it():
    logits, labels = weighted_study(0, 3000)
    calibration = fit_calibration(logits, labels, "binary", "logistic")
    oracle = LogisticRegression(C=1e9).fit(logits, labels)  # without Platt's N + 1 of N + 2
    assert calibration.slopes[0] == pytest.approx(oracle.coef_[0, 0], rel=0.03)
    assert calibration.biases[0] == pytest.approx(oracle.intercept_[0], rel=0.03)
    assert calibration.slopes[0] == pytest.approx(1, abs=0.15) and calibration.biases[0] == pytest.approx(
        -2.94, abs=0.3
    )
    assert expit(calibration.logits(logits, "binary")) == pytest.approx(calibration.probabilities(logits, "binary"))
    record = TypeAdapter(Calibration)
    assert record.validate_json(record.dump_json(calibration)) == calibration
    assert str(calibration).startswith("logistic (slope ")


def test_each_label_has_its_own_slope_and_bias_and_a_rare_one_none():
    logits, labels = weighted_study(0, 900, labels=3)
    labels[np.flatnonzero(labels[:, 2])[4:], 2] = 0
    labels[:50, 0] = UNKNOWN
    calibration = fit_calibration(logits, labels, "multilabel", "logistic")
    for output in (0, 1):
        known = labels[:, output] != UNKNOWN
        alone = fit_calibration(logits[known, output : output + 1], labels[known, output], "binary", "logistic")
        assert (calibration.slopes[output], calibration.biases[output]) == (alone.slopes[0], alone.biases[0])
    assert calibration.biases[0] - calibration.biases[1] == pytest.approx(1, abs=0.4)
    assert calibration.biases[2] == 0 and calibration.note.startswith("1 of 3 labels have fewer than 10")


def test_classes_share_the_slope_and_have_each_a_bias():
    random = np.random.default_rng(0)
    labels = random.choice(3, p=[0.7, 0.2, 0.1], size=3000)
    logits = random.normal(size=(3000, 3)) + 2 * np.eye(3)[labels]  # as if all were equally frequent
    calibration = fit_calibration(2 * logits, labels, "multiclass", "logistic")
    assert calibration.slopes == (pytest.approx(1.0, abs=0.1),) * 3
    assert np.array(calibration.biases) - calibration.biases[0] == pytest.approx(np.log([1, 2 / 7, 1 / 7]), abs=0.25)
    assert calibration.probabilities(2 * logits, "multiclass").mean(axis=0) == pytest.approx([0.7, 0.2, 0.1], abs=0.01)


def test_few_cases_and_cases_apart_get_no_certainty():
    logits, labels = np.linspace(-3, 3, 40)[:, None], (np.arange(40) >= 20).astype(np.int64)
    apart = fit_calibration(logits, labels, "binary", "logistic").probabilities(logits, "binary")
    assert 0.9 < apart.max() < 0.999 and 0.001 < apart.min() < 0.1
    few = fit_calibration(logits[11:], labels[11:], "binary", "logistic")
    assert few.method == "temperature" and "9 cases of a class, fewer than 10" in few.note
