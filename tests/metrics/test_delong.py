"""DeLong's and Obuchowski's variances against the papers' double sums, and the interval against simulated truth."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from medopt.metrics.bootstrap import estimates, guarded
from medopt.metrics.delong import AucWithCovariance, auc_with_covariance, difference_of, mean_auc, placements
from medopt.metrics.proportions import wilson
from medopt.metrics.weighted import ranking_statistic


def kernel(positive, negative):
    """psi (M, N) of DeLong et al. 1988: 1, one half for a tie, 0."""
    return (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)


def drawn_scores(seed=0, cases=70, patients=None, decimals=1):
    random = np.random.default_rng(seed)
    target = random.random(cases) < 0.4
    score = (random.normal(size=(cases, 2)) + target[:, None]).round(decimals)
    owner = np.arange(cases) if patients is None else random.integers(patients, size=cases)
    return score, target, owner


def test_covariance_is_that_of_delongs_double_sums():
    score, target, owner = drawn_scores()
    both = np.stack([target, target], axis=1)
    found = auc_with_covariance(score, both, owner)
    psi = [kernel(column[target], column[~target]) for column in score.T]
    assert found.value == pytest.approx([one.mean() for one in psi])
    assert found.value == pytest.approx([roc_auc_score(target, column) for column in score.T])
    above, below = (np.cov([one.mean(axis=axis) for one in psi]) for axis in (1, 0))
    assert found.covariance == pytest.approx(above / target.sum() + below / (~target).sum())


def test_clustered_variance_is_obuchowskis_sums_written_out():
    score, target, owner = drawn_scores(3, patients=25)
    psi = kernel(score[target, 0], score[~target, 0])
    area, m, n = psi.mean(), target.sum(), (~target).sum()
    above, below = psi.mean(axis=1), psi.mean(axis=0)
    s10 = s01 = s11 = 0.0
    sick, well = set(owner[target]), set(owner[~target])
    assert sick & well and len(sick | well) == len(np.unique(owner))
    for patient in sick | well:
        first = (above[owner[target] == patient] - area).sum()
        second = (below[owner[~target] == patient] - area).sum()
        here = owner == patient
        s10 += first**2 / (1 - (here & target).sum() / m)  # n / (n - 1) where all patients have as many cases
        s01 += second**2 / (1 - (here & ~target).sum() / n)
        s11 += first * second / (1 - here.mean())
    found = auc_with_covariance(score[:, :1], target[:, None], owner)
    assert found.covariance[0, 0] == pytest.approx(s10 / m**2 + s01 / n**2 + 2 * s11 / (m * n))
    assert found.fewest == min(len(sick), len(well))


def test_with_equal_numbers_of_images_it_is_obuchowskis():
    """25 patients with three images each, some sick and some not: her factors n / (n - 1)."""
    score, target, _ = drawn_scores(3, cases=75)
    owner = np.repeat(np.arange(25), 3)
    target = owner % 2 == 0
    psi = kernel(score[target, 0], score[~target, 0])
    sums = [
        np.bincount(owner[rows], weights=psi.mean(axis=axis) - psi.mean(), minlength=25)
        for rows, axis in ((target, 1), (~target, 0))
    ]
    expected = 13 / 12 * (sums[0] ** 2).sum() / 39**2 + 12 / 11 * (sums[1] ** 2).sum() / 36**2
    found = auc_with_covariance(score[:, :1], target[:, None], owner)
    assert found.covariance[0, 0] == pytest.approx(expected)
    squares = (sums[0] / 39 + sums[1] / 36) ** 2
    freedom = 2 / ((squares**2).sum() / squares.sum() ** 2 - 1 / 25)
    assert (found.effective, found.combined(np.ones(1))[2]) == (12, pytest.approx(freedom))


def test_interval_holds_where_one_patient_has_half_of_the_images():
    """AUC 0.85, 40 and 40 patients; 250 studies."""
    held, separation = 0, np.sqrt(2) * NormalDist().inv_cdf(0.85)
    for seed in range(250):
        random = np.random.default_rng(seed)
        owner = np.repeat(np.arange(80), [80, *[1] * 79])
        target = (owner % 2 == seed % 2)[:, None]
        noise = np.sqrt(0.6) * random.normal(size=80)[owner] + np.sqrt(0.4) * random.normal(size=len(owner))
        one = mean_auc(auc_with_covariance(noise[:, None] + separation * target, target, owner), len(owner), 0.95)
        held += one.low <= 0.85 <= one.high
    assert held / 250 >= 0.93  # .79 where the patients count as if all were equal


def test_placements_are_the_means_of_the_kernel():
    score, target, _ = drawn_scores(5)
    psi = kernel(score[target, 0], score[~target, 0])
    found = placements(score[:, 0], target)
    assert found[target] == pytest.approx(psi.mean(axis=1)) and found[~target] == pytest.approx(psi.mean(axis=0))


def test_repeating_every_image_tells_nothing_new_of_the_patients():
    score, target, owner = drawn_scores(2, decimals=6)
    once = mean_auc(auc_with_covariance(score[:, :1], target[:, None], owner), 70, 0.95)
    twice = mean_auc(
        auc_with_covariance(np.repeat(score[:, :1], 2, 0), np.repeat(target, 2)[:, None], np.repeat(owner, 2)),
        140,
        0.95,
    )
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


def test_who_has_no_case_is_no_witness():
    """The numbers of patients may have gaps, as those of a subgroup have."""
    score, target, owner = drawn_scores(4, patients=30)
    found, gaps = (
        mean_auc(auc_with_covariance(score, np.stack([target] * 2, 1), o), 70, 0.95) for o in (owner, 5 * owner + 3)
    )
    assert found == gaps
    areas = auc_with_covariance(score, np.stack([target] * 2, 1), 5 * owner + 3)
    assert areas.shares.shape == (2, len(np.unique(owner)))


def test_mean_over_outputs_has_the_variance_of_the_mean():
    score, target, owner = drawn_scores()
    found = auc_with_covariance(score, np.stack([target, ~target], axis=1), owner)
    _, variance, _ = found.combined(np.array([0.5, 0.5]))
    assert variance == pytest.approx(found.covariance.mean())


def test_degenerate_sets_say_why():
    score, target, owner = drawn_scores()
    one_class = mean_auc(auc_with_covariance(score, np.zeros((70, 2), dtype=bool), owner), 70, 0.95)
    assert one_class.value is None and one_class.note.startswith("not defined")
    perfect = mean_auc(auc_with_covariance(target[:, None] * 1.0, target[:, None], owner), 70, 0.95)
    fewest = int(min(target.sum(), (~target).sum()))
    assert (perfect.value, perfect.low) == (1.0, pytest.approx(binomtest(fewest, fewest).proportion_ci().low))
    assert perfect.note == f"exact interval from {fewest} patients"
    one_patient = mean_auc(auc_with_covariance(score, np.stack([target] * 2, 1), np.zeros(70, dtype=int)), 70, 0.95)
    assert one_patient.value is not None and one_patient.note == "no interval: one patient only"
    constant = mean_auc(auc_with_covariance(np.zeros((70, 1)), target[:, None], owner), 70, 0.95)
    assert (constant.value, constant.low) == (0.5, None) and constant.note.startswith("no interval")


@pytest.mark.parametrize("images", [1, 5])
def test_interval_holds_near_one_where_the_percentile_bootstrap_fails(images):
    """AUC 0.97, 15 patients with the finding and 60 without; 250 studies: the standard error is 1.4 points."""
    held, failed, separation = 0, 0, np.sqrt(2) * NormalDist().inv_cdf(0.97)
    for seed in range(250):
        random = np.random.default_rng(seed)
        owner = np.repeat(np.arange(75), random.integers(1, images + 1, size=75))
        target = (owner < 15)[:, None]
        between = 0.6 if images > 1 else 0.0
        noise = np.sqrt(between) * random.normal(size=75)[owner] + np.sqrt(1 - between) * random.normal(size=len(owner))
        score = noise[:, None] + separation * target
        one = mean_auc(auc_with_covariance(score, target, owner), len(owner), 0.95)
        held += one.low <= 0.97 <= one.high
        drawn = estimates(ranking_statistic(score, target), owner, bootstrap=100, confidence=0.95, generator=random)
        two = guarded(drawn["auc"])
        failed += two.low is None or not two.low <= 0.97 <= two.high
    assert held / 250 >= 0.92 and failed / 250 > 0.09


@pytest.mark.parametrize(("variance", "clamped"), [(0.0004, False), (0.03, True)])
def test_the_interval_of_six_patients_written_out_and_never_wider_than_wilsons(variance, clamped):
    """Satterthwaite's degrees of freedom from the shares, Student's t on the logit scale, Wilson's as its bounds."""
    shares = np.array([[0.1, -0.2, 0.05, 0.02, -0.07, 0.1]])
    squares = [0.01, 0.04, 0.0025, 0.0004, 0.0049, 0.01]
    freedom = 2 / (sum(one**2 for one in squares) / sum(squares) ** 2 - 1 / 6)
    found = mean_auc(AucWithCovariance(np.array([0.8]), np.array([[variance]]), shares, 3), 9, 0.95)
    half = student.ppf(0.975, freedom) * variance**0.5 / (0.8 * 0.2)
    low, high = (1 / (1 + np.exp(-(np.log(4) + sign * half))) for sign in (-1, 1))
    bounds = [float(side) for side in wilson(0.8, 3, 0.95)]
    assert clamped == (low < bounds[0] and high > bounds[1])
    assert (found.value, found.n) == (pytest.approx(0.8), 9)
    assert (found.low, found.high) == pytest.approx(tuple(bounds) if clamped else (low, high), rel=1e-9)


