"""`metrics.json` of a group of runs: seeds and folds of one study, and the means of their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from medopt.core.records import Estimate
from medopt.core.result import ByKind, Result


class FigureSpread(Result):
    """One figure of several members: their mean, each one's value (None: not defined), and how far they lie apart.

    `sd` is the standard deviation, None below two values; `least` and `most` are the range.
    """

    mean: Estimate
    values: tuple[float | None, ...]
    sd: float | None
    least: float | None
    most: float | None

    @classmethod
    def of(cls, values: Sequence[float | None], mean: Estimate) -> Self:
        """The spread of the members' values about their mean."""
        known = [value for value in values if value is not None]
        deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
        least, most = min(known, default=None), max(known, default=None)
        return cls(mean=mean, values=tuple(values), sd=deviation, least=least, most=most)


class GroupMember(Result):
    """A run of the group; `fold` is None where the study is not folded.

    `outcome` is how it ended in a word, and `better_than_chance` the verdict on its model: "" and None in 0.1.0.
    """

    seed: int
    fold: int | None
    folder: str
    mlflow_run_id: str | None
    gate_passed: bool
    outcome: str = ""
    better_than_chance: bool | None = None

    @property
    def is_released(self) -> bool:
        """Whether it has a release."""
        return self.outcome.startswith("released") if self.outcome else self.gate_passed


def verdict_counts(members: Sequence[GroupMember]) -> str:
    """How many members the two verdicts let pass, that on the model first."""
    count = len(members)
    better = sum(member.better_than_chance is True for member in members)
    passed = sum(member.gate_passed for member in members)
    shown = f"{better} of {count} models are shown to be better than chance"
    return f"{shown}; {passed} of {count} int8 models passed the gate"


class PooledFigures(Result):
    """Figures of out-of-fold predictions: those that need no operating point."""

    auc: Estimate
    average_precision: Estimate
    brier: Estimate
    auc_bootstrap: Estimate


class OutOfFold(ByKind[PooledFigures]):
    """Figures of every case as predicted by members that did not train on it; `note` says why they flatter."""

    note: str


class GroupMetrics(Result):
    """The means of the members' figures, by name: `metrics.test.int8["auc"].mean` is an Estimate.

    `sites` holds the mean AUC at each site of the test split; `out_of_fold` is None where the study is not folded.
    """

    study: str
    seeds: tuple[int, ...]
    folds: int
    members: tuple[GroupMember, ...]
    test: ByKind[dict[str, FigureSpread]]
    sites: dict[str, ByKind[FigureSpread]]
    cases: int
    confidence: float
    data_notes: tuple[str, ...]
    mlflow_run_id: str | None
    out_of_fold: OutOfFold | None = None
