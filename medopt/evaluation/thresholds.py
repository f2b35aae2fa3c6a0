"""Operating points: the threshold from which a case is called positive, chosen on validation.

A decision is `probability >= threshold`. Thresholds lie midway between two neighbouring scores, so that a rounding
error in service does not turn a case over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Rule = Literal["youden", "sensitivity", "specificity", "fixed"]


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How probabilities become decisions.

    `threshold` is one number for a binary study, one a label for a multi-label study, and None for a multi-class
    study, where the most probable class is chosen. `note` says where a rule could not be followed.
    """

    threshold: float | tuple[float, ...] | None
    rule: str
    note: str = ""

    def decide(self, probability: NDArray[np.floating]) -> NDArray[np.int64]:
        """Decisions for probabilities (N, K): class indices (N,), or zeros and ones (N, K) of a multi-label study."""
        if self.threshold is None:
            return probability.argmax(axis=1).astype(np.int64)
        if isinstance(self.threshold, tuple):
            return (probability >= np.asarray(self.threshold)).astype(np.int64)
        return (probability[:, 0] >= self.threshold).astype(np.int64)

    def as_dict(self) -> dict[str, Any]:
        """The form that a release and `metrics.json` carry."""
        threshold = list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold
        return {"threshold": threshold, "rule": self.rule} | ({"note": self.note} if self.note else {})


def choose_threshold(
    probability: NDArray[np.floating], labels: NDArray[np.int64], rule: Rule, target: float = 0.5
) -> OperatingPoint:
    """Choose the operating point on validation cases.

    `probability` (N, K) or (N,); `labels` (N,) class indices, or (N, K) zeros and ones for one threshold a label.
    youden: the largest sensitivity + specificity - 1 (Youden 1950), the lower threshold among equals. sensitivity:
    the highest threshold that reaches the target. specificity: the lowest that does. fixed: the target itself.
    More than one column with labels (N,) is a multi-class study: no threshold. A set with one class gives 0.5.
    """
    table = np.asarray(probability, dtype=np.float64).reshape(len(probability), -1)
    if labels.ndim == 2:
        chosen = [_choose(column, truth == 1, rule, target) for column, truth in zip(table.T, labels.T, strict=True)]
        notes = [f"label {index}: {note}" for index, (_, note) in enumerate(chosen) if note]
        return OperatingPoint(tuple(threshold for threshold, _ in chosen), rule, "; ".join(notes))
    if table.shape[1] > 1:
        return OperatingPoint(None, "argmax")
    threshold, note = _choose(table[:, 0], labels == 1, rule, target)
    return OperatingPoint(threshold, rule, note)


def _choose(score: NDArray[np.float64], positive: NDArray[np.bool_], rule: Rule, target: float) -> tuple[float, str]:
    if rule == "fixed":
        return float(target), ""
    if positive.all() or not positive.any():
        return 0.5, "validation holds one class only, so the threshold is 0.5"
    cuts, sensitivity, specificity = operating_characteristics(score, positive)
    if rule == "sensitivity":
        return float(cuts[sensitivity >= target][-1]), ""
    if rule == "specificity":
        return float(cuts[specificity >= target][0]), ""
    # Rates are ratios of counts: compare Youden's index in whole numbers, where equals are equal.
    positives, negatives = int(positive.sum()), int((~positive).sum())
    index = np.rint(sensitivity * positives) * negatives + np.rint(specificity * negatives) * positives
    return float(cuts[index.argmax()]), ""


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