def test_the_mean_of_three_labels_has_the_variance_of_their_mean():
    covariance = np.array([[0.003, 0.001, -0.0005], [0.001, 0.002, 0.0], [-0.0005, 0.0, 0.004]])
    shares = np.random.default_rng(0).normal(size=(3, 40)) * 0.01
    value, variance, _ = AucWithCovariance(np.array([0.9, 0.8, 0.7]), covariance, shares, 20).combined(
        np.full(3, 1 / 3)
    )
    assert value == pytest.approx(0.8)
    assert variance == pytest.approx((0.003 + 0.002 + 0.004 + 2 * (0.001 - 0.0005 + 0.0)) / 9)


def test_degrees_of_freedom_of_both_sides_are_satterthwaites_written_out():
    """The sides have 3 and 8 degrees of freedom; the patients' shares are equal, so that they set no bound."""
    shares = np.array([[0.01, -0.01] * 10, [0.01, 0.01] * 10])
    sides = ((np.diag([0.004, 0.001]), 3.0), (np.diag([0.002, 0.003]), 8.0))
    found = AucWithCovariance(np.array([0.9, 0.8]), np.diag([0.006, 0.004]), shares, 9, 0, sides)
    for weights, (above, below) in (([1, 0], (0.004, 0.002)), ([0, 1], (0.001, 0.003)), ([1, 1], (0.005, 0.005))):
        _, variance, freedom = found.combined(np.array(weights, float))
        assert variance == pytest.approx(above + below)
        assert freedom == pytest.approx((above + below) ** 2 / (above**2 / 3 + below**2 / 8))


