"""The whole account of one model on one set of cases: what `metrics.json` and `medopt evaluate` hold of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medopt.config import Evaluation
from medopt.core.errors import MedoptError
from medopt.core.records import Estimate, Predictions, Task
from medopt.evaluation.estimates import evaluate
from medopt.evaluation.patients import by_patient
from medopt.evaluation.subgroups import subgroup_figures
from medopt.evaluation.validation_fit import fit_on
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.metrics.calibration_error import adaptive_calibration_error, expected_calibration_error
from medopt.metrics.net_benefit import decision_curve
from medopt.metrics.selective import coverage_risk


def as_dict(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    """Estimates as JSON."""
    return {name: one.as_dict() for name, one in figures.items()}


def output_names(task: str, labels: Sequence[str]) -> Sequence[str]:
    """What each output answers: of a binary study only the finding, the second label."""
    return labels[1:] if task == "binary" else labels


def resampling(wanted: Evaluation, seed: int) -> dict[str, Any]:
    """How everything that is resampled is resampled."""
    return {"bootstrap": wanted.bootstrap, "confidence": wanted.confidence, "seed": seed}


def figures_of(scored: CalibratedPredictions, wanted: Evaluation, seed: int) -> dict[str, Any]:
    """All figures of `evaluate`, as JSON."""
    return as_dict(evaluate(scored, **resampling(wanted, seed), prevalence=wanted.prevalence))


def calibration_told(scored: CalibratedPredictions) -> dict[str, Any]:
    """A model's calibration, and its errors on these cases before and after."""
    return scored.calibration.as_dict() | {
        "before": _errors(replace(scored, calibration=UNCALIBRATED)),
        "after": _errors(scored),
    }


def _errors(scored: CalibratedPredictions) -> dict[str, float] | None:
    if len(scored.predictions) == 0:
        return None
    answers = (scored.probability, scored.predictions.labels, scored.task)
    return {"ece": expected_calibration_error(*answers), "ace": adaptive_calibration_error(*answers)}


def beyond_figures(
    scored: CalibratedPredictions, labels: Sequence[str], wanted: Evaluation, seed: int
) -> dict[str, Any]:
    """Net benefit by output, coverage against risk, and subgroups."""
    options = resampling(wanted, seed)
    curves = {
        name: decision_curve(scored, output, **options, prevalence=wanted.prevalence)
        for output, name in enumerate(output_names(scored.task, labels))
    }
    risk = coverage_risk(scored, **options)
    return {
        "net_benefit": {
            name: {"note": "one class only"} if curve is None else curve.as_dict() for name, curve in curves.items()
        },
        "selective": {"note": "no cases"} if risk is None else risk.as_dict(),
        "subgroups": subgroup_figures(scored, smallest=wanted.smallest_group, **options),
    }


def patients_told(table: Predictions, wanted: Evaluation, task: Task, seed: int) -> dict[str, Any]:
    """The test figures of patients instead of images: calibrated and decided anew on the validation split's patients.

    A note stands instead where each patient has one image, or has no one answer.
    """
    splits = [table.of_split(split) for split in ("val", "test")]
    if all(len(np.unique(part.patient_id)) == len(part) for part in splits):
        return {"note": "every patient has one image"}
    try:
        validation, test = (by_patient(part, task, wanted.aggregate) for part in splits)
        fitted = fit_on(validation, wanted, task)
    except MedoptError as error:
        return {"note": str(error)}
    told: dict[str, Any] = {"aggregate": f"{wanted.aggregate} of the logits of a patient's images"}
    told |= {"operating_point": fitted.operating_point.as_dict()}
    return told | {"test": figures_of(replace(fitted, predictions=test), wanted, seed)}
