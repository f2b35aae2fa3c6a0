"""Flips and shifts of three labels, of patients with several images, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medopt.compression.gate import disagreement
from medopt.evaluation.validation_fit import CrossFittedDecisions
from medopt.metrics.proportions import wilson

Z, T5 = 1.959963985, 2.570581836


def read(probability: np.ndarray, decision: np.ndarray, patients: np.ndarray) -> CrossFittedDecisions:
    names = np.array([f"c{at:03d}" for at in range(len(probability))])
    return CrossFittedDecisions(names, patients, probability, decision)


@pytest.mark.parametrize("labels", [1, 3])
def test_flips_of_one_patient_are_not_several_witnesses(labels: int) -> None:
    """Six patients of two images; all flips are in two of them."""
    patients = np.repeat(np.arange(6), 2)
    before = np.zeros((12, labels), bool)
    after = before.copy()
    after[:4] = True
    probability = np.full((12, labels), 0.4)
    moved = probability.copy()
    moved[0, -1] -= 0.3
    moved[5, 0] += 0.06
    found = disagreement(
        read(probability, before, patients),
        read(moved, after, patients),
        bootstrap=100,
        confidence=0.95,
        generator=np.random.default_rng(0),
    )
    share, cases = 1 / 3, 12 * labels
    # Deviations of a patient's 2 * labels decisions: 2 patients 2L - 2L/3, 4 patients -2L/3.
    squares = 2 * (4 * labels / 3) ** 2 + 4 * (2 * labels / 3) ** 2
    variance = 6 / 5 * squares / cases**2
    effective = max(1.0, (Z / T5) ** 2 * cases * (share * (1 - share) / (cases - 1)) / variance)
    low, high = wilson(share, effective, 0.95)
    assert found.decision_flips.value == pytest.approx(share)
    assert found.decision_flips.n == 12
    assert (found.decision_flips.low, found.decision_flips.high) == pytest.approx((float(low), float(high)), rel=1e-6)
    assert found.probability_shift.value == pytest.approx((0.3 + 0.06) / (12 * labels))
    assert found.largest_shift == pytest.approx(0.3)
