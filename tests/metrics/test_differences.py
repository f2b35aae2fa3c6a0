"""Differences of two figures by their intervals."""

import pytest

from medopt.core.records import Estimate
from medopt.metrics.differences import difference
from medopt.metrics.proportions import wilson


def share(hits, cases):
    low, high = wilson(hits / cases, cases, 0.95)
    return Estimate(hits / cases, float(low), float(high), cases)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_newcombes_published_intervals(first, second, low, high):
    """Newcombe 1998 (Statist. Med. 17:873), table II, method 10."""
    found = difference(share(*first), share(*second), 99)
    assert (found.low, found.high, found.n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5), 99)
    other = difference(share(*second), share(*first), 99)
    assert (other.low, other.high) == (pytest.approx(-high, abs=5e-5), pytest.approx(-low, abs=5e-5))


def test_what_varies_together_differs_less():
    first, second = Estimate(0.9, 0.8, 0.95, 50), Estimate(0.8, 0.7, 0.85, 50)
    apart, together = difference(first, second, 50), difference(first, second, 50, 0.5)
    assert apart.value == together.value == pytest.approx(0.1)
    assert apart.low < together.low < 0.1 < together.high < apart.high
    same = difference(first, Estimate(0.8, 0.7, 0.9, 50), 50, 1.0)
    assert same.low == pytest.approx(0.1) and same.high == pytest.approx(0.15)


def test_what_is_missing_is_said():
    known, unsure = Estimate(0.9, 0.8, 0.95, 50), Estimate(0.7, None, None, 9, "no interval: one patient only")
    found = difference(known, unsure, 59)
    assert (found.value, found.low, found.note) == (pytest.approx(0.2), None, "no interval: one patient only")
    nothing = difference(Estimate(None, None, None, 3, "not defined: a class or a decision is missing"), known, 53)
    assert (nothing.value, nothing.note[:11]) == (None, "not defined")
