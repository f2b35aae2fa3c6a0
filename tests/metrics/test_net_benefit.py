"""Net benefit against its definition, counted out case by case."""

from dataclasses import replace

import numpy as np
import pytest

from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.net_benefit import GRID, decision_curve, net_benefit
from medopt.metrics.thresholds import OperatingPoint

SETTINGS = {"bootstrap": 200, "confidence": 0.95, "seed": 3}


def scored(table, **fields):
    return CalibratedPredictions(
        table, "binary", Calibration("temperature", 0.8), OperatingPoint(0.4, "fixed"), **fields
    )


def counted(probability, truth, threshold):
    """Vickers & Elkin 2006, equation 1."""
    called = probability >= threshold
    true, false = (called & truth).sum(), (called & ~truth).sum()
    return true / len(truth) - false / len(truth) * threshold / (1 - threshold)


def test_curve_is_the_definition_at_every_threshold(drawn):
    one = scored(drawn(200, patients=120, decimals=1))
    found = decision_curve(one, 0, **SETTINGS)
    probability, truth = one.probability[:, 0], one.target[:, 0]
    assert found.value == pytest.approx([counted(probability, truth, cut) for cut in GRID])
    assert found.treat_all == pytest.approx([counted(np.ones(200), truth, cut) for cut in GRID])
    low, value, high = map(np.array, (found.low, found.value, found.high))
    assert (low <= value + 1e-12).all() and (value <= high + 1e-12).all()
    assert found.at_operating_point.value == pytest.approx(counted(probability, truth, 0.4))
    best = max(0, counted(np.ones(200), truth, 0.4))
    assert found.over_all_or_none.value == pytest.approx(found.at_operating_point.value - best)
    assert found.over_all_or_none.low < found.over_all_or_none.value < found.over_all_or_none.high


def test_stated_prevalence_weighs_the_rates(drawn):
    one = scored(drawn(200))
    found = decision_curve(one, 0, **SETTINGS, prevalence=0.1)
    called, truth = one.probability[:, 0] >= 0.3, one.target[:, 0]
    expected = 0.1 * called[truth].mean() - 0.9 * called[~truth].mean() * 0.3 / 0.7
    assert found.value[29] == pytest.approx(expected) and found.prevalence == 0.1
    own = decision_curve(one, 0, **SETTINGS, prevalence=float(truth.mean()))
    assert own.value == pytest.approx(decision_curve(one, 0, **SETTINGS).value)


def test_a_worked_example():
    """1000 patients, prevalence 20 %, sensitivity 0.9, false positive rate 0.3, t = 0.1: 180/1000 - 240/1000/9."""
    assert net_benefit(0.9, 0.3, 0.1, 0.2) == pytest.approx(0.18 - 0.24 / 9)


def test_groups_of_many_cases_count_the_same(drawn, monkeypatch):
    one = scored(drawn(600, patients=300))
    alone = decision_curve(one, 0, **SETTINGS)
    monkeypatch.setattr("medopt.metrics.bootstrap.LARGE", 100)
    grouped = decision_curve(one, 0, **SETTINGS)
    assert grouped.value == pytest.approx(alone.value)
    width, expected = (np.subtract(one.high, one.low)[:60] for one in (grouped, alone))
    assert width == pytest.approx(expected, rel=0.4)


def test_one_class_has_no_curve(drawn):
    table = drawn(30)
    assert decision_curve(scored(replace(table, labels=np.ones(30, dtype=np.int64))), 0, **SETTINGS) is None
