"""How far probabilities lie from observed frequencies: ECE over bins of equal width, ACE over bins of equal count.

Neither has an interval: a resample adds to a binned error, so that its draws lie above the value. Both are biased
upward in small sets, since a bin of few cases looks miscalibrated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Task, is_exclusive
from medopt.metrics.calibration import truth
from medopt.metrics.weighted import Floats, Index

NO_INTERVAL = "no interval: resampling adds to a binned error, so its draws lie above the value"
BINS = 15


def expected_calibration_error(probability: Floats, labels: NDArray[np.int64], task: Task, bins: int = BINS) -> float:
    """Mean distance between probability and observed frequency over equal-width bins, weighted by their cases.

    Binary: of the finding's probability. Multi-class: of the chosen class's (Guo et al. 2017). Multi-label: the mean
    over labels, each over the cases of which it is known. `probability` (N, K) with N > 0. NaN where a label is known
    of no case.
    """
    target = truth(labels, probability.shape[1], task)
    if is_exclusive(task):
        chosen = probability.argmax(axis=1)[:, None]
        probability = np.take_along_axis(probability, chosen, axis=1)
        target = np.take_along_axis(target, chosen, axis=1)
    return float(np.mean([_error(*one, _equal_width(one[0], bins)) for one in _known(probability, target)]))


def adaptive_calibration_error(probability: Floats, labels: NDArray[np.int64], task: Task, bins: int = BINS) -> float:
    """The same over bins that hold equally many cases, averaged over all outputs (Nixon et al. 2019).

    Equal probabilities stay together, so that bins may be fewer and unequal.
    """
    target = truth(labels, probability.shape[1], task)
    return float(np.mean([_error(*one, _equal_count(one[0], bins)) for one in _known(probability, target)]))


def _known(probability: Floats, target: Floats) -> list[tuple[Floats, Floats]]:
    """Probabilities and truth (M,) of each output, of the cases of which it is known."""
    columns = zip(probability.T, target.T, strict=True)
    return [(one[~np.isnan(known)], known[~np.isnan(known)]) for one, known in columns]


def _error(probability: Floats, target: Floats, index: Index) -> float:
    if len(target) == 0:
        return np.nan
    return float(np.abs(np.bincount(index, weights=probability - target)).sum() / len(probability))


def _equal_width(probability: Floats, bins: int) -> Index:
    return np.minimum((probability * bins).astype(np.intp), bins - 1)


def _equal_count(probability: Floats, bins: int) -> Index:
    place = np.searchsorted(np.sort(probability), probability)
    return place * bins // len(probability)
