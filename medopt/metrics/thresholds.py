"""Operating points: the threshold from which a case is called positive, chosen on validation.

A decision is `probability >= threshold`. Thresholds lie midway between two neighbouring scores, so that a rounding
error in service does not turn a case over. Around a threshold may lie a band in which a case is left undecided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medopt.core.records import UNKNOWN
from medopt.metrics.conformal import PredictionSets

Rule = Literal["youden", "sensitivity", "specificity", "cost", "fixed"]
Band = tuple[float, float]
MEDIAN = "median"
"""The rule by which a case gets the grade that half of its probability does not lie beyond."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How probabilities become decisions.

    `threshold` is one number for a binary study, one a label for a multi-label study, and None for a multi-class
    study, where the most probable class is chosen, and for grades, where the MEDIAN is. `note` says where a rule could
    not be followed. `band` holds the probabilities, from its first up to below its second, that leave a case undecided:
    the finding's of a binary study, the chosen class's of a multi-class study. `sets` leave a case undecided where its
    prediction set is not the decided class alone; of a binary study they are a band, too.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    threshold: float | tuple[float, ...] | None
    rule: str
    note: str = ""
    band: Band | None = None
    sets: PredictionSets | None = None

    def undecided(self, probability: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which cases (N,) of probabilities (N, K) are left undecided; by sets, which labels (N, K) of several."""
        if self.sets is not None and self.band is None:
            return self.sets.undecided(probability, self.decide(probability))
        if self.band is None:
            return np.zeros(len(probability), dtype=bool)
        top = self._chosen(probability) if self.threshold is None else probability.max(axis=1)
        return np.asarray((top >= self.band[0]) & (top < self.band[1]))

    def confidence(self, probability: NDArray[np.floating]) -> NDArray[np.float64]:
        """How far (N,) each case lies from being decided otherwise: what a band leaves undecided first.

        The distance to the threshold in logits, of a multi-label study that of the label nearest to its own;
        multi-class: the probability of the chosen class. Where a probability is NaN, its label does not count.
        """
        if self.threshold is None:
            return self._chosen(probability)
        return np.asarray(np.fmin.reduce(np.abs(_logit(probability) - _logit(self.threshold)), axis=1))

    def decide(self, probability: NDArray[np.floating]) -> NDArray[np.int64]:
        """Decisions for probabilities (N, K): class indices (N,), or zeros and ones (N, K) of a multi-label study."""
        if self.threshold is None and self.rule == MEDIAN:  # the fewest grades off, on average
            return (probability[:, :-1].cumsum(axis=1) < 0.5).sum(axis=1).astype(np.int64)
        if self.threshold is None:
            return probability.argmax(axis=1).astype(np.int64)
        if isinstance(self.threshold, tuple):
            return (probability >= np.asarray(self.threshold)).astype(np.int64)
        return (probability[:, 0] >= self.threshold).astype(np.int64)

    def _chosen(self, probability: NDArray[np.floating]) -> NDArray[np.float64]:
        """The probability (N,) of the class that each case is decided for."""
        chosen = self.decide(probability)[:, None]
        return np.asarray(np.take_along_axis(probability, chosen, axis=1)[:, 0], dtype=np.float64)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold of each output that has one: none of a multi-class study."""
        if self.threshold is None:
            return ()
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)


def _logit(probability: Any) -> Any:
    return logit(np.clip(probability, 1e-12, 1 - 1e-12))


def with_band(point: OperatingPoint, probability: NDArray[np.floating], share: float) -> OperatingPoint:
    """The operating point with the band that leaves the least sure validation cases undecided, at most `share` of them.

    `probability` (N, K) of a binary or a multi-class study. Equally sure cases stay together; where no case may be left
    undecided there is no band, and the note says so.
    """
    if share == 0:
        return point
    sure = np.sort(point.confidence(probability))
    most = int(share * len(sure) + 1e-9)
    levels = np.unique(sure)
    undecided = np.searchsorted(sure, levels, side="right")
    reached = np.flatnonzero(undecided <= most)
    if len(reached) == 0:
        said = f"no band: fewer than one of {len(sure)} validation cases may be left undecided"
        return replace(point, note="; ".join(filter(None, (point.note, said))))
    last = int(reached[-1])
    edge = float(levels[last : last + 2].mean())  # midway to the next, as thresholds are
    if not isinstance(point.threshold, float):
        return replace(point, band=(0.0, edge))
    middle = float(_logit(point.threshold))
    return replace(point, band=(float(expit(middle - edge)), float(expit(middle + edge))))


def with_sets(point: OperatingPoint, sets: PredictionSets) -> OperatingPoint:
    """The operating point that leaves undecided what prediction sets leave open.

    Of a binary study such cases lie in a band between the floor of the finding and the end of its absence.
    It is widened to the threshold, so that a case is decided where both agree.
    """
    note, band = "; ".join(filter(None, (point.note, sets.note))), None
    if isinstance(point.threshold, float):
        edges = (sets.floors[0], 1 - sets.floors[1] if sets.floors[1] else math.nextafter(1, 2), point.threshold)
        band = (min(edges), max(edges))
    return replace(point, note=note, band=band, sets=sets)


