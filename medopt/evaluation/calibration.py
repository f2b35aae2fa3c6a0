"""Calibration: from logits to probabilities, by one temperature that is fitted on validation.

Guo et al. 2017, On Calibration of Modern Neural Networks (ICML): the temperature divides all logits, so no decision
of a multi-class model and no ranking of a binary one changes; only the confidence does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from medopt.config import Task
from medopt.core.errors import DataError

TEMPERATURE_RANGE = (0.05, 20.0)


def targets(labels: NDArray[np.int64], outputs: int, task: Task) -> NDArray[np.bool_]:
    """One column of truth for each output: (N, K). Binary: is it the finding; multi-class: one-hot."""
    if task == "multilabel":
        return labels.reshape(len(labels), -1) == 1
    if task == "multiclass":
        return labels[:, None] == np.arange(outputs)
    return labels.reshape(-1, 1) == 1


def probabilities(logits: NDArray[np.floating], temperature: float, task: Task) -> NDArray[np.float64]:
    """Calibrated probabilities (N, K) of logits (N, K): softmax over the classes, or a sigmoid for each output.

    Raises DataError where a logit is not a finite number: no probability may come out of it.
    """
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise DataError(f"{bad} of {len(logits)} cases have a logit that is not a finite number; the model is damaged.")
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return np.asarray(softmax(scaled, axis=1) if task == "multiclass" else expit(scaled))


def negative_log_likelihood(
    logits: NDArray[np.floating], target: NDArray[np.bool_], temperature: float, task: Task
) -> float:
    """Mean over cases (and over labels of a multi-label study), in nats. `target` is (N, K) of `targets`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if task == "multiclass":
        return float(-log_softmax(scaled, axis=1)[target].mean())
    return float(-log_expit(np.where(target, scaled, -scaled)).mean())


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64], task: Task) -> float:
    """The temperature with the least negative log-likelihood, sought in log T within TEMPERATURE_RANGE.

    `logits` (N, K), `labels` (N,) or (N, K). Where the likelihood has no minimum the model is left as it is (1.0):
    no cases, one class only, logits that are all equal to zero, or every case already on its right side, which
    would drive the temperature to zero and every probability to certainty.
    """
    target = targets(labels, logits.shape[1], task)
    one_class = task != "multiclass" and target.all() == target.any()
    if (
        len(labels) == 0
        or one_class
        or len(np.unique(labels)) == 1
        or _separated(logits, target, task)
        or not logits.any()
    ):
        return 1.0
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, target, float(np.exp(log_t)), task),
        bounds=tuple(np.log(TEMPERATURE_RANGE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def _separated(logits: NDArray[np.floating], target: NDArray[np.bool_], task: Task) -> bool:
    """Whether every logit is on its right side (multi-class: the true class is the highest)."""
    if task == "multiclass":
        return bool((logits[target] > np.where(target, -np.inf, logits).max(axis=1)).all())
    return bool((np.where(target, logits, -logits) > 0).all())
