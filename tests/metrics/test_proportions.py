"""Intervals of proportions: Wilson's published ones, the exact one, and what clusters do to them."""

import numpy as np
import pytest
from scipy.stats import binomtest

from medopt.metrics.proportions import effective_cases, exact, proportion, wilson


def test_wilsons_published_intervals():
    """Newcombe 1998 (Statist. Med. 17:857), table I."""
    for events, cases, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]:
        assert wilson(events / cases, cases, 0.95) == pytest.approx((low, high), abs=5e-5)
        hit = np.arange(cases) < events
        found = proportion(hit, np.arange(cases), 0.95, cases)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("patients", [1, 5, 40])
@pytest.mark.parametrize("share", [0, 1])
def test_a_share_of_nothing_or_all_has_the_interval_of_clopper_and_pearson(patients, share):
    found = proportion(np.full(3 * patients, bool(share)), np.repeat(np.arange(patients), 3), 0.95, 99)
    oracle = binomtest(share * patients, patients).proportion_ci(0.95, method="exact")
    assert (found.low, found.high, found.n) == (pytest.approx(oracle.low), pytest.approx(oracle.high), 99)
    assert found == exact(float(share), patients, 99, 0.95)


def test_images_that_repeat_each_other_count_once():
    random = np.random.default_rng(0)
    hit = random.random(400) < 0.8
    assert effective_cases(hit, np.arange(400), 0.95) == 400
    four = effective_cases(np.repeat(hit, 4), np.repeat(np.arange(400), 4), 0.95)
    assert four == pytest.approx(400, rel=0.01)
    independent = random.random(1600) < 0.8
    assert effective_cases(independent, np.repeat(np.arange(400), 4), 0.95) > 1300


def test_what_is_not_there_is_said():
    nothing = proportion(np.zeros(0, dtype=bool), np.zeros(0, dtype=int), 0.95, 7)
    assert (nothing.value, nothing.n) == (None, 7) and nothing.note.startswith("not defined")
    one = proportion(np.array([True, False]), np.zeros(2, dtype=int), 0.95, 2)
    assert (one.value, one.low, one.note) == (0.5, None, "no interval: one patient only")
