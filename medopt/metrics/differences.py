"""The difference of two figures whose intervals are known: one group of patients less another.

The interval recovers each figure's variance from its own interval at the limits that matter (MOVER, Zou & Donner 2008;
of Wilson's intervals it is Newcombe's method 10, 1998). So it is skewed as the figures are, and it holds in groups of a
dozen patients, where percentiles of a bootstrap exclude no difference far too often.
"""

from __future__ import annotations

import math

import numpy as np

from medopt.core.records import Estimate
from medopt.metrics.proportions import cases_of_patients, degrees_of_freedom
from medopt.metrics.weighted import Floats, Index


def difference(first: Estimate, second: Estimate, cases: int, correlation: float = 0.0) -> Estimate:
    """`first` less `second`, on `cases` in all; no interval where one of the two has none.

    `correlation` is that of the two figures, 0 where they have no patient in common.

    >>> found = difference(Estimate(0.9, 0.8, 0.95, 50), Estimate(0.7, 0.6, 0.8, 60), 110)
    >>> round(found.value, 2), round(found.low, 3), round(found.high, 3)
    (0.2, 0.059, 0.312)
    """
    if first.value is None or second.value is None:
        return Estimate(None, None, None, cases, first.note if first.value is None else second.note)
    value = first.value - second.value
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Estimate(value, None, None, cases, first.note if first.low is None else second.note)
    down = _reach(first.value - first.low, second.high - second.value, correlation)
    up = _reach(first.high - first.value, second.value - second.low, correlation)
    return Estimate(value, value - down, value + up, cases)


def mean_over_patients(values: Floats, patients: Index, confidence: float) -> Estimate:
    """The mean of `values` (N,), with an interval that knows which of `patients` (N,) they are of.

    Its variance is that of a ratio of sums over patients, of whom large ones count more (CR2, as of a proportion), and
    Student's t stands for the normal distribution. One patient has no interval.

    >>> found = mean_over_patients(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1]), 0.95)
    >>> found.value, round(found.high - found.value, 1)
    (2.0, 12.7)
    """
    cases = len(values)
    if not cases:
        return Estimate(None, None, None, 0, "not defined: there is no case")
    mean, counts = float(values.mean()), cases_of_patients(patients)
    if len(counts) < 2:
        return Estimate(mean, None, None, cases, "no interval: one patient only")
    apart = np.bincount(patients, weights=values - mean)[np.bincount(patients) > 0] / cases
    variance = float((apart**2 / (1 - counts / cases)).sum())
    from scipy.stats import t  # its import takes a second

    reach = float(t.ppf((1 + confidence) / 2, degrees_of_freedom(counts))) * math.sqrt(variance)
    return Estimate(mean, mean - reach, mean + reach, cases)


def _reach(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))
