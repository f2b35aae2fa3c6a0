"""Intervals of proportions: Wilson's published ones, the exact one, and what clusters do to them."""

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student

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


Z, T = 1.959963985, {1: 12.706204736, 5: 2.570581836, 14: 2.144786688}
"""Quantiles .975 of the normal distribution and of Student's, from a printed table."""

FEW = {
    2: [(3, 4), (0, 2)],
    6: [(2, 2), (0, 3), (1, 2), (3, 3), (0, 1), (2, 4)],
    15: [
        *[(1, 1), (0, 2), (3, 3), (1, 2), (0, 1), (2, 2), (0, 3), (4, 4)],
        *[(1, 1), (0, 1), (2, 3), (0, 2), (1, 1), (3, 4), (0, 2)],
    ],
}
"""Of each patient: how many of its cases are hits, and how many cases it has."""


def cases_of(counts):
    hit = np.concatenate([np.arange(cases) < hits for hits, cases in counts])
    return hit, np.repeat(np.arange(len(counts)), [cases for _, cases in counts])


@pytest.mark.parametrize("patients", [2, 6, 15])
def test_few_patients_by_the_formula_written_out(patients):
    """Cochran 1977, 6.3, each square over 1 - w; Korn & Graubard 1998: Student's t with the freedom of the weights."""
    counts = FEW[patients]
    hits, cases = sum(hits for hits, _ in counts), sum(cases for _, cases in counts)
    share = hits / cases
    parts = [own / cases for _, own in counts]
    residuals = [(own_hits - own_cases * share) / cases for own_hits, own_cases in counts]
    variance = sum(each**2 / (1 - part) for each, part in zip(residuals, parts, strict=True))
    independent = share * (1 - share) / (cases - 1)
    freedom = max(1, sum(part**2 for part in parts) ** 2 / sum(part**4 for part in parts) - 1)
    expected = (Z / student.ppf(0.975, freedom)) ** 2 * cases * independent / variance
    as_equal = 1 / sum(part**2 for part in parts)
    expected = max(expected, (Z / T[patients - 1]) ** 2 * (as_equal - 1))
    assert variance > independent  # else these patients would show nothing
    hit, owner = cases_of(counts)
    found = effective_cases(hit, owner, 0.95)
    assert found == pytest.approx(max(1.0, expected), rel=1e-7)
    assert (patients == 2) == (found == 1.0)  # two patients know next to nothing: never less than one case
    n = found
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5
    estimate = proportion(hit, owner, 0.95, 77)
    assert (estimate.value, estimate.n, estimate.note) == (pytest.approx(share), 77, "")
    assert (estimate.low, estimate.high) == pytest.approx((centre - half, centre + half), rel=1e-7)


def test_six_patients_in_figures():
    """10 hits of 18 cases, three of each patient, as a pocket calculator has it."""
    hit, owner = cases_of([(2, 3), (0, 3), (2, 3), (3, 3), (1, 3), (2, 3)])
    # share 5/9; deviations 1/3, -5/3, 1/3, 4/3, -2/3, 1/3
    squares = (1 + 25 + 1 + 16 + 4 + 1) / 9
    variance = 6 / 5 * squares / 324
    expected = (1.959963985 / 2.570581836) ** 2 * 18 * (5 / 9 * 4 / 9 / 17) / variance
    assert effective_cases(hit, owner, 0.95) == pytest.approx(expected, rel=1e-7)


def test_patients_with_very_different_numbers_of_cases_know_less():
    """One patient with half of all cases: 400 studies of 40 patients whose shares vary around .85."""
    held = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        owner = np.repeat(np.arange(40), [40, *[1] * 39])
        hit = random.random(len(owner)) < random.beta(2.55, 0.45, 40)[owner]
        found = proportion(hit, owner, 0.95, len(hit))
        held += found.low <= 0.85 <= found.high
    assert held / 400 >= 0.93  # .82 where the patients count as if all were equal


def test_all_alike_of_unequal_patients_are_worth_fewer():
    """1 / sum w^2 of the parts 1/2, 1/4, 1/8, 1/8: 32/11 patients."""
    found = proportion(np.ones(8, dtype=bool), np.repeat(np.arange(4), [4, 2, 1, 1]), 0.95, 8)
    assert found.low == pytest.approx(0.025 ** (11 / 32))
    assert found.note == "exact interval from effectively 2.9 patients"


def test_deviations_that_cancel_and_cases_that_disagree_count_fully():
    hit, owner = cases_of([(1, 2)] * 6)  # each patient has the share exactly: a variance of 0
    assert effective_cases(hit, owner, 0.95) == 12
    assert proportion(hit, owner, 0.95, 12).low == pytest.approx(wilson(0.5, 12, 0.95)[0])
    hit, owner = cases_of([(1, 3), (1, 2), (1, 3), (1, 2)])
    assert effective_cases(hit, owner, 0.95) == 10  # less than independent cases would vary: no more than all cases
    hit, owner = cases_of([(1, 1), (0, 1), (1, 1), (1, 1)])
    assert effective_cases(hit, owner, 0.95) == 4  # one case a patient: t has no say


def test_one_patient_and_cases_alike_count_as_patients():
    assert effective_cases(np.array([True, False, True]), np.zeros(3, int), 0.95) == 1
    assert effective_cases(np.array([True] * 6), np.repeat(np.arange(3), 2), 0.95) == 3
    assert effective_cases(np.array([False] * 6), np.repeat(np.arange(2), 3), 0.95) == 2
    two = proportion(*cases_of([(1, 2), (1, 2)]), 0.95, 4)
    assert (two.low, two.high) == pytest.approx([float(side) for side in wilson(0.5, 4, 0.95)])


def test_exact_intervals_by_hand():
    """Clopper & Pearson 1934, where all of n are alike: alpha / 2 to the power of 1 / n."""
    all_of_three, none_of_three = exact(1.0, 3, 9, 0.9), exact(0.0, 3, 9, 0.9)
    assert (all_of_three.low, all_of_three.high) == (pytest.approx(0.05 ** (1 / 3)), 1)
    assert (none_of_three.low, none_of_three.high) == (0, pytest.approx(1 - 0.05 ** (1 / 3)))
    assert all_of_three.note == "exact interval from 3 patients"
    assert all_of_three.n == 9


def test_an_interval_never_leaves_zero_and_one_nor_its_share():
    for share, cases in [(1.0, 3.0), (0.0, 3.0), (0.999, 1.0), (0.001, 1.0), (0.5, 1e9)]:
        low, high = wilson(share, cases, 0.95)
        assert 0 <= low <= share <= high <= 1
    low, high = wilson(np.array([0.2, 0.5]), np.array([10.0, 20.0]), 0.9)
    assert (low.shape, high.shape) == ((2,), (2,))