def choose_threshold(
    probability: NDArray[np.floating],
    labels: NDArray[np.int64],
    rule: Rule,
    target: float = 0.5,
    *,
    cost: float = 1.0,
    prevalence: float | None = None,
) -> OperatingPoint:
    """Choose the operating point on validation cases.

    `probability` (N, K) or (N,); `labels` (N,) class indices, or (N, K) zeros and ones for one threshold a label,
    UNKNOWN where a label is of no use. youden: the largest sensitivity + specificity - 1 (Youden 1950), the lower
    threshold among equals. sensitivity: the highest threshold by which ceil((n + 1) * target) of the n positives are
    found: so the next positive is found with the probability `target` or more (split conformal, Vovk et al. 2005),
    where the highest that reaches the target on validation misses it on average. specificity: the lowest threshold,
    likewise. Where n is too small for that, all n are found, and the note says so. cost: the least expected cost where
    one miss is worth `cost` false alarms and the finding has `prevalence` (None: as in these cases), the lower
    threshold among equals. fixed: the target itself. More than one column with labels (N,) is a multi-class study: no
    threshold. A set with one class gives 0.5.
    """
    selection = _Selection(rule, target, cost, prevalence)
    table = np.asarray(probability, dtype=np.float64).reshape(len(probability), -1)
    if labels.ndim == 2:
        columns = [(column[one != UNKNOWN], one[one != UNKNOWN]) for column, one in zip(table.T, labels.T, strict=True)]
        chosen = [_choose(column, truth == 1, selection) for column, truth in columns]
        notes = [f"label {index}: {note}" for index, (_, note) in enumerate(chosen) if note]
        return OperatingPoint(tuple(threshold for threshold, _ in chosen), rule, "; ".join(notes))
    if table.shape[1] > 1:
        return OperatingPoint(None, "argmax")
    threshold, note = _choose(table[:, 0], labels == 1, selection)
    return OperatingPoint(threshold, rule, note)


@dataclass(frozen=True, slots=True)
class _Selection:
    """The rule that chooses a threshold, with its numbers."""

    rule: Rule
    target: float
    cost: float
    prevalence: float | None


def _choose(score: NDArray[np.float64], positive: NDArray[np.bool_], selection: _Selection) -> tuple[float, str]:
    rule, target = selection.rule, selection.target
    if rule == "fixed":
        return float(target), ""
    if positive.all() or not positive.any():
        return 0.5, "validation holds one class only, so the threshold is 0.5"
    cuts, sensitivity, specificity = operating_characteristics(score, positive)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if rule == "sensitivity":
        found, note = _conformal_rank(positives, target, rule)
        return float(cuts[np.rint(sensitivity * positives) >= found][-1]), note
    if rule == "specificity":
        found, note = _conformal_rank(negatives, target, rule)
        return float(cuts[np.rint(specificity * negatives) >= found][0]), note
    # Rates are ratios of counts: compare Youden's index in whole numbers, where equals are equal.
    right = np.rint(sensitivity * positives) * negatives, np.rint(specificity * negatives) * positives
    if rule == "youden":
        return float(cuts[(right[0] + right[1]).argmax()]), ""
    share = positives / (positives + negatives) if selection.prevalence is None else selection.prevalence
    gain = selection.cost * share * right[0] + (1 - share) * right[1]
    return float(cuts[np.flatnonzero(gain >= gain.max() * (1 - 1e-12))[0]]), ""


def _conformal_rank(cases: int, target: float, rule: str) -> tuple[int, str]:
    """How many of the validation cases of a class must be right, so that the next one is with probability `target`."""
    needed = math.ceil((cases + 1) * target - 1e-9)
    if needed <= cases:
        return needed, ""
    enough = f"it takes {math.ceil(target / (1 - target) - 1e-9)}" if target < 1 else "no number is enough"
    return cases, (
        f"no threshold can promise a {rule} of {target:g} with {cases} such validation cases ({enough}); the threshold "
        "is the one at which all of them are right"
    )


def operating_characteristics(
    score: NDArray[np.float64], positive: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Every cut that tells cases apart, ascending, with its sensitivity and specificity: three arrays (G + 1,).

    The first cut calls every case positive, the last none. `score` (N,) are probabilities, both classes present.
    """
    levels = np.unique(score)
    middle = levels[:-1] + np.diff(levels) / 2
    middle = np.where(middle > levels[:-1], middle, levels[1:])  # neighbouring floats have no middle
    top = levels[-1] + (1 - levels[-1]) / 2
    cuts = np.concatenate([[levels[0] / 2], middle, [top if top > levels[-1] else np.nextafter(levels[-1], np.inf)]])
    below = np.searchsorted(np.sort(score[positive]), cuts), np.searchsorted(np.sort(score[~positive]), cuts)
    return cuts, 1 - below[0] / positive.sum(), below[1] / (~positive).sum()
