"""All results of one model on one set of cases: what `metrics.json` and `medopt evaluate` hold of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from medopt.config import Evaluation
from medopt.core.errors import MedoptError
from medopt.core.records import NotDefined, Predictions, Task, has_one_output
from medopt.evaluation.patients import by_patient
from medopt.evaluation.run_metrics import CalibrationErrors, CalibrationResult, ModelResult, PatientResult
from medopt.evaluation.subgroups import subgroup_figures
from medopt.evaluation.validation_fit import fit_on
from medopt.metrics.bootstrap import Resampling
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.metrics.calibration_error import adaptive_calibration_error, expected_calibration_error
from medopt.metrics.estimates import all_figures
from medopt.metrics.figures import Figures
from medopt.metrics.grade_figures import GradeFigures, grade_figures
from medopt.metrics.net_benefit import decision_curve
from medopt.metrics.number_figures import NumberFigures, number_figures
from medopt.metrics.selective import coverage_risk


def output_names(task: Task, labels: Sequence[str]) -> Sequence[str]:
    """What each output answers: of a binary study only the finding, the second label."""
    return labels[1:] if has_one_output(task) else labels


def resampling(settings: Evaluation, seed: int) -> Resampling:
    """How a study draws patients."""
    return Resampling(bootstrap=settings.bootstrap, confidence=settings.confidence, seed=seed)


def evaluate_model(
    scored: CalibratedPredictions, labels: Sequence[str], settings: Evaluation, seed: int
) -> ModelResult:
    """All results of one model on the cases given, as the study's `evaluation` section asks for them."""
    options = resampling(settings, seed)
    curves = {
        name: decision_curve(scored, output, **options, prevalence=settings.prevalence)
        for output, name in enumerate(output_names(scored.task, labels))
    }
    return ModelResult(
        figures=figures_of(scored, settings, seed),
        calibration=calibration_result(scored),
        net_benefit={name: curve or NotDefined("one class only") for name, curve in curves.items()},
        selective=coverage_risk(scored, **options) or NotDefined("no cases"),
        subgroups=subgroup_figures(scored, smallest=settings.smallest_group, **options),
        number=numbers_result(scored, options),
        grades=grades_result(scored, options),
    )


def numbers_result(scored: CalibratedPredictions, how: Resampling) -> NumberFigures | None:
    """Figures of the number of a regression study; None of another one, and where there are no cases."""
    numbers = scored.numbers
    if numbers is None or scored.scale is None or len(numbers[0]) == 0:
        return None
    return number_figures(*numbers, scored.patients, scored.inside, scored.scale.unit, how)


def grades_result(scored: CalibratedPredictions, how: Resampling) -> GradeFigures | None:
    """Figures of the grades of an ordinal study; None of another one, and where there are no cases."""
    if scored.task != "ordinal" or len(scored.predictions) == 0:
        return None
    decided = scored.operating_point.decide(scored.probability)
    return grade_figures(decided, scored.predictions.labels, scored.patients, how)


def figures_of(scored: CalibratedPredictions, settings: Evaluation, seed: int) -> Figures:
    """The figures alone."""
    return all_figures(scored, **resampling(settings, seed), prevalence=settings.prevalence)


def calibration_result(scored: CalibratedPredictions) -> CalibrationResult:
    """A model's calibration, and its errors on these cases before and after."""
    return CalibrationResult(
        **asdict(scored.calibration),
        before=_errors(replace(scored, calibration=UNCALIBRATED)),
        after=_errors(scored),
    )


def _errors(scored: CalibratedPredictions) -> CalibrationErrors | None:
    if len(scored.predictions) == 0:
        return None
    arguments = (scored.probability, scored.predictions.labels, scored.task)
    ece, ace = expected_calibration_error(*arguments), adaptive_calibration_error(*arguments)
    return None if np.isnan(ece) else CalibrationErrors(ece=ece, ace=ace)


def patient_result(
    table: Predictions, settings: Evaluation, task: Task, seed: int, shift: Sequence[float] = ()
) -> PatientResult:
    """The test figures of patients instead of images: calibrated and decided anew on the validation split's patients.

    A note stands instead where each patient has one image, or where a patient's images have no common answer.
    """
    splits = [table.of_split(split) for split in ("val", "test")]
    if all(len(np.unique(part.patient_id)) == len(part) for part in splits):
        return PatientResult(note="every patient has one image")
    try:
        validation, test = (by_patient(part, task, settings.aggregate) for part in splits)
        fitted = fit_on(validation, settings, task, shift=shift)
    except MedoptError as error:
        return PatientResult(note=str(error))
    return PatientResult(
        aggregate=f"{settings.aggregate} of the logits of a patient's images",
        operating_point=fitted.operating_point,
        test=figures_of(replace(fitted, predictions=test), settings, seed),
    )
