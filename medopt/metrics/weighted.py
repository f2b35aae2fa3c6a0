"""Metrics as functions of case weights, so that one call computes a figure for many bootstrap draws at once.

A `Statistic` is prepared once from scores and truth (sorting, tie groups), then called with weights (B, N): how many
times each of N cases was drawn in each of B resamples, as whole numbers, so that AUC is computed without rounding. It
gives named figures (B,), NaN where a draw does not define one (a class is missing); `bootstrap` turns them into an
`Estimate`, which never holds NaN. Where cases are many, they are dealt into groups of whole patients and the groups are
drawn: weights are then (B, G), and `groups` says which group each case is in.

Multi-class figures are macro averages of one class against the rest; multi-label figures are averages over labels,
each over the cases of which the label is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = NDArray[np.int64]
Truth = NDArray[np.bool_] | Floats
"""True or false, or 1, 0 and NaN where it is not known."""
Statistic = Callable[[Weights], dict[str, Floats]]
Index = NDArray[np.intp]
LEVELS = 500  # of a score, where cases are drawn in groups


@dataclass(frozen=True, slots=True)
class Ranking:
    """Cases from the highest score down, equal scores in one group: what AUC, precision and a ROC curve need.

    `order` (N,) sorts the cases; None where they stand in order already. `ends` (G,) is the last place of each group
    of equal scores; None where no two are equal. `positive` (N,) is the truth in that order, as 0 and 1.
    """

    order: NDArray[np.intp] | None
    ends: NDArray[np.intp] | None
    positive: Weights

    @classmethod
    def of(cls, score: Floats, positive: NDArray[np.bool_]) -> Self:
        """Rank N > 0 cases by `score` (N,), of which only the order counts."""
        order = np.argsort(-score, kind="stable")
        level = score[order]
        ends = np.flatnonzero(np.append(level[1:] != level[:-1], True))
        in_order, all_differ = bool((np.diff(order) == 1).all()), len(ends) == len(score)
        return cls(None if in_order else order, None if all_differ else ends, positive[order].astype(np.int64))

    def counts(self, weights: Weights) -> tuple[Weights, Weights]:
        """Positives, and all cases, that a threshold at each distinct score calls positive: two (B, G)."""
        ordered = weights if self.order is None else weights.take(self.order, axis=1)
        true, called = (ordered * self.positive).cumsum(axis=1), ordered.cumsum(axis=1)
        return (true, called) if self.ends is None else (true.take(self.ends, axis=1), called.take(self.ends, axis=1))


@dataclass(frozen=True, slots=True)
class CaseGroups:
    """Which of `count` groups each case is in (N,): what is drawn in the place of patients."""

    index: Index
    count: int

    def where(self, rows: NDArray[np.bool_]) -> CaseGroups:
        """The same groups for some of the cases."""
        return CaseGroups(self.index[rows], self.count)


@dataclass(frozen=True, slots=True)
class GroupedRanking:
    """Positives, and all cases, of each group (G,) at each of L levels of the score, the highest first: two (G, L)."""

    positive: NDArray[np.float32]
    every: NDArray[np.float32]

    @classmethod
    def of(cls, score: Floats, positive: NDArray[np.bool_], groups: CaseGroups) -> Self:
        """Rank N cases by `score` (N,), about equally many a level; equal scores stay together."""
        place = np.searchsorted(np.sort(-score), -score)
        level = place * LEVELS // len(score)
        cell, shape = groups.index * LEVELS + level, (groups.count, LEVELS)
        tables = (np.bincount(cell[rows], minlength=shape[0] * LEVELS) for rows in (positive, slice(None)))
        found = [table.reshape(shape).astype(np.float32) for table in tables]
        return cls(found[0], found[1])

    def counts(self, weights: Weights) -> tuple[Weights, Weights]:
        """As `Ranking.counts`, with weights (B, G): two (B, L)."""
        drawn = weights.astype(np.float32)  # exact up to 16 million cases a level
        true, called = (np.rint(drawn @ table).astype(np.int64).cumsum(axis=1) for table in (self.positive, self.every))
        return true, called


def ranked(score: Floats, positive: NDArray[np.bool_], groups: CaseGroups | None = None) -> Ranking | GroupedRanking:
    """The ranking of cases (N,), for weights of cases or of groups."""
    return Ranking.of(score, positive) if groups is None else GroupedRanking.of(score, positive, groups)


def distinct(numbers: Index) -> int:
    """How many different numbers, none below 0, there are; counted, since sorting a million takes its time."""
    return int(np.count_nonzero(np.bincount(numbers)))


def summed(table: Floats, groups: CaseGroups | None) -> Floats:
    """Rows (N, M) added up within groups: (G, M)."""
    if groups is None:
        return table
    return np.stack([np.bincount(groups.index, weights=column, minlength=groups.count) for column in table.T], axis=1)


def ranking_statistic(score: Floats, target: Truth, groups: CaseGroups | None = None) -> Statistic:
    """AUC (ties count one half) and average precision (step-wise, no interpolation) of scores and truth (N, K)."""
    columns = [_ranking_column(column, truth, groups) for column, truth in zip(score.T, target.T, strict=True)]

    def statistic(weights: Weights) -> dict[str, Floats]:
        area, precision = np.mean([column(weights) for column in columns], axis=0)
        return {"auc": area, "average_precision": precision}

    return statistic


def _ranking_column(
    score: Floats, truth: NDArray[Any], groups: CaseGroups | None
) -> Callable[[Weights], tuple[Floats, Floats]]:
    """From weights to AUC and average precision (B,) of one output, on the cases of which its truth is known."""
    known = ~np.isnan(truth)
    if not known.any():
        return lambda weights: (np.full(len(weights), np.nan), np.full(len(weights), np.nan))
    if known.all():
        ranking = ranked(score, truth == 1, groups)
        return lambda weights: _area_and_precision(*ranking.counts(weights))
    ranking, rows = ranked(score[known], truth[known] == 1, groups and groups.where(known)), np.flatnonzero(known)
    return lambda weights: _area_and_precision(
        *ranking.counts(weights if groups is not None else weights.take(rows, axis=1))
    )


def _area_and_precision(true: Weights, called: Weights) -> tuple[Floats, Floats]:
    """AUC and average precision (B,) from the counts (B, G) of `Ranking.counts`; NaN where a class is missing."""
    positives, cases = true[:, -1], called[:, -1]
    false = called - true
    gained = np.diff(true, axis=1, prepend=0)
    # Twice the trapezoids beneath the ROC curve, in whole numbers: each positive outranks the negatives that no
    # threshold down to its own group calls positive, and half of those within its group.
    beneath = np.einsum("bg,bg->b", gained, 2 * (cases - positives)[:, None] - false)
    beneath -= np.einsum("bg,bg->b", gained[:, 1:], false[:, :-1])
    defined = (positives > 0) & (positives < cases)
    precision = np.einsum("bg,bg,bg->b", gained, true, 1 / np.maximum(called, 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        area = beneath / (2.0 * positives * (cases - positives))
        return np.where(defined, area, np.nan), np.where(defined, precision / positives, np.nan)


def decision_statistic(
    decided: NDArray[np.bool_], target: Truth, *, exclusive: bool, groups: CaseGroups | None = None
) -> Statistic:
    """Accuracy, sensitivity, specificity, PPV, NPV and F1 of decisions and truth (N, K).

    `exclusive`: the K columns are classes that exclude each other, so a case is right when its one class is.
    PPV and NPV hold at the prevalence of these cases.
    """
    known, positive = ~np.isnan(target), target == 1
    counted = [known[:, :1] if known.all() else known, decided & positive, positive, decided & known]
    edges = np.cumsum([one.shape[1] for one in counted])[:-1]
    columns = summed(np.hstack(counted).astype(float), groups)

    def statistic(weights: Weights) -> dict[str, Floats]:
        total, true, positives, called = np.split(weights @ columns, edges, axis=1)
        rejected = total - positives - called + true  # true negatives
        right = true.sum(axis=1) / total[:, 0] if exclusive else _mean_ratio(true + rejected, total)
        return {
            "accuracy": right,
            "sensitivity": _mean_ratio(true, positives),
            "specificity": _mean_ratio(rejected, total - positives),
            "ppv": _mean_ratio(true, called),
            "npv": _mean_ratio(rejected, total - called),
            "f1": _mean_ratio(2 * true, positives + called),
        }

    return statistic


def brier_statistic(
    probability: Floats, target: Truth, *, exclusive: bool, groups: CaseGroups | None = None
) -> Statistic:
    """Brier score (Brier 1950) of probabilities and truth (N, K): squared error, averaged over cases.

    Over columns it is summed where they are `exclusive` classes, else averaged.
    """
    squared, known = (probability - target) ** 2, ~np.isnan(target)
    if known.all():
        error = squared.sum(axis=1, keepdims=True) if exclusive else squared.mean(axis=1, keepdims=True)
        known = known[:, :1]
    else:
        error = np.where(known, squared, 0)
    columns = summed(np.hstack([error, known]), groups)

    def statistic(weights: Weights) -> dict[str, Floats]:
        return {"brier": _mean_ratio(*np.split(weights @ columns, 2, axis=1))}

    return statistic


def together(*statistics: Statistic) -> Statistic:
    """All figures of several statistics, on the same draws."""
    return lambda weights: {name: values for one in statistics for name, values in one(weights).items()}


def _mean_ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Mean over columns of the ratios (B, K); NaN where any column has nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0).mean(axis=1)


def auc(score: Floats, target: Truth, weights: Weights | None = None) -> Floats:
    """AUC (B,) of scores and truth (N,) or (N, K) under weights (B, N), by default of the cases as they are.

    NaN where a class is missing.
    """
    return _ranked(score, target, weights)["auc"]


def average_precision(score: Floats, target: Truth, weights: Weights | None = None) -> Floats:
    """Average precision (B,), arguments as for `auc`."""
    return _ranked(score, target, weights)["average_precision"]


def _ranked(score: Floats, target: Truth, weights: Weights | None) -> dict[str, Floats]:
    rows = len(score)
    statistic = ranking_statistic(score.reshape(rows, -1), target.reshape(rows, -1))
    return statistic(np.ones((1, rows), np.int64) if weights is None else weights)
