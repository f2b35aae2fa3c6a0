"""All figures of one model on one set of cases, and the same for each site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medopt.config import Task
from medopt.evaluation.bootstrap import estimates, exact_proportion, guarded
from medopt.evaluation.calibration import expected_calibration_error
from medopt.evaluation.metrics import Statistic, brier_statistic, decision_statistic, ranking_statistic, together
from medopt.evaluation.scored import Scored
from medopt.evaluation.thresholds import OperatingPoint
from medopt.records import Estimate, Predictions

METRICS = (
    *("auc", "average_precision", "accuracy", "sensitivity", "specificity"),
    *("ppv", "npv", "f1", "brier", "ece"),
)


def evaluate(
    predictions: Predictions,
    temperature: float,
    operating_point: OperatingPoint,
    task: Task,
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, Estimate]:
    """Every figure of METRICS for one model, with its patient-cluster bootstrap interval.

    Temperature and operating point are those fitted on validation. A figure that is not defined has value None and
    a note that says why; an empty set has no figure.
    """
    cases = len(predictions)
    if cases == 0:
        return {name: Estimate(None, None, None, 0, "no cases") for name in METRICS}
    scored = Scored(by_falling_score(predictions), task, temperature, operating_point)
    found = estimates(
        statistic_of(scored),
        scored.predictions.patient_id,
        bootstrap=bootstrap,
        confidence=confidence,
        generator=np.random.default_rng(seed),
    )
    error = expected_calibration_error(scored.probability, scored.predictions.labels, task)
    note = "no interval: resampling adds to a binned error, so its draws lie above the value"
    found = {name: guarded(one) for name, one in found.items()}
    if task == "binary":
        for name, share in _shares(scored).items():
            patients = len(np.unique(scored.predictions.patient_id[share]))
            found[name] = exact_proportion(found[name], patients, confidence)
        found["auc"] = exact_proportion(found["auc"], _fewest_patients(scored), confidence)
    return found | {"ece": Estimate(error, None, None, cases, note)}


def statistic_of(scored: Scored) -> Statistic:
    """All figures of one model that the bootstrap can draw: METRICS without ece."""
    exclusive = scored.task == "multiclass"
    return together(
        ranking_statistic(scored.score, scored.target),
        decision_statistic(scored.decided, scored.target, exclusive=exclusive),
        brier_statistic(scored.probability, scored.target, exclusive=exclusive),
    )


def _shares(scored: Scored) -> dict[str, NDArray[np.bool_]]:
    """Which cases (N,) each proportion of a binary study is a share of."""
    target, decided = scored.target[:, 0], scored.decided[:, 0]
    every = np.ones_like(target)
    return {"accuracy": every, "sensitivity": target, "specificity": ~target, "ppv": decided, "npv": ~decided}


def _fewest_patients(scored: Scored) -> int:
    """Patients of the smaller class.

    A perfect AUC says that each of them lies beyond all of the other class seen. The share of such patients has an
    exact interval, and the AUC against these others is at least that share: a cautious bound.
    """
    target, patients = scored.target[:, 0], scored.predictions.patient_id
    return min(len(np.unique(patients[target])), len(np.unique(patients[~target])))


def by_falling_score(predictions: Predictions) -> Predictions:
    """The same cases with the highest first logit on top, which spares a binary study's every draw the sorting."""
    return predictions.where(np.argsort(-predictions.logits[:, 0], kind="stable"))


def by_site(
    predictions: Predictions,
    temperature: float,
    operating_point: OperatingPoint,
    task: Task,
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """`evaluate` for the cases of each site, sites in alphabetical order."""
    return {
        str(site): evaluate(
            predictions.where(predictions.site == site),
            temperature,
            operating_point,
            task,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
        )
        for site in np.unique(predictions.site)
    }
