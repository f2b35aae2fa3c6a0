"""Coverage and risk, counted out, and the band that validation chooses."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter

from medopt.config import Evaluation
from medopt.evaluation.validation_fit import fit_on
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.selective import GRID, coverage_risk
from medopt.metrics.thresholds import OperatingPoint, with_band

SETTINGS = {"bootstrap": 200, "confidence": 0.95, "seed": 3}


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 3), ("multilabel", 2)])
def test_curve_and_area_are_counted_out(drawn, task, outputs):
    fitted = fit_on(drawn(150, outputs, task=task), Evaluation(), task)
    found = coverage_risk(fitted, **SETTINGS)
    sure = fitted.operating_point.confidence(fitted.probability)
    wrong = fitted.wrong[np.argsort(-sure, kind="stable")]
    running = wrong.cumsum() / np.arange(1, 151)
    assert found.aurc.value == pytest.approx(running.mean())
    assert found.curve.risk == pytest.approx([running[int(np.ceil(share * 150 - 1e-9)) - 1] for share in GRID])
    assert found.aurc.low < found.aurc.value < found.aurc.high and found.band is None
    json.dumps(asdict(found), allow_nan=False)


def test_equally_sure_cases_are_decided_together(drawn):
    table = drawn(40, decimals=0)
    one = CalibratedPredictions(table, "binary", operating_point=OperatingPoint(0.5, "fixed"))
    shuffled = one.where(np.random.default_rng(0).permutation(40))
    assert coverage_risk(one, **SETTINGS).aurc.value == pytest.approx(coverage_risk(shuffled, **SETTINGS).aurc.value)


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 3)])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_band_leaves_no_more_undecided_than_it_may(drawn, task, outputs, share):
    validation = fit_on(drawn(200, outputs, task=task), Evaluation(abstain=share), task)
    left = validation.undecided
    assert 0 < left.sum() <= share * 200
    assert left.sum() == int(share * 200)  # no ties here
    sure = validation.operating_point.confidence(validation.probability)
    assert sure[left].max() < sure[~left].min()
    test = CalibratedPredictions(
        drawn(300, outputs, seed=9, task=task), task, validation.calibration, validation.operating_point
    )
    band = coverage_risk(test, **SETTINGS).band
    decided = ~test.undecided
    assert band.coverage.value == decided.mean() and band.risk.value == test.wrong[decided].mean()
    assert band.risk.value < test.wrong.mean()
    assert (band.sensitivity is not None) == (task == "binary")


def test_band_lies_around_the_threshold_and_is_read_back():
    probability = np.array([[0.1], [0.35], [0.45], [0.6], [0.9]])
    point = with_band(OperatingPoint(0.5, "youden"), probability, 0.4)
    assert point.undecided(probability).tolist() == [False, False, True, True, False]
    assert point.band[0] < 0.45 and point.band[0] == pytest.approx(1 - point.band[1])
    record = TypeAdapter(OperatingPoint)
    assert record.validate_json(record.dump_json(point)) == point


def test_ties_that_do_not_fit_are_all_decided():
    probability = np.array([[0.45]] * 3 + [[0.9]] * 7)
    point = with_band(OperatingPoint(0.5, "youden"), probability, 0.2)
    assert point.band is None and point.note == "no band: fewer than one of 10 validation cases may be left undecided"
    assert with_band(OperatingPoint(0.5, "youden"), probability, 0.3).undecided(probability).sum() == 3
    assert with_band(point, probability, 0) == point
