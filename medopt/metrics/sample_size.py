"""How many patients an interval of a wished width takes, before there are any: AUC, and shares such as sensitivity.

The AUC's variance is that of Hanley & McNeil 1982, its interval on the logit scale with Student's t, as
`medopt.metrics.delong` computes it of data; a share has Wilson's interval (1927). Images of one patient are worth
images / design effect independent ones each, with the design effect 1 + (images - 1) * correlation (Kish 1965).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.special import expit, logit, stdtrit

from medopt.metrics.proportions import wilson

MOST = 10_000_000


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a patient of the test set gives: the finding (a share), images, and how much these repeat each other."""

    prevalence: float
    images: float = 1.0
    design_effect: float = 1.0
    confidence: float = 0.95

    def cases(self, patients: float) -> tuple[float, float]:
        """How many independent cases with and without the finding so many patients are worth."""
        worth = patients * self.images / self.design_effect
        return worth * self.prevalence, worth * (1 - self.prevalence)


def auc_variance(auc: float, positives: float, negatives: float) -> float:
    """The variance of an AUC by its expected value alone (Hanley & McNeil 1982).

    >>> round(auc_variance(0.85, 50, 50) ** 0.5, 4)
    0.0387
    """
    above, below = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = (positives - 1) * (above - auc**2) + (negatives - 1) * (below - auc**2)
    return (auc * (1 - auc) + spread) / (positives * negatives)


def auc_width(auc: float, patients: float, sampling: Sampling) -> float:
    """The width of the interval of an AUC; 1 with fewer than two cases of a class."""
    positives, negatives = sampling.cases(patients)
    fewest = min(positives, negatives)
    if fewest < 2:
        return 1.0
    quantile = float(stdtrit(fewest - 1, (1 + sampling.confidence) / 2))
    half = quantile * math.sqrt(auc_variance(auc, positives, negatives)) / (auc * (1 - auc))
    return float(expit(logit(auc) + half) - expit(logit(auc) - half))


def share_width(share: float, cases: float, confidence: float) -> float:
    """The width of Wilson's interval of a share of so many independent cases; 1 without a case."""
    if cases <= 0:
        return 1.0
    low, high = wilson(share, cases, confidence)
    return float(high) - float(low)


def patients_for(width: float, width_at: Callable[[int], float]) -> int | None:
    """The fewest patients at which `width_at` them is at most `width`; None where ten million do not reach it."""
    high = 2
    while width_at(high) > width:
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if width_at(middle) <= width else (middle, high)
    return high