def test_of_several_labels_the_one_with_the_most_uneven_patients_bounds_the_freedom():
    """Positive cases of the second label are of two patients, of 9 and 1 cases; the first's are of ten patients."""
    owner = np.r_[np.arange(10), np.arange(10), [20] * 9, 21, np.arange(30, 40)]
    first = np.r_[np.ones(10), np.zeros(10), np.zeros(20)] > 0
    second = np.r_[np.zeros(20), np.ones(10), np.zeros(10)] > 0
    score = np.random.default_rng(0).normal(size=(40, 2))
    alone = [auc_with_covariance(score[:, [at]], truth[:, None], owner) for at, truth in enumerate((first, second))]
    both = auc_with_covariance(score, np.stack([first, second], 1), owner)
    assert alone[0].sides[0][1] == np.inf and np.isfinite(alone[1].sides[0][1])
    for side in range(2):
        assert both.sides[side][1] == min(one.sides[side][1] for one in alone)


def test_a_difference_has_students_interval_and_p_and_says_why_where_it_has_none():
    score, target, owner = drawn_scores(6, decimals=4)
    found = auc_with_covariance(score, np.stack([target, target], 1), owner)
    weights = np.array([1.0, -1.0])
    value, variance, freedom = found.combined(weights)
    estimate, p = difference_of(found, weights, 70, 0.9)
    half = student.ppf(0.95, freedom) * variance**0.5
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((value, value - half, value + half))
    assert p == pytest.approx(2 * student.sf(abs(value) / variance**0.5, freedom))
    same = auc_with_covariance(score[:, [0, 0]], np.stack([target, target], 1), owner)
    nothing, p = difference_of(same, weights, 70, 0.95)
    assert (nothing.value, nothing.low, p) == (0, None, None)
    assert nothing.note == "no interval: no patient is ranked otherwise"
    alone, p = difference_of(
        auc_with_covariance(score, np.stack([target] * 2, 1), np.zeros(70, int)), weights, 70, 0.95
    )
    assert (alone.low, alone.note, p) == (None, "no interval: one patient only", None)
    undefined, p = difference_of(auc_with_covariance(score, np.zeros((70, 2), bool), owner), weights, 70, 0.95)
    assert (undefined.value, p) == (None, None) and undefined.note.startswith("not defined")


def test_an_auc_of_zero_has_the_exact_interval_of_one_turned_round():
    _, target, owner = drawn_scores()
    one, zero = (
        mean_auc(auc_with_covariance(sign * target[:, None] * 1.0, target[:, None], owner), 70, 0.95)
        for sign in (1, -1)
    )
    assert (one.value, one.high, zero.value, zero.low) == (1, 1, 0, 0)
    assert 1 - zero.high == pytest.approx(one.low) and zero.note == one.note
