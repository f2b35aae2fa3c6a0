"""What validation decides of a model before its test cases are looked at: calibration and operating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medopt.config import Evaluation
from medopt.config.evaluation import Guarantee
from medopt.core.errors import DataError
from medopt.core.number_scale import NumberScale
from medopt.core.records import Predictions, Task, is_exclusive
from medopt.manifest.stratified_draw import draw_parts, group_by_patient
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import fit_calibration
from medopt.metrics.conformal import fit_sets
from medopt.metrics.numbers import Margin, conformal_margin
from medopt.metrics.thresholds import MEDIAN, OperatingPoint, choose_threshold, with_band, with_sets
from medopt.metrics.weighted import Index

PARTS = 4


@dataclass(frozen=True, slots=True)
class CrossFittedDecisions:
    """Cases as a model answers them: probabilities (N, K), and decisions (N,) or, of several labels, (N, K)."""

    case_id: NDArray[np.str_]
    patients: Index
    probability: NDArray[np.float64]
    decision: NDArray[np.int64] | NDArray[np.bool_]


def parts_of(validation: Predictions, task: Task, seed: int) -> NDArray[np.int64]:
    """Which of PARTS parts (N,) each case belongs to: by patient, each class in each.

    Fewer parts where a class has fewer patients, or where they cannot be dealt out so; one where nothing can be left
    out.
    """
    truth = CalibratedPredictions(validation, task).truth
    classes = truth == 1 if is_exclusive(task) else np.concatenate([truth == 1, truth == 0], axis=1)
    classes = classes[:, classes.any(axis=0)]
    groups = group_by_patient(validation.patient_id, classes, validation.site)
    for count in range(min(PARTS, int(groups.has.sum(axis=0).min())), 1, -1):
        try:
            return draw_parts(groups, [1] * count, seed, [""] * classes.shape[1])[groups.row]
        except DataError:  # patients with several classes stand in the way of so many parts
            continue
    return np.zeros(len(validation), np.int64)


def read_crossed(
    validation: Predictions, settings: Evaluation, task: Task, parts: NDArray[np.int64], shift: Sequence[float] = ()
) -> CrossFittedDecisions:
    """Each case read with a calibration and an operating point that the other parts gave; `shift` as in `fit_on`.

    So the cases judge what was fitted without them. With one part only they judge what they were fitted to.
    """
    probability, decision, patients = None, None, CalibratedPredictions(validation, task).patients
    for part in np.unique(parts):
        here = parts == part
        rest = here if here.all() else ~here
        fitted = fit_on(validation.where(rest), settings, task, enough=True, shift=shift)
        read = replace(fitted, predictions=validation.where(here))
        decided = read.operating_point.decide(read.probability)
        if probability is None or decision is None:
            probability = np.empty((len(validation), read.probability.shape[1]))
            decision = np.empty((len(validation), *decided.shape[1:]), decided.dtype)
        probability[here], decision[here] = read.probability, decided
    assert probability is not None and decision is not None  # there is a case
    return CrossFittedDecisions(validation.case_id, patients, probability, decision)


def margin_of(validation: Predictions, scale: NumberScale, coverage: float) -> Margin:
    """How far a number may be from the truth, by the errors on the validation cases of a regression study."""
    assert validation.numbers is not None
    errors = np.abs(validation.logits[:, 0] - scale.outputs(validation.numbers))
    return conformal_margin(errors, validation.patient_id, coverage)


def fit_on(
    validation: Predictions, settings: Evaluation, task: Task, *, enough: bool = False, shift: Sequence[float] = ()
) -> CalibratedPredictions:
    """The validation cases with the calibration and the operating point that they give.

    `shift` (K,) is what training is known to have added to the logits (`medopt.training.prior_shift`). Raises
    ConfigError where isotonic calibration is asked of too few cases, unless `enough` says that they are.
    """
    logits, labels = validation.logits, validation.labels
    calibration = fit_calibration(logits, labels, task, settings.calibration, enough=enough, shift=shift)
    probability = calibration.probabilities(validation.logits, task)
    point = choose_threshold(
        probability,
        validation.labels,
        settings.operating_point,
        settings.target,
        cost=settings.cost,
        prevalence=settings.prevalence,
    )
    if task == "ordinal":
        point = OperatingPoint(None, MEDIAN)
    fitted = CalibratedPredictions(validation, task, calibration)
    if isinstance(settings.abstain, Guarantee):
        sets = fit_sets(probability, fitted.truth, fitted.patients, settings.abstain.coverage, task)
        return replace(fitted, operating_point=with_sets(point, sets))
    return replace(fitted, operating_point=with_band(point, probability, settings.abstain))
