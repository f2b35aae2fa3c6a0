"""Prediction sets with a guarantee: which classes a case may have, by what validation cases of each class reached.

Split conformal prediction (Vovk et al. 2005), Mondrian by class (Vovk 2012, Conditional validity of inductive conformal
predictors), with the probability of a class as its score (Sadinle et al. 2019). A class is in the set of a case where
its probability reaches the floor of the class: the k-th largest value of the class's n validation patients, with
k = ceil((n + 1) * coverage). A new patient of the class then has it in the sets of all images with at least that
probability, on average over draws of validation patients, whatever the network is, as long as the new patient comes
from where those came from. A patient counts once, with the lowest of its images of the class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Task, has_one_output, is_exclusive
from medopt.metrics.weighted import Floats, Index

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class PredictionSets:
    """The floor of each class (M,): the least probability at which it is in the set of a case.

    The classes of a multi-class study are its outputs. Else they are the presence of each label, by its probability p,
    and then the absence of each, by 1 - p. A floor of 0 means that too few `patients` have the class: it is in every
    set, so that no case is decided otherwise.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    coverage: float
    floors: tuple[float, ...]
    patients: tuple[int, ...]

    @property
    def patients_needed(self) -> int:
        """How many patients a class needs, so that cases can be decided otherwise."""
        return math.ceil(self.coverage / (1 - self.coverage) - 1e-9)

    @property
    def promise(self) -> str:
        """What is promised, in a sentence, and what it takes."""
        return (
            f"Of new patients of each class, at least {100 * self.coverage:g} % have their images answered with this "
            "class or left undecided, if they come from where the validation patients came from."
        )

    @property
    def note(self) -> str:
        """Which classes have too few patients; empty where none has."""
        few = [count for count in self.patients if count < self.patients_needed]
        if not few:
            return ""
        return (
            f"no guarantee is possible for {len(few)} of {len(self.floors)} classes: a coverage of {self.coverage:g} "
            f"takes {self.patients_needed} validation patients, and there are {', '.join(map(str, few))}; such a class "
            "is never ruled out"
        )

    def members(self, table: NDArray[np.floating]) -> Mask:
        """Which classes (M,) are in the set of each case (N, M); `table` (N, M) as `class_table` gives it."""
        return np.asarray(table >= np.asarray(self.floors))

    def undecided(self, probability: NDArray[np.floating], decision: NDArray[np.int64]) -> Mask:
        """Where the set of a case is not the decided class alone: (N,), or of a multi-label study (N, K).

        `probability` (N, K), `decision` as an operating point gives it.
        """
        several = len(self.floors) == probability.shape[1]
        members = self.members(class_table(probability, several))
        if several:
            chosen = np.take_along_axis(members, decision[:, None], axis=1)[:, 0]
            return np.asarray(~chosen | (members.sum(axis=1) > 1))
        present, absent = np.split(members, 2, axis=1)
        positive = decision.reshape(present.shape) == 1
        return np.asarray(np.where(positive, ~present | absent, present | ~absent).reshape(decision.shape))


def class_table(probability: NDArray[np.floating], is_multiclass: bool) -> Floats:
    """The probability of each class that a case may have (N, M), from those of the outputs (N, K)."""
    table = np.asarray(probability, dtype=np.float64)
    return table if is_multiclass else np.hstack([table, 1 - table])


def class_truth(truth: Floats, is_multiclass: bool) -> Mask:
    """Which class (N, M) a case has, from the truth (N, K) of each output; none where it is NaN."""
    return truth == 1 if is_multiclass else np.hstack([truth == 1, truth == 0])


def class_names(labels: Sequence[str], task: Task) -> list[str]:
    """The names of the classes (M,), in their order.

    >>> class_names(["clear", "nodule"], "binary"), class_names(["mass", "cyst"], "multilabel")
    (['nodule', 'clear'], ['mass', 'cyst', 'no mass', 'no cyst'])
    """
    if is_exclusive(task):
        return list(labels)
    return [labels[1], labels[0]] if has_one_output(task) else [*labels, *(f"no {label}" for label in labels)]


def fit_sets(
    probability: NDArray[np.floating], truth: Floats, patients: Index, coverage: float, task: Task
) -> PredictionSets:
    """The floors that validation gives: `probability` (N, K), `truth` (N, K), NaN where unknown, `patients` (N,)."""
    is_multiclass = is_exclusive(task)
    table, has = class_table(probability, is_multiclass), class_truth(truth, is_multiclass)
    columns = zip(table.T, has.T, strict=True)
    found = [_floor(score, np.unique(score), patients, mask, coverage) for score, mask in columns]
    return PredictionSets(coverage, tuple(floor for floor, _ in found), tuple(count for _, count in found))


def _floor(score: Floats, levels: Floats, patients: Index, mask: Mask, coverage: float) -> tuple[float, int]:
    """The floor of a class and the number of its patients; midway to the next lower score, as thresholds are."""
    lowest = np.full(int(patients.max(initial=-1)) + 1, np.inf)
    np.minimum.at(lowest, patients[mask], score[mask])
    reached = np.sort(lowest[np.isfinite(lowest)])[::-1]
    rank = math.ceil((len(reached) + 1) * coverage - 1e-9)
    if rank > len(reached):
        return 0.0, len(reached)
    exact = float(reached[rank - 1])
    place = int(np.searchsorted(levels, exact))
    lower = float(levels[place - 1]) if place else 0.0
    middle = lower + (exact - lower) / 2
    return (middle if middle > lower else exact), len(reached)
