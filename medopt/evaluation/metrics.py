"""Metrics as functions of case weights, so that one call computes a figure for many bootstrap draws at once.

A `Statistic` is prepared once from scores and labels (sorting, tie groups), then called with weights (B, N): the
number of times that each of N cases was drawn in each of B resamples. It gives named figures (B,), NaN where a draw
does not define one (a class is missing); `bootstrap` turns that into an `Estimate`, which never holds NaN.

Multi-class figures are macro averages of one class against the rest; multi-label figures are averages over labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], dict[str, Floats]]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Cases ordered by falling score, equal scores in one group: what AUC, average precision and a ROC curve need.

    `order` (N,) sorts the cases, None where they are sorted already; `starts` (G,) is where each group of equal
    scores begins, None where no two are equal; `positive` (N,) is the truth in that order.
    """

    order: NDArray[np.intp] | None
    starts: NDArray[np.intp] | None
    positive: NDArray[np.bool_]

    @classmethod
    def of(cls, score: Floats, positive: NDArray[np.bool_]) -> Self:
        """Rank cases by `score` (N,); any monotone score will do, logits lose fewer ties than probabilities."""
        order = np.argsort(-score, kind="stable")
        level = score[order]
        starts = np.flatnonzero(np.r_[True, level[1:] != level[:-1]]) if len(level) else np.zeros(0, np.intp)
        is_sorted = bool((order[1:] > order[:-1]).all())
        return cls(None if is_sorted else order, None if len(starts) == len(score) else starts, positive[order])

    def groups(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weight of the positives and of the negatives in each group of equal scores: two (B, G)."""
        ordered = weights if self.order is None else weights[:, self.order]
        positives = ordered * self.positive
        negatives = ordered - positives
        if self.starts is None:
            return positives, negatives
        return np.add.reduceat(positives, self.starts, axis=1), np.add.reduceat(negatives, self.starts, axis=1)


def ranking_statistic(score: Floats, target: NDArray[np.bool_]) -> Statistic:
    """AUC (ties count one half) and average precision (step-wise, no interpolation) of scores and truth (N, K)."""
    rankings = [Ranking.of(column, truth) for column, truth in zip(score.T, target.T, strict=True)]

    def statistic(weights: Floats) -> dict[str, Floats]:
        found = [_area_and_precision(*ranking.groups(weights)) for ranking in rankings]
        auc, precision = np.mean(found, axis=0)
        return {"auc": auc, "average_precision": precision}

    return statistic


def _area_and_precision(positives: Floats, negatives: Floats) -> tuple[Floats, Floats]:
    """AUC and average precision (B,) from the weights of each score group, highest score first."""
    true, false = positives.cumsum(axis=1), negatives.cumsum(axis=1)
    total, rest = true[:, -1], false[:, -1]
    # A positive outranks the negatives below its group and half of those within it.
    outranked = np.einsum("bg,bg->b", positives, rest[:, None] - false + 0.5 * negatives)
    called = true + false
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    with np.errstate(invalid="ignore"):
        return (
            outranked / np.where(total * rest > 0, total * rest, np.nan),
            np.einsum("bg,bg->b", positives, precision) / np.where(total * rest > 0, total, np.nan),
        )


def decision_statistic(decided: NDArray[np.bool_], target: NDArray[np.bool_], *, exclusive: bool) -> Statistic:
    """Accuracy, sensitivity, specificity, PPV, NPV and F1 of decisions and truth (N, K).

    `exclusive`: the K columns are classes that exclude each other, so a case is right when its one class is.
    PPV and NPV hold at the prevalence of these cases.
    """
    hits, truth, calls = (decided & target).astype(float), target.astype(float), decided.astype(float)

    def statistic(weights: Floats) -> dict[str, Floats]:
        total = weights.sum(axis=1, keepdims=True)
        true, positives, called = weights @ hits, weights @ truth, weights @ calls
        rejected = total - positives - called + true  # true negatives
        right = true.sum(axis=1) / total[:, 0] if exclusive else ((true + rejected) / total).mean(axis=1)
        return {
            "accuracy": right,
            "sensitivity": _mean_ratio(true, positives),
            "specificity": _mean_ratio(rejected, total - positives),
            "ppv": _mean_ratio(true, called),
            "npv": _mean_ratio(rejected, total - called),
            "f1": _mean_ratio(2 * true, positives + called),
        }

    return statistic


def brier_statistic(probability: Floats, target: NDArray[np.bool_], *, exclusive: bool) -> Statistic:
    """Brier score (Brier 1950) of probabilities and truth (N, K): squared error, averaged over cases.

    Over columns it is summed where they are `exclusive` classes, else averaged.
    """
    squared = (probability - target) ** 2
    error = squared.sum(axis=1) if exclusive else squared.mean(axis=1)
    return lambda weights: {"brier": weights @ error / weights.sum(axis=1)}


def together(*statistics: Statistic) -> Statistic:
    """All figures of several statistics, on the same draws."""
    return lambda weights: {name: values for one in statistics for name, values in one(weights).items()}


def _mean_ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Mean over columns of the ratios (B, K); NaN where any column has nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0).mean(axis=1)


def auc(score: Floats, target: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """AUC (B,) of scores and truth (N,) or (N, K) under weights (B, N), by default one draw of the cases as they are.

    NaN where a class is missing.
    """
    return _ranked(score, target, weights)["auc"]


def average_precision(score: Floats, target: NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Average precision (B,), arguments as for `auc`."""
    return _ranked(score, target, weights)["average_precision"]


def _ranked(score: Floats, target: NDArray[np.bool_], weights: Floats | None) -> dict[str, Floats]:
    rows = len(score)
    statistic = ranking_statistic(
        np.asarray(score, float).reshape(rows, -1), np.asarray(target, bool).reshape(rows, -1)
    )
    return statistic(np.ones((1, rows)) if weights is None else weights)
