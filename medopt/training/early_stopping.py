"""Early stopping as a function of the history; NaN is never progress."""

from __future__ import annotations

import math
from collections.abc import Sequence


def improvements(scores: Sequence[float]) -> list[bool]:
    """For each score (higher is better), whether it is a new best."""
    best = -math.inf
    marks = []
    for score in scores:
        better = not math.isnan(score) and score > best
        best = score if better else best
        marks.append(better)
    return marks


def should_stop(scores: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` scores brought no new best."""
    marks = improvements(scores)
    return len(marks) >= patience and not any(marks[-patience:])


def first_plateau(scores: Sequence[float], patience: int) -> int | None:
    """How many epochs it took until `patience` in a row had brought no new best; None where that never was."""
    waited = 0
    for epoch, better in enumerate(improvements(scores), start=1):
        waited = 0 if better else waited + 1
        if waited == patience:
            return epoch
    return None
