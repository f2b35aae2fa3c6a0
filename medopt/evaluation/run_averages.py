"""Several runs of one question, told together: the mean over seeds or folds with its interval, and how far they differ.

The interval is that of the mean: the same resampled patients are scored by every member, so it covers the choice of
patients. What another seed would change is said beside it, as the members' spread, and never mixed into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import Predictions, Task, is_exclusive
from medopt.evaluation.group_metrics import FigureSpread, PooledFigures
from medopt.metrics.bootstrap import estimates, guarded
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.estimates import statistic_of
from medopt.metrics.weighted import Floats, Weights, brier_statistic, ranking_statistic, together


def mean_figures(
    members: Sequence[CalibratedPredictions], *, bootstrap: int, confidence: float, seed: int
) -> dict[str, FigureSpread]:
    """Each figure's mean over members that scored the same cases, whatever their order.

    Raises DataError where the cases, their patients or their labels differ between members.
    """
    ordered = [replace(one, predictions=by_case(one.predictions)) for one in members]
    first = ordered[0].predictions
    for other in ordered[1:]:
        for column in ("case_id", "patient_id", "labels"):
            if not np.array_equal(getattr(first, column), getattr(other.predictions, column)):
                raise DataError(
                    f"The runs did not score the same cases ({len(first)} and {len(other.predictions)}; their {column} "
                    "differ), so that there is no mean of them. Run them again from one manifest."
                )
    ordered = [one.judged for one in ordered]
    first = ordered[0].predictions
    statistics = [statistic_of(one) for one in ordered]

    def mean(weights: Weights) -> dict[str, Floats]:
        found = [statistic(weights) for statistic in statistics]
        return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}

    generator = np.random.default_rng(seed)
    means = estimates(mean, first.patient_id, bootstrap=bootstrap, confidence=confidence, generator=generator)
    means["auc_bootstrap"] = means["auc"]
    score, truth = (np.hstack([getattr(one, name) for one in ordered]) for name in ("score", "truth"))
    means["auc"] = mean_auc(auc_with_covariance(score, truth, ordered[0].patients), len(first), confidence)
    single = [statistic(np.ones((1, len(first)), np.int64)) for statistic in statistics]
    return {
        name: FigureSpread.of([_defined(one[name.removesuffix("_bootstrap")][0]) for one in single], guarded(estimate))
        for name, estimate in means.items()
    }


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def by_case(predictions: Predictions) -> Predictions:
    """The same cases in the order of their names."""
    return predictions.where(np.argsort(predictions.case_id, kind="stable"))


def out_of_fold(tables: Sequence[Predictions], calibrations: Sequence[Calibration], task: Task) -> Predictions:
    """Each case as it was predicted by members that did not train on it, in the order of the cases' names.

    Logits are calibrated as each member's were, which makes members comparable, and averaged over the members (the
    seeds) that validated the case; the answer needs no calibration.
    """
    joined = Predictions.joined(tables[0].model, tables)
    logits = np.concatenate([fit.logits(table.logits, task) for table, fit in zip(tables, calibrations, strict=True)])
    _, first, place, count = np.unique(joined.case_id, return_index=True, return_inverse=True, return_counts=True)
    total = np.zeros((len(first), logits.shape[1]))
    np.add.at(total, place, logits)
    return replace(joined.where(first), logits=total / count[:, None])


def pooled_figures(table: Predictions, task: Task, *, bootstrap: int, confidence: float, seed: int) -> PooledFigures:
    """AUC, average precision and Brier score of out-of-fold predictions: what needs no operating point."""
    scored = CalibratedPredictions(table, task).judged
    table = scored.predictions
    statistic = together(
        ranking_statistic(scored.score, scored.truth),
        brier_statistic(scored.probability, scored.truth, exclusive=is_exclusive(task)),
    )
    generator = np.random.default_rng(seed)
    found = estimates(statistic, table.patient_id, bootstrap=bootstrap, confidence=confidence, generator=generator)
    found["auc_bootstrap"] = found["auc"]
    found["auc"] = mean_auc(auc_with_covariance(scored.score, scored.truth, scored.patients), len(table), confidence)
    return PooledFigures(**{name: guarded(one) for name, one in found.items()})
