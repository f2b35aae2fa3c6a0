"""Which labels are probably wrong: confident learning (Northcutt, Jiang & Chuang 2021) on probabilities of other cases.

A case is suspected where it belongs to another class as surely as the cases that are labelled so do on average. The
probabilities must come from a model that was not trained on the case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medopt.metrics.weighted import Floats

Classes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LabelIssues:
    """Of each case (N,): the class that is suggested, the normalized margin, and the rank among the suspected from 1.

    `suggested` is the given class and `rank` 0 where a case is not suspected. `margin` is the probability of the given
    class less the largest other one: the lower, the more suspicious.
    """

    suggested: Classes
    margin: Floats
    rank: Classes


def label_issues(probability: Floats, labels: Classes) -> LabelIssues:
    """Compare `labels` (N,), by class, with probabilities (N, K) of a model that has not seen these labels.

    >>> found = label_issues(np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.05, 0.95]]), np.array([0, 0, 1, 0]))
    >>> found.rank.tolist(), found.suggested.tolist()
    ([0, 0, 0, 1], [0, 0, 1, 1])
    """
    rows, classes = np.arange(len(labels)), probability.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=probability[rows, labels], minlength=classes)
    average = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)  # a class without cases is never confident
    sure = probability >= average - 1e-6
    guess = np.where(sure, probability, -1.0).argmax(axis=1)
    suspected = sure.any(axis=1) & (guess != labels) & (probability.argmax(axis=1) != labels)
    suggested = np.where(suspected, guess, labels).astype(np.int64)
    others = probability.copy()
    others[rows, labels] = -np.inf
    margin = probability[rows, labels] - others.max(axis=1)
    order = np.flatnonzero(suspected)[np.argsort(margin[suspected], kind="stable")]
    rank = np.zeros(len(labels), np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return LabelIssues(suggested, np.asarray(margin, np.float64), rank)
