"""What validation decides of a model before its test cases are looked at: calibration and operating point."""

from __future__ import annotations

from medopt.config import Evaluation, Task
from medopt.evaluation.calibrated import fit_calibration
from medopt.evaluation.scored import Scored
from medopt.evaluation.thresholds import choose_threshold, with_band
from medopt.records import Predictions


def fit_on(validation: Predictions, wanted: Evaluation, task: Task) -> Scored:
    """The validation cases with the calibration and the operating point that they give.

    Raises ConfigError where isotonic calibration is asked of too few cases.
    """
    calibration = fit_calibration(validation.logits, validation.labels, task, wanted.calibration)
    probability = calibration.probabilities(validation.logits, task)
    point = choose_threshold(
        probability,
        validation.labels,
        wanted.operating_point,
        wanted.target,
        cost=wanted.cost,
        prevalence=wanted.prevalence,
    )
    return Scored(validation, task, calibration, with_band(point, probability, wanted.abstain))
