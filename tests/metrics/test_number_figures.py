"""Figures of numbers and grades by written-out formulas, the promised interval by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_absolute_error, r2_score

from medopt.core.number_scale import NumberScale
from medopt.metrics.bootstrap import Resampling
from medopt.metrics.grade_figures import grade_figures
from medopt.metrics.number_figures import error_change, number_figures
from medopt.metrics.numbers import conformal_margin
from medopt.metrics.thresholds import MEDIAN, OperatingPoint

HOW = Resampling(bootstrap=200, confidence=0.95, seed=0)


def drawn(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted and true numbers, and two cases a patient."""
    random = np.random.default_rng(seed)
    truth = random.normal(50, 10, count)
    return truth + random.normal(2, 4, count), truth, np.repeat(np.arange(count // 2), 2)


def test_errors_and_agreement_equal_scikit_learns_and_the_formulas() -> None:
    predicted, truth, patients = drawn()
    found = number_figures(predicted, truth, patients, None, "a", HOW)
    apart = predicted - truth
    assert found.mae.value == pytest.approx(mean_absolute_error(truth, predicted))
    assert found.rmse.value == pytest.approx(np.sqrt(np.mean(apart**2)))
    assert found.r2.value == pytest.approx(r2_score(truth, predicted))
    assert found.bias.value == pytest.approx(apart.mean())
    assert found.lower.value == pytest.approx(apart.mean() - 1.96 * apart.std(ddof=1))
    assert found.upper.value == pytest.approx(apart.mean() + 1.96 * apart.std(ddof=1))
    assert found.covered is None and found.unit == "a"


def test_intervals_know_that_a_patients_cases_belong_together() -> None:
    """Sixty copies of ten patients know no more than ten."""
    predicted, truth, _ = drawn(10)
    one = number_figures(predicted, truth, np.arange(10), None, "1", HOW)
    copies = [np.repeat(values, 6) for values in (predicted, truth, np.arange(10))]
    many = number_figures(*copies, None, "1", HOW)
    assert many.mae.high - many.mae.low == pytest.approx(one.mae.high - one.mae.low, rel=0.05)


def test_numbers_that_are_all_alike_have_no_r2() -> None:
    found = number_figures(np.arange(6.0), np.full(6, 3.0), np.arange(6), None, "1", HOW)
    assert found.r2.value is None and found.mae.value == pytest.approx(1.5)


def test_the_share_inside_the_interval_is_counted() -> None:
    predicted, truth, patients = drawn()
    inside = np.abs(predicted - truth) < 5
    found = number_figures(predicted, truth, patients, inside, "1", HOW)
    assert found.covered is not None and found.covered.value == pytest.approx(inside.mean())


@pytest.mark.parametrize("images", [1, 4])
def test_a_new_patients_number_lies_within_the_margin_as_often_as_promised(images: int) -> None:
    """At least 90 % of new patients with all their images; not much more where a patient has one."""
    random, held = np.random.default_rng(3), []
    for _ in range(400):
        errors = np.abs(random.standard_t(3, (41, images)))
        patients = np.repeat(np.arange(40), images)
        margin = conformal_margin(errors[:40].ravel(), patients, 0.9)
        held.append(bool((errors[40] <= margin.reach).all()))
    assert np.mean(held) >= 0.9 - 2 * np.sqrt(0.9 * 0.1 / 400)
    assert np.mean(held) <= 0.96


def test_too_few_patients_promise_nothing_and_say_how_many_it_takes() -> None:
    margin = conformal_margin(np.arange(18.0), np.arange(18), 0.95)
    assert margin.reach is None and "which takes 19" in margin.note
    assert conformal_margin(np.arange(19.0), np.arange(19), 0.95).reach == 18.0


def test_the_change_of_the_error_is_a_share_of_the_spread() -> None:
    predicted, truth, patients = drawn()
    worse = truth + 2 * (predicted - truth)
    found = error_change(predicted, worse, truth, patients, HOW)
    assert found.value == pytest.approx(np.abs(predicted - truth).mean() / truth.std())
    assert found.low is not None and found.low > 0


def test_a_scale_goes_there_and_back() -> None:
    for scale in (NumberScale("log", 3000.0, 0.13), NumberScale("linear", -4.0, 2.5)):
        numbers = np.array([2000.0, 3000.0, 3500.0])
        assert scale.numbers(scale.outputs(numbers)) == pytest.approx(numbers)
        assert float(scale.numbers(0)) == scale.threshold
        assert (scale.outputs(numbers) > 0).tolist() == (numbers > scale.threshold).tolist()


def test_kappa_equals_scikit_learns() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 5, 80)
    decided = np.clip(truth + random.integers(-1, 3, 80), 0, 4)
    found = grade_figures(decided, truth, np.arange(80), HOW)
    assert found.kappa.value == pytest.approx(cohen_kappa_score(truth, decided, weights="quadratic"))
    assert found.distance.value == pytest.approx(np.abs(decided - truth).mean())
    assert found.within_one.value == pytest.approx((np.abs(decided - truth) <= 1).mean())
    assert found.kappa.low < found.kappa.value < found.kappa.high


def test_one_grade_for_all_has_no_kappa() -> None:
    found = grade_figures(np.full(5, 2), np.full(5, 2), np.arange(5), HOW)
    assert found.kappa.value is None and found.distance.value == 0


def test_the_median_grade_is_the_first_that_half_does_not_lie_beyond() -> None:
    point = OperatingPoint(None, MEDIAN)
    table = np.array([[0.4, 0.1, 0.1, 0.4], [0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 0.49, 0.51], [1.0, 0.0, 0.0, 0.0]])
    assert point.decide(table).tolist() == [1, 0, 3, 0]
    assert point.confidence(table).tolist() == [0.1, 0.5, 0.51, 1.0]
