"""Expected figures against counts written out by hand, and their intervals against simulated service."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medopt.core.records import Estimate
from medopt.metrics.label_free import RATES, Answers, apart, estimate_figures, expected_figures


def test_counts_are_sums_of_probabilities() -> None:
    found = expected_figures(Answers(np.array([0.9, 0.6, 0.3, 0.1]), np.array([True, True, False, False])))
    true, false, missed, cleared = 0.9 + 0.6, 0.1 + 0.4, 0.3 + 0.1, 0.7 + 0.9
    assert found["sensitivity"] == pytest.approx(true / (true + missed))
    assert found["specificity"] == pytest.approx(cleared / (cleared + false))
    assert found["ppv"] == pytest.approx(true / 2) and found["npv"] == pytest.approx(cleared / 2)
    assert found["accuracy"] == pytest.approx((true + cleared) / 4)
    assert found["prevalence"] == pytest.approx((true + missed) / 4)


def test_the_expected_auc_is_that_of_the_expected_counts_at_every_threshold() -> None:
    """As NannyML has it: a trapezoid over the thresholds, each with the counts that the probabilities expect."""
    p = np.array([0.9, 0.8, 0.8, 0.35, 0.2, 0.05])
    rates = [(0.0, 0.0)]
    for threshold in sorted(set(p.tolist()), reverse=True):
        called = p >= threshold
        rates.append(((1 - p)[called].sum() / (1 - p).sum(), p[called].sum() / p.sum()))
    false, true = np.array(rates).T
    assert expected_figures(Answers(p, p > 0.5))["auc"] == pytest.approx(np.trapezoid(true, false))


def test_known_truth_gives_the_true_figures() -> None:
    random = np.random.default_rng(0)
    p = random.random(60)
    y = (random.random(60) < p).astype(float)
    found = expected_figures(Answers(p, p > 0.4), y)
    assert found["auc"] == pytest.approx(roc_auc_score(y, p))
    assert found["sensitivity"] == pytest.approx((p > 0.4)[y == 1].mean())


def served(seed: int, moved: float) -> tuple[Answers, np.ndarray]:
    """A score calibrated on 150 cases, and 300 other ones whose score is moved: the same meaning, another mixture."""
    random = np.random.default_rng(seed)
    before = random.normal(0, 1.5, 150)
    model = LogisticRegression(C=1e6).fit(before[:, None], random.random(150) < expit(before - 1))
    now = random.normal(moved, 1.5, 300)
    probability = model.predict_proba(now[:, None])[:, 1]
    return Answers(probability, probability >= 0.4), (random.random(300) < expit(now - 1)).astype(float)


@pytest.mark.parametrize("moved", [0.0, 0.7])
def test_the_true_figures_lie_in_the_interval_also_where_other_patients_come(moved: float) -> None:
    inside: dict[str, list[bool]] = {name: [] for name in RATES}
    for seed in range(30):
        answers, truth = served(seed, moved)
        estimated = estimate_figures(answers, 150, seed=seed, draws=120)
        for name, value in expected_figures(answers, truth).items():
            low, high = estimated[name].low, estimated[name].high
            assert low is not None and high is not None
            inside[name].append(low <= value <= high)
    assert all(np.mean(each) >= 0.8 for each in inside.values()), {k: np.mean(v) for k, v in inside.items()}


def test_fewer_cases_for_the_calibration_widen_the_interval() -> None:
    answers, _ = served(0, 0.0)
    wide, narrow = (estimate_figures(answers, count, draws=200)["sensitivity"] for count in (40, 4000))
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_nobody_called_positive_has_no_predictive_value() -> None:
    found = estimate_figures(Answers(np.full(20, 0.1), np.zeros(20, bool)), 100, draws=50)
    assert found["ppv"].value is None and found["sensitivity"].value == 0
    with pytest.raises(ValueError, match="no answered case"):
        estimate_figures(Answers(np.empty(0), np.empty(0, bool)), 100)


def test_what_does_not_meet_is_named() -> None:
    low, high = Estimate(0.5, 0.4, 0.6, 9), Estimate(0.8, 0.7, 0.9, 9)
    assert apart({"auc": low, "ppv": low}, {"auc": high, "ppv": low}) == ["auc"]
    assert apart({"auc": Estimate(None, None, None, 0)}, {"auc": high}) == []


def test_labels_that_arrived_replace_what_was_expected_of_their_cases() -> None:
    random = np.random.default_rng(3)
    p, called = random.random(80), random.random(80) > 0.5
    y = (random.random(80) < p).astype(float)
    some = np.where(np.arange(80) < 30, y, np.nan)
    found = expected_figures(Answers(p, called, truth=some))
    mixed = np.where(np.arange(80) < 30, y, p)
    assert found == expected_figures(Answers(p, called), mixed)
    assert expected_figures(Answers(p, called, truth=y)) == expected_figures(Answers(p, called), y)
    widths = [  # a calibration on five cases says little, and nothing depends on it where every label is there
        (one := estimate_figures(Answers(p, called, truth=truth), 5, draws=300)["prevalence"]).high - one.low
        for truth in (None, some, y)
    ]
    assert widths[0] > widths[1] > widths[2]


def test_patients_who_are_one_case_each_change_nothing_in_whatever_order() -> None:
    answers, _ = served(0, 0.0)
    alone = Answers(answers.probability, answers.called, np.arange(300)[::-1].copy())
    one, other = (estimate_figures(each, 150, draws=400) for each in (answers, alone))
    assert other["ppv"].value == one["ppv"].value
    assert other["ppv"].low == pytest.approx(one["ppv"].low, abs=0.02)


def several_studies(seed: int) -> tuple[Answers, np.ndarray]:
    """60 patients with five studies each, who are ill each time or never; the score of a patient is alike each time."""
    random = np.random.default_rng(seed)
    score = np.repeat(random.normal(0, 1.5, 60), 5)
    probability, patients = expit(score), np.repeat(np.arange(60), 5)
    ill = np.repeat(random.random(60), 5) < probability
    return Answers(probability, probability >= 0.5, patients), ill.astype(float)


def test_several_studies_of_a_patient_are_not_several_witnesses() -> None:
    """With patients, 95 % intervals hold the true figure; without them they are far too narrow."""
    inside = {True: 0, False: 0}
    for seed in range(60):
        answers, truth = several_studies(seed)
        true = expected_figures(answers, truth)
        for knows in inside:
            given = answers if knows else Answers(answers.probability, answers.called)
            one = estimate_figures(given, 100_000, seed=seed, draws=150)["ppv"]
            inside[knows] += bool(one.low <= true["ppv"] <= one.high)
    assert inside[True] >= 54, inside  # of 60 the binomial's 1 % point of 95 %
    assert inside[False] <= 45, inside
