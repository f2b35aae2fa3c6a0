"""Which epoch's weights a training keeps: the last one's after an annealed schedule, else the best by a smooth metric.

The highest of many noisy figures is mostly noise: chosen by the AUC of a small validation split, the best epoch
predicts new patients no better than the last one, and its own AUC flatters it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medopt.config import Training
from medopt.core.records import EpochRecord
from medopt.training.schedules import learning_rate

WINDOW = 5
"""Epochs whose mean stands for one epoch: its own and those before, so that no later epoch changes a choice."""
ANNEALED = 0.1
"""A schedule that ends at this share of the learning rate, or below, has come to rest."""
_STEPS = 100  # of an epoch, where the share is looked at


@dataclass(frozen=True, slots=True)
class KeptEpoch:
    """The place of an epoch in the history, and in words why its weights are kept."""

    index: int
    reason: str


def kept_epoch(training: Training, history: Sequence[EpochRecord]) -> KeptEpoch | None:
    """The epoch to keep, if training ends after this history; None where no epoch's metric is a number."""
    best = smoothed_best([one.val_metric for one in history], [one.val_loss for one in history])
    if best is None:
        return None
    last, is_whole = len(history) - 1, len(history) >= training.epochs
    if not math.isnan(history[last].val_metric):
        if training.keep == "last":
            return KeptEpoch(last, "the last one, as training.keep asks")
        if training.keep == "auto" and is_whole and is_annealed(training):
            return KeptEpoch(last, f"the last one, as the schedule {training.schedule.name} ends at its lowest rate")
    metric = "AUC" if training.metric == "auc" else "loss"
    reason = f"the best by validation {metric} as the mean of {WINDOW} epochs"
    if training.keep == "auto" and not is_whole and is_annealed(training):
        reason += f", as training stopped before the schedule {training.schedule.name} ended"
    return KeptEpoch(best, reason)


def is_annealed(training: Training) -> bool:
    """Whether the schedule lowers the rate to its end; `auto` must be resolved before."""
    rate, steps = training.optimizer.rate, training.epochs * _STEPS
    return learning_rate(training.schedule, rate, steps - 1, _STEPS, training.epochs) <= ANNEALED * rate


def smoothed_best(scores: Sequence[float], losses: Sequence[float]) -> int | None:
    """The epoch with the highest mean score of WINDOW epochs, its own and those before; None where none is a number.

    Of equal ones the lowest mean loss decides, then the later one. An epoch with fewer epochs before it counts only
    while there is no other; one whose own score is not a number does not count.
    """
    found = [index for index, score in enumerate(scores) if not math.isnan(score)]

    def rank(index: int) -> tuple[bool, float, float, int]:
        return index + 1 >= WINDOW, _mean(scores, index, -math.inf), -_mean(losses, index, math.inf), index

    return max(found, key=rank, default=None)


def _mean(values: Sequence[float], index: int, nothing: float) -> float:
    """The mean up to a place, the same in every order; `nothing` where none of them is a number."""
    window = [value for value in values[max(0, index + 1 - WINDOW) : index + 1] if not math.isnan(value)]
    if any(map(math.isinf, window)):
        return sum(window) / len(window)
    return math.fsum(window) / len(window) if window else nothing
