"""Sizes against written-out formulas and the widths of simulated studies; the learning curve against a known law."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.learning_curve import fit_learning_curve
from medopt.metrics.proportions import proportion
from medopt.metrics.sample_size import Sampling, auc_variance, auc_width, patients_for, share_width


def test_hanley_and_mcneils_variance_written_out() -> None:
    a, n, m = 0.9, 30, 70
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    expected = (a * (1 - a) + (n - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a)) / (n * m)
    assert auc_variance(a, n, m) == pytest.approx(expected)
    half = student.ppf(0.975, 29) * np.sqrt(expected) / (a * (1 - a))
    high, low = (1 / (1 + np.exp(-(np.log(a / (1 - a)) + sign * half))) for sign in (1, -1))
    assert auc_width(a, 100, Sampling(0.3)) == pytest.approx(high - low)


def test_wilsons_width_written_out() -> None:
    p, n, z = 0.9, 50, norm.ppf(0.975)
    expected = 2 * z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert share_width(p, n, 0.95) == pytest.approx(expected)


@pytest.mark.parametrize("width", [0.3, 0.1, 0.05])
def test_one_patient_fewer_is_too_few(width: float) -> None:
    sampling = Sampling(0.2, images=3, design_effect=2)
    for width_at in (
        lambda count: auc_width(0.85, count, sampling),
        lambda count: share_width(0.9, sampling.cases(count)[0], 0.95),
    ):
        count = patients_for(width, width_at)
        assert count is not None and width_at(count) <= width < width_at(count - 1)
    assert patients_for(1e-6, lambda count: auc_width(0.85, count, Sampling(0.2))) is None


@pytest.mark.parametrize(("auc", "prevalence", "patients"), [(0.8, 0.3, 200), (0.9, 0.5, 120), (0.7, 0.15, 400)])
def test_simulated_studies_have_intervals_of_that_width(auc: float, prevalence: float, patients: int) -> None:
    random, widths = np.random.default_rng(3), []
    sick = np.arange(patients) < prevalence * patients
    for _ in range(200):
        score = random.normal(size=patients) + np.sqrt(2) * norm.ppf(auc) * sick
        found = mean_auc(auc_with_covariance(score[:, None], sick[:, None], np.arange(patients)), patients, 0.95)
        widths.append(found.high - found.low)
    assert np.median(widths) == pytest.approx(auc_width(auc, patients, Sampling(prevalence)), rel=0.12)


def test_images_that_repeat_each_other_are_worth_as_little_as_they_are_in_simulation() -> None:
    """Sensitivity .8 of 60 patients with five images each, of which a part is common to the patient."""
    random, widths, owner = np.random.default_rng(1), [], np.repeat(np.arange(60), 5)
    for _ in range(200):
        own = random.beta(0.8 * 3, 0.2 * 3, size=60)[owner]  # correlation within a patient 1 / (3 + 1)
        found = proportion(random.random(300) < own, owner, 0.95, 300)
        widths.append(found.high - found.low)
    sampling = Sampling(0.5, images=5, design_effect=1 + 4 * 0.25)
    assert np.median(widths) == pytest.approx(share_width(0.8, sampling.cases(120)[0], 0.95), rel=0.1)


def test_a_known_law_is_found_and_its_interval_holds_the_truth() -> None:
    """AUC(n) = .95 - .9 n^-.5; in 60 studies of eight runs the AUC at 1,600 patients lies in 90 % and more."""
    sizes = np.array([50, 50, 100, 100, 200, 200, 400, 400])

    def law(n: np.ndarray | float) -> np.ndarray | float:
        return 0.95 - 0.9 * n**-0.5

    exact = fit_learning_curve(sizes, law(sizes.astype(float)), 1e-9, np.random.default_rng(0))
    assert exact.at(1600).value == pytest.approx(law(1600.0), abs=2e-3)
    held, widths = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        common, own = 0.15 * random.normal(), 0.1 * random.normal(size=8)
        odds = np.log(law(sizes.astype(float)) / (1 - law(sizes.astype(float)))) + common + own
        found = fit_learning_curve(sizes, 1 / (1 + np.exp(-odds)), 0.15, np.random.default_rng(1)).at(1600)
        held.append(found.low <= law(1600.0) <= found.high)
        widths.append(found.high - found.low)
    assert np.mean(held) >= 0.9 and np.median(widths) < 0.2


def test_too_few_runs_make_no_curve() -> None:
    with pytest.raises(ValueError, match="takes 4 runs or more at 3 or more different numbers"):
        fit_learning_curve(np.array([50, 100, 200]), np.array([0.7, 0.75, 0.8]), 0.1, np.random.default_rng(0))
