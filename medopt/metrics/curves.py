"""The numbers behind the pictures: ROC curve with its band, and reliability with its intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.metrics.bootstrap import resampled
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.metrics.proportions import wilson
from medopt.metrics.weighted import CaseGroups, Floats, Ranking, Statistic, Weights, ranked


@dataclass(frozen=True, slots=True)
class RocCurve:
    """Sensitivity against the false positive rate of one output; the band (M,) is pointwise on `grid` (M,).

    `point` is (false positive rate, sensitivity) at the operating point, None where there is none.
    """

    false_positive_rate: Floats
    sensitivity: Floats
    grid: Floats
    low: Floats
    high: Floats
    auc: Estimate
    point: tuple[float, float] | None


def roc_curve(
    scored: CalibratedPredictions, output: int, *, bootstrap: int, confidence: float, seed: int, grid: int = 101
) -> RocCurve | None:
    """ROC curve of one output, its band, and its AUC as the tables have it; None where a class is missing."""
    scored, target = scored.of_output(output)
    score = scored.score[:, output]
    if target.all() or not target.any():
        return None
    axis, patients = np.linspace(0, 1, grid), scored.patients

    def make(groups: CaseGroups | None) -> Statistic:
        ranking = ranked(score, target, groups)

        def statistic(weights: Weights) -> dict[str, Floats]:
            curves = np.array([np.interp(axis, *_rates(*draw)) for draw in zip(*ranking.counts(weights), strict=True)])
            return {str(index): column for index, column in enumerate(curves.T)}

        return statistic

    found = resampled(make, patients, bootstrap=bootstrap, confidence=confidence, generator=np.random.default_rng(seed))
    ranking = Ranking.of(score, target)
    band = [found[str(index)] for index in range(grid)]
    false_positive_rate, sensitivity = _rates(*(one[0] for one in ranking.counts(np.ones((1, len(score)), np.int64))))
    decided = scored.decided[:, output]
    chosen = None if scored.operating_point.threshold is None else (decided[~target].mean(), decided[target].mean())
    return RocCurve(
        false_positive_rate,
        sensitivity,
        axis,
        np.array([np.nan if one.low is None else one.low for one in band]),
        np.array([np.nan if one.high is None else one.high for one in band]),
        mean_auc(auc_with_covariance(score[:, None], target[:, None], patients), len(score), confidence),
        chosen,
    )


def _rates(true: Weights, called: Weights) -> tuple[Floats, Floats]:
    """False positive rate and sensitivity (G + 1,) from one draw's counts (G,) of `Ranking.counts`."""
    with np.errstate(invalid="ignore"):
        false_rate, sensitivity = (np.append(0, counts) / counts[-1] for counts in (called - true, true))
    return false_rate, sensitivity


@dataclass(frozen=True, slots=True)
class Reliability:
    """Mean probability against observed frequency in bins of equally many cases, with Wilson intervals; all (M,)."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats


def reliability(
    probability: Floats, target: NDArray[np.bool_], confidence: float = 0.95, bins: int = 10
) -> Reliability:
    """Reliability of probabilities and truth (N,), N > 0.

    Bins hold equally many cases (at least 10, equal probabilities stay together), since equal widths leave the
    middle of a sure model nearly empty. The interval is Wilson's (1927), which stays honest where a bin holds no event.
    """
    order = np.argsort(probability, kind="stable")
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, max(1, min(bins, len(order) // 10)) + 1)[1:-1]))
    index = np.searchsorted(edges, probability, side="right")
    counts = np.bincount(index)
    filled = counts > 0
    n = counts[filled]
    predicted = np.bincount(index, weights=probability)[filled] / n
    observed = np.bincount(index, weights=target)[filled] / n
    return Reliability(predicted, observed, *wilson(observed, n, confidence))
