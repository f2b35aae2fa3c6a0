"""A slope and a bias that turn logits into probabilities, fitted by maximum likelihood.

A temperature is a slope alone: it cannot move a mean, so it leaves the shift that class weights, balanced sampling or
another prevalence give to every probability. Platt 1999 adds the bias, and counts the N cases of a class as N + 1 of
N + 2, so that classes which do not overlap get no certainty. Of classes that exclude each other all share one slope and
each has a bias of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_softmax

from medopt.metrics.weighted import Floats

LEAST = 10
"""Cases of each class from which a bias is fitted; it would follow the noise of fewer."""
_LIMITS = (np.log(1 / 20), np.log(20))  # of the slope's logarithm


def fit_binary(logits: Floats, positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and bias of one output's logits (N,), of which `positive` (N,) have the finding."""
    counts = np.array([(~positive).sum(), positive.sum()])
    target = np.where(positive, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))

    def loss(point: Floats) -> float:
        scaled = np.exp(point[0]) * logits + point[1]
        return float(-(target * log_expit(scaled) + (1 - target) * log_expit(-scaled)).mean())

    slope, bias = _minimum(loss, 2)
    return float(np.exp(slope)), float(bias)


def fit_classes(logits: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """The slope, and the biases (K,) with a mean of 0, of logits (N, K) of classes that exclude each other."""
    outputs = logits.shape[1]
    counts = np.bincount(labels, minlength=outputs)[labels][:, None]
    target = (1 + counts * (labels[:, None] == np.arange(outputs))) / (counts + outputs)

    def loss(point: Floats) -> float:
        return float(-(target * log_softmax(np.exp(point[0]) * logits + point[1:], axis=1)).sum(axis=1).mean())

    found = _minimum(loss, 1 + outputs)
    return float(np.exp(found[0])), found[1:] - found[1:].mean()


def _minimum(loss: object, size: int) -> Floats:
    from scipy.optimize import minimize  # fitting alone takes the time of its import

    bounds = [_LIMITS, *[(-50.0, 50.0)] * (size - 1)]
    found: Floats = minimize(loss, np.zeros(size), method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    return found
