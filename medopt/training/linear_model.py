"""A linear model with an L2 penalty on standardized features: what a network has to beat, and may begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from medopt.core.records import Task, is_exclusive

Floats = NDArray[np.float64]
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Inverse penalties that are tried: C of scikit-learn's LogisticRegression. Larger ones bring no more (four folds of
BUSI, AUC .9311 with 0.1 and .9315 with 0.3, log loss .333 and .367), and their larger weights suffer more from int8."""


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Logits (N, K) of features (N, F): `features @ weight.T + bias`; `strength` is the inverse penalty."""

    weight: Floats
    bias: Floats
    strength: float

    def logits(self, features: Floats) -> Floats:
        """(N, F) to (N, K)."""
        return features @ self.weight.T + self.bias


class LinearFit:
    """Logistic models of one table of features, or of a number linear ones, one for each strength of the penalty.

    Args:
        features: (N, F).
        targets: (N, K) zeros and ones: of a binary study K is 1, else one a label; NaN where a label is not known.
        task: a multiclass study's outputs share one softmax, those of a regression study are numbers (ridge
            regression); else each is a sigmoid of its own.
        weights: (N,) how much each row counts; None: 1.

    With more features than rows the problem is solved in the space of the rows, where it has the same solution.
    """

    def __init__(self, features: Floats, targets: Floats, task: Task, weights: Floats | None = None) -> None:
        self.mean, spread = features.mean(0), features.std(0)
        self.spread = np.where(spread > 1e-8, spread, np.inf)  # a constant feature says nothing
        standard = (features - self.mean) / self.spread
        self.basis: Floats | None = None
        if standard.shape[1] > standard.shape[0]:
            values, vectors = np.linalg.eigh(standard @ standard.T)  # of the rows: few, where features are many
            kept = values > 1e-10 * values.max()
            sizes = np.sqrt(values[kept])
            self.basis = (vectors[:, kept] / sizes).T @ standard
            standard = vectors[:, kept] * sizes
        self.labelled = ~np.isnan(targets)
        self.rows, self.targets, self.task = standard, np.where(self.labelled, targets, 0), task
        self.weights = np.ones(len(targets)) if weights is None else weights

    def model(self, strength: float) -> LinearModel:
        """The model with this inverse penalty."""
        count, outputs = self.rows.shape[1], self.targets.shape[1]
        start = np.zeros((count + 1) * outputs)
        options = {"maxiter": 500, "gtol": 1e-6}
        solved = minimize(self._loss, start, (strength,), "L-BFGS-B", jac=True, options=options).x
        own, bias = np.split(solved.reshape(count + 1, outputs), [count])
        whole = own if self.basis is None else self.basis.T @ own  # (F, K)
        weight = whole.T / self.spread
        return LinearModel(weight, bias[0] - weight @ self.mean, strength)

    def _loss(self, values: Floats, strength: float) -> tuple[float, Floats]:
        """Weighted cross-entropy summed over rows, with `|w|^2 / (2 strength)`; and its gradient.

        Of a number half the squared error.
        """
        outputs = self.targets.shape[1]
        weight, bias = np.split(values.reshape(-1, outputs), [self.rows.shape[1]])
        logits = self.rows @ weight + bias
        if is_exclusive(self.task):
            shifted = logits - logits.max(1, keepdims=True)
            total = np.log(np.exp(shifted).sum(1, keepdims=True))
            losses = -((shifted - total) * self.targets).sum(1)
            likely = np.exp(shifted - total)
        elif self.task == "regression":
            losses, likely = (((logits - self.targets) * self.labelled) ** 2).sum(1) / 2, logits
        else:
            losses = ((np.logaddexp(0, logits) - self.targets * logits) * self.labelled).sum(1)
            likely = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
        slope = self.weights[:, None] * (likely - self.targets) * self.labelled
        gradient = np.concatenate([self.rows.T @ slope + weight / strength, slope.sum(0, keepdims=True)])
        return float(self.weights @ losses + (weight**2).sum() / (2 * strength)), gradient.ravel()


def choose_strength(
    fit: LinearFit, score: Callable[[LinearModel], float], strengths: Sequence[float] = STRENGTHS
) -> tuple[LinearModel, float]:
    """The model whose `score` on validation is highest, the more penalized of equals, and that score."""
    scored = [(model, score(model)) for model in map(fit.model, sorted(strengths))]
    return max(scored, key=lambda pair: -np.inf if np.isnan(pair[1]) else pair[1])
