"""The bootstrap resamples patients, its intervals cover, and what it cannot say it does not say."""

from statistics import NormalDist

import numpy as np
import pytest

from medopt.core.records import Estimate
from medopt.metrics import bootstrap as module
from medopt.metrics.bootstrap import estimates, guarded, patient_draws
from medopt.metrics.weighted import auc, ranking_statistic

SETTINGS = {"bootstrap": 400, "confidence": 0.95}


def generator(seed=0):
    return np.random.default_rng(seed)


def test_a_patient_is_drawn_with_all_cases_or_with_none(drawn):
    predictions = drawn(200, patients=40)
    weights = np.concatenate(list(patient_draws(predictions.patient_id, 500, generator())))
    assert weights.shape == (500, 200)
    patients = np.unique(predictions.patient_id)
    first = [np.flatnonzero(predictions.patient_id == patient) for patient in patients]
    assert all((weights[:, rows] == weights[:, rows[:1]]).all() for rows in first)
    assert (sum(weights[:, rows[0]] for rows in first) == len(patients)).all()
    assert weights.mean() == pytest.approx(1, abs=0.02)
    # A patient's count is binomial (n, 1/n): its variance is 1 - 1/n.
    assert weights[:, [rows[0] for rows in first]].var() == pytest.approx(1 - 1 / len(patients), abs=0.03)


@pytest.mark.parametrize("patients", [None, 30])
def test_draws_do_not_depend_on_how_many_are_made_at_a_time(drawn, monkeypatch, patients):
    names = drawn(60, patients=patients).patient_id
    whole = np.concatenate(list(patient_draws(names, 50, generator(5))))
    monkeypatch.setattr(module, "CHUNK", 7 * 60)
    parts = list(patient_draws(names, 50, generator(5)))
    assert [len(part) for part in parts] == [7] * 7 + [1]
    assert np.array_equal(np.concatenate(parts), whole)


def simulated_coverage(by_patient: bool, studies: int = 400) -> float:
    """Share of simulated studies whose 95 % interval holds the true AUC; images of a patient are much alike."""
    separation, covered = 1.2, 0
    truth = NormalDist().cdf(separation / np.sqrt(2))
    for seed in range(studies):
        draw = generator(seed)
        images = draw.integers(1, 6, size=60)
        owner = np.repeat(np.arange(60), images)
        sick = np.arange(60) % 2 == 0
        score = (separation * sick + 0.8 * draw.normal(size=60))[owner] + 0.6 * draw.normal(size=len(owner))
        statistic = ranking_statistic(score[:, None], sick[owner][:, None])
        names = owner if by_patient else np.arange(len(owner))
        area = estimates(statistic, names.astype(str), bootstrap=300, confidence=0.95, generator=draw)["auc"]
        covered += area.low <= truth <= area.high
    return covered / studies


def test_intervals_cover_when_patients_are_drawn_and_fail_when_images_are():
    """The standard error of a coverage near 95 % over 400 studies is 1.1 points."""
    assert 0.92 <= simulated_coverage(by_patient=True) <= 0.975
    assert simulated_coverage(by_patient=False) < 0.88


def test_interval_is_that_of_the_plain_resampling(drawn):
    """Against a bootstrap written the slow way, with repeated rows instead of weights."""
    predictions = drawn(80, patients=50, decimals=1)
    target = predictions.labels[:, None] == 1
    found = estimates(
        ranking_statistic(predictions.logits, target), predictions.patient_id, **SETTINGS, generator=generator(3)
    )
    names, draw, areas = np.unique(predictions.patient_id), generator(3), []
    for _ in range(400):
        rows = np.concatenate(
            [np.flatnonzero(predictions.patient_id == names[one]) for one in draw.integers(len(names), size=len(names))]
        )
        areas.append(auc(predictions.logits[rows], target[rows])[0])
    assert (found["auc"].low, found["auc"].high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=1e-12)


def test_one_class_gives_no_value_and_says_why(drawn):
    predictions = drawn(30)
    alike = np.ones((30, 1), dtype=bool)
    found = estimates(
        ranking_statistic(predictions.logits, alike), predictions.patient_id, **SETTINGS, generator=generator()
    )
    assert found["auc"] == Estimate(None, None, None, 30, "not defined: a class or a decision is missing")


def test_one_patient_gives_a_value_without_interval(drawn):
    predictions = drawn(30, patients=1)
    statistic = ranking_statistic(predictions.logits, predictions.labels[:, None] == 1)
    found = estimates(statistic, predictions.patient_id, **SETTINGS, generator=generator())["auc"]
    assert found.value is not None
    assert (found.low, found.high, found.note) == (None, None, "no interval: one patient only")


def test_draws_that_miss_a_class_are_left_out_and_counted(drawn):
    predictions = drawn(12)
    target = np.zeros((12, 1), dtype=bool)
    target[:2] = True
    statistic = ranking_statistic(predictions.logits, target)
    found = estimates(statistic, predictions.patient_id, **SETTINGS, generator=generator())["auc"]
    missed = sum(
        int((part[:, :2].sum(axis=1) == 0).sum()) for part in patient_draws(predictions.patient_id, 400, generator())
    )
    assert missed > 0
    assert found.low is not None and np.isfinite([found.low, found.high]).all()
    assert found.note == f"{missed} of 400 draws do not define it and were left out"


def test_an_interval_needs_half_of_the_draws(drawn):
    predictions = drawn(2)
    statistic = ranking_statistic(predictions.logits, np.array([[True], [False]]))
    found = estimates(statistic, predictions.patient_id, bootstrap=401, confidence=0.95, generator=generator())["auc"]
    assert found.value in (0.0, 1.0)
    assert found.low is found.high is None
    assert "of 401 draws do not define it" in found.note


def test_a_perfect_figure_gets_no_interval_of_no_width():
    assert guarded(Estimate(1.0, 1.0, 1.0, 20)).low is None
    assert guarded(Estimate(0.9, 0.8, 1.0, 20)) == Estimate(0.9, 0.8, 1.0, 20)
    assert guarded(Estimate(None, None, None, 20, "why")).note == "why"
