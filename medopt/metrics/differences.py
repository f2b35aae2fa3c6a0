"""The difference of two figures whose intervals are known: one group of patients less another.

The interval recovers each figure's variance from its own interval at the limits that matter (MOVER, Zou & Donner 2008;
of Wilson's intervals it is Newcombe's method 10, 1998). So it is skewed as the figures are, and it holds in groups of a
dozen patients, where percentiles of a bootstrap exclude no difference far too often.
"""

from __future__ import annotations

import math

from medopt.core.records import Estimate


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


def _reach(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * correlation * one * other))
