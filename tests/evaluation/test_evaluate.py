"""The whole account of a model: JSON without NaN, whatever the cases are."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medopt.config import Evaluation
from medopt.evaluation.evaluate import calibration_result, evaluate_model, patient_result
from medopt.evaluation.run_metrics import ModelResult, PatientResult
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.net_benefit import DecisionCurve
from medopt.metrics.thresholds import OperatingPoint

WANTED = Evaluation(bootstrap=100, prevalence=0.1)


def degenerate(drawn):
    both = drawn(40)
    yield both.where(np.arange(40) < 0)
    yield both.where(np.arange(40) == 0)
    yield drawn(40, patients=1)
    yield drawn(40, patients=5)
    yield replace(both, labels=np.ones(40, dtype=np.int64))
    yield replace(both, logits=np.zeros((40, 1)))
    yield replace(both, logits=(2.0 * both.labels - 1)[:, None] * 50)
    yield replace(both, site=both.case_id)


def test_no_set_of_cases_gives_nan(drawn):
    for number, table in enumerate(degenerate(drawn)):
        one = CalibratedPredictions(table, "binary", operating_point=OperatingPoint(0.5, "fixed", band=(0.4, 0.6)))
        result = evaluate_model(one, ["no", "yes"], WANTED, 0)
        text = json.dumps(result.json_values(), allow_nan=False)
        assert ModelResult.model_validate_json(text) == result, number


def test_calibration_is_told_with_its_errors_before_and_after(drawn):
    table = drawn(200)
    warm = calibration_result(CalibratedPredictions(table, "binary", Calibration("temperature", 3.0)))
    plain = calibration_result(CalibratedPredictions(table, "binary"))
    assert warm.before == plain.after != warm.after
    assert warm.calibration == Calibration("temperature", 3.0)


def test_patients_are_fitted_and_scored_as_patients(drawn):
    table = drawn(200)
    images = replace(
        table,
        patient_id=np.array([f"p{row // 2:03d}" for row in range(200)]),
        split=np.where(np.arange(200) < 100, "val", "test"),
    )
    result = patient_result(images, WANTED, "binary", 0)
    assert result.aggregate == "mean of the logits of a patient's images"
    assert result.test is not None and result.test.auc.n == 50
    alone = replace(images, patient_id=images.case_id)
    assert patient_result(alone, WANTED, "binary", 0) == PatientResult(note="every patient has one image")


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 3), ("multilabel", 2)])
def test_every_output_has_a_net_benefit(drawn, task, outputs):
    point = OperatingPoint(None, "argmax") if task == "multiclass" else OperatingPoint((0.5, 0.4), "fixed")
    names = ["a", "b", "c"][:outputs]
    result = evaluate_model(
        CalibratedPredictions(drawn(90, outputs, task=task), task, operating_point=point),
        names,
        Evaluation(bootstrap=100),
        0,
    )
    assert list(result.net_benefit) == names
    first = result.net_benefit["a"]
    assert isinstance(first, DecisionCurve) and (first.at_operating_point is None) == (task == "multiclass")
    assert json.dumps(result.json_values(), allow_nan=False)
