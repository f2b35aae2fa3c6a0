"""Sensitivity and specificity of two models on the same cases: the difference with its interval and its p value.

Newcombe's method 10 for paired shares (1998, Statist. Med. 17:2635), of patients instead of cases: each share has
Wilson's interval over patients, and the two are put together with the correlation of what each patient adds to them
(MOVER, Zou & Donner 2008). So it holds for a dozen cases and for shares near 1, where percentiles of a bootstrap do
not. The mean over several outputs is put together from the outputs in the same way. p is the level at which the
interval ends at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.evaluation.group_differences import correlation, deviations
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.differences import difference
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import Floats, Index

Mask = NDArray[np.bool_]
NOT_DEFINED = "not defined: a class or a decision is missing"


def paired_shares(
    first: CalibratedPredictions, second: CalibratedPredictions, confidence: float
) -> dict[str, tuple[Estimate, float | None]]:
    """Sensitivity and specificity of the second less those of the first on the same rows, with p of no difference."""
    found = {}
    for name, side in (("sensitivity", 1), ("specificity", 0)):
        outputs = range(first.truth.shape[1])
        pairs = [_Pair.of(first, second, output, first.truth[:, output] == side) for output in outputs]
        pairs = [pair for pair in pairs if len(pair.patients)]
        found[name] = _mean(pairs, len(first.predictions), confidence), _p_value(pairs, len(first.predictions))
    return found


def share_difference(before: Mask, after: Mask, patients: Index, confidence: float) -> Estimate:
    """The share of `after` (N,) less that of `before` (N,) on the same rows of `patients` (N,), by the same method.

    >>> before, after = np.array([True, True, False, False]), np.array([True, True, True, False])
    >>> found = share_difference(before, after, np.arange(4), 0.95)
    >>> found.value, found.excludes_zero
    (0.25, False)
    """
    if not len(patients):
        return Estimate(None, None, None, 0, NOT_DEFINED)
    everything = np.ones(len(patients), dtype=bool)
    parts = [deviations(one, everything, patients) for one in (before, after)]
    together = _corrected(parts[0], parts[1], np.bincount(patients).astype(np.float64))
    return _Pair(before, after, patients, together, parts[1] - parts[0]).difference(confidence)


@dataclass(frozen=True, slots=True)
class _Pair:
    """Which cases (M,) of one output both models got right, and how the two vary together.

    `apart` (P,) is what each patient adds to the deviation of the difference.
    """

    before: Mask
    after: Mask
    patients: Index
    together: float
    apart: Floats

    @classmethod
    def of(cls, first: CalibratedPredictions, second: CalibratedPredictions, output: int, rows: Mask) -> _Pair:
        patients, truth = first.patients, first.truth[:, output] == 1
        right = [one.decided[:, output] == truth for one in (first, second)]
        parts = [deviations(one, rows, patients) for one in right]
        together = _corrected(parts[0], parts[1], np.bincount(patients[rows]).astype(np.float64))
        return cls(right[0][rows], right[1][rows], patients[rows], together, parts[1] - parts[0])

    def difference(self, confidence: float) -> Estimate:
        cases = len(self.patients)
        after, before = (proportion(hit, self.patients, confidence, cases) for hit in (self.after, self.before))
        return difference(after, before, cases, self.together)


def _corrected(first: Floats, second: Floats, counts: Floats) -> float:
    """The correlation of two shares, less half a patient where it is positive, as Newcombe corrects for continuity."""
    product, patients = float((first * second).sum()), int((counts > 0).sum())
    if product <= 0 or not patients:
        return correlation(first, second)
    return correlation(first, second) * max(0.0, 1 - float((counts**2).sum()) / (2 * patients) / product)


def _mean(pairs: list[_Pair], cases: int, confidence: float) -> Estimate:
    """The mean difference over outputs."""
    if not pairs:
        return Estimate(None, None, None, cases, NOT_DEFINED)
    found = [pair.difference(confidence) for pair in pairs]
    value = float(np.mean([one.value for one in found if one.value is not None]))
    if any(one.low is None or one.high is None for one in found):
        return Estimate(value, None, None, cases, "no interval: one patient only")
    between = np.array([[correlation(one.apart, other.apart) for other in pairs] for one in pairs])
    np.fill_diagonal(between, 1)
    down, up = (
        math.sqrt(max(0.0, float(reach @ between @ reach))) / len(pairs)
        for reach in (
            np.array([one.value - one.low for one in found]),  # type: ignore[operator]
            np.array([one.high - one.value for one in found]),  # type: ignore[operator]
        )
    )
    return Estimate(value, value - down, value + up, cases)


def _p_value(pairs: list[_Pair], cases: int) -> float | None:
    """The smallest p at which the interval at 1 - p does not hold 0; None where there is no interval."""
    if not pairs or _mean(pairs, cases, 0.95).low is None:
        return None
    if all(np.array_equal(pair.before, pair.after) for pair in pairs):
        return None

    def holds_zero(p: float) -> bool:
        one = _mean(pairs, cases, 1 - p)
        return one.low is not None and one.high is not None and one.low <= 0 <= one.high

    low, high = 1e-9, 1 - 1e-9
    if holds_zero(high):
        return 1.0
    for _ in range(20):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds_zero(middle) else (low, middle)
    return high
