"""Temperatures minimise the likelihood, probabilities are those of scipy's definitions, ECE those of worked cases."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from medopt.core.errors import DataError
from medopt.metrics.calibration import (
    TEMPERATURE_RANGE,
    fit_temperature,
    negative_log_likelihood,
    probabilities,
    targets,
)
from medopt.metrics.calibration_error import expected_calibration_error

TASKS = [("binary", 1), ("multiclass", 4), ("multilabel", 3)]


def sampled(task, outputs, temperature, cases=6000, seed=0):
    """Logits that are `temperature` times too large for the labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(cases, outputs))
    probability = probabilities(logits, 1.0, task)
    if task == "multiclass":
        labels = (probability.cumsum(axis=1) < generator.random((cases, 1))).sum(axis=1)
    else:
        labels = (generator.random(probability.shape) < probability).astype(np.int64)
        labels = labels if task == "multilabel" else labels[:, 0]
    return temperature * logits, labels


@pytest.mark.parametrize(("task", "outputs"), TASKS)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found_again(task, outputs, temperature):
    logits, labels = sampled(task, outputs, temperature)
    assert fit_temperature(logits, labels, task) == pytest.approx(temperature, rel=0.06)


@pytest.mark.parametrize(("task", "outputs"), TASKS)
def test_no_temperature_on_a_fine_grid_is_likelier(task, outputs):
    logits, labels = sampled(task, outputs, 2.0, cases=80, seed=3)
    target = targets(labels, outputs, task)
    best = negative_log_likelihood(logits, target, fit_temperature(logits, labels, task), task)
    grid = np.geomspace(*TEMPERATURE_RANGE, 2000)
    assert best <= min(negative_log_likelihood(logits, target, t, task) for t in grid) + 1e-9


def test_likelihood_is_that_of_scikit_learn():
    for task, outputs in TASKS:
        logits, labels = sampled(task, outputs, 1.0, cases=200)
        probability = probabilities(logits, 1.7, task)
        if task == "multiclass":
            expected = log_loss(labels, probability)
        else:
            columns = zip(labels.reshape(200, -1).T, probability.T, strict=True)
            expected = np.mean([log_loss(truth, column) for truth, column in columns])
        assert negative_log_likelihood(logits, targets(labels, outputs, task), 1.7, task) == pytest.approx(expected)


def test_where_the_likelihood_has_no_minimum_the_model_is_left_as_it_is():
    logits = np.array([[-2.0], [-1.0], [0.5], [3.0]])
    assert fit_temperature(logits, np.array([0, 0, 1, 1]), "binary") == 1.0  # told apart without an error
    assert fit_temperature(logits, np.ones(4, dtype=int), "binary") == 1.0
    assert fit_temperature(np.zeros((4, 1)), np.array([0, 1, 0, 1]), "binary") == 1.0
    assert fit_temperature(np.zeros((0, 1)), np.zeros(0, dtype=int), "binary") == 1.0
    assert fit_temperature(np.eye(3), np.arange(3), "multiclass") == 1.0
    assert fit_temperature(np.eye(3), np.zeros(3, dtype=int), "multiclass") == 1.0
    assert fit_temperature(2 * np.eye(2) - 1, np.eye(2, dtype=int), "multilabel") == 1.0


def test_a_model_that_is_always_wrong_is_flattened_to_the_bound():
    logits = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    assert fit_temperature(logits, np.array([1, 1, 0, 0]), "binary") == pytest.approx(TEMPERATURE_RANGE[1], rel=1e-3)


def test_probabilities_of_extreme_logits_are_finite_and_sum_to_one():
    logits = np.array([[-800.0, 0.0, 800.0], [1e300, 1e300, 1e300]])
    assert probabilities(logits, 0.05, "multiclass").sum(axis=1) == pytest.approx([1, 1])
    assert probabilities(logits[:, :1], 0.05, "binary").ravel().tolist() == [0.0, 1.0]
    assert probabilities(np.zeros((1, 2), np.float32), 3.0, "multilabel").tolist() == [[0.5, 0.5]]


def test_a_damaged_logit_gives_no_probability():
    with pytest.raises(DataError, match="1 of 2 cases have a logit that is not a finite number"):
        probabilities(np.array([[1.0], [np.nan]]), 1.0, "binary")


def test_calibration_error_of_worked_cases():
    """Two bins of 2: |0.1 - 0.5| and |0.9 - 1.0|, so 0.25."""
    probability, labels = np.array([[0.1], [0.1], [0.9], [0.9]]), np.array([0, 1, 1, 1])
    assert expected_calibration_error(probability, labels, "binary") == pytest.approx(0.25)
    # The mirror image of the probabilities: |0.9 - 0.5| and |0.1 - 1.0|, so 0.65.
    both, twice = np.hstack([probability, 1 - probability]), np.stack([labels, labels], axis=1)
    assert expected_calibration_error(both, twice, "multilabel") == pytest.approx((0.25 + 0.65) / 2)
    # Certainty shares the last bin: |0.975 - 0.5|.
    assert expected_calibration_error(np.array([[0.95], [1.0]]), np.array([1, 0]), "binary") == pytest.approx(0.475)
    # Multi-class: confidence 0.8 and 0.6, the first right, the second wrong.
    table = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2]])
    assert expected_calibration_error(table, np.array([0, 2]), "multiclass") == pytest.approx((0.2 + 0.6) / 2)
    assert expected_calibration_error(np.array([[1.0], [0.0]]), np.array([1, 0]), "binary") == 0.0


def test_calibration_error_equals_scikit_learns_curve():
    logits, labels = sampled("binary", 1, 2.0, cases=500)
    probability = probabilities(logits, 1.0, "binary")
    observed, predicted = calibration_curve(labels, probability[:, 0], n_bins=15)
    cases = np.histogram(probability, bins=15, range=(0, 1))[0]
    expected = (cases[cases > 0] * np.abs(observed - predicted)).sum() / 500
    assert expected_calibration_error(probability, labels, "binary") == pytest.approx(expected)
