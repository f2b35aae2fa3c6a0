"""Learning rates as pure functions of the step (and, for plateau, of what validation has shown so far).

Nothing is kept between steps, so a resumed run cannot have another rate than an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from medopt.config import Schedule
from medopt.training.early_stopping import improvements


def learning_rate(
    config: Schedule, base: float, step: int, steps_per_epoch: int, epochs: int, scores: Sequence[float] = ()
) -> float:
    """The rate at `step` (from 0) of epochs * steps_per_epoch; `scores` are the epochs' validation scores so far."""
    total = max(1, epochs * steps_per_epoch)
    match config.name:
        case "constant":
            return base * _warmup(step, config.warmup * total)
        case "cosine":
            return base * _warmup(step, config.warmup * total) * _cosine_from(config, base, step, total)
        case "cosine_restarts":
            return _restarts(config, base, step / steps_per_epoch)
        case "one_cycle":
            return one_cycle(base, step, total, config.warmup)
        case "plateau":
            return max(config.eta_min, base * config.factor ** plateau_drops(scores, config.patience))


def _warmup(step: int, length: float) -> float:
    return min(1.0, (step + 1) / length) if length >= 1 else 1.0


def _cosine_from(config: Schedule, base: float, step: int, total: int) -> float:
    start = config.warmup * total
    share = min(1.0, max(0.0, step - start) / max(1.0, total - start))
    return (config.eta_min + (base - config.eta_min) * (1 + math.cos(math.pi * share)) / 2) / base


def _restarts(config: Schedule, base: float, epoch: float) -> float:
    """Cosine with warm restarts, cycles of t_0 * t_mult ** i epochs (Loshchilov & Hutter 2017, equation 5)."""
    length = float(config.t_0)
    while epoch >= length:
        epoch -= length
        length *= config.t_mult
    return config.eta_min + (base - config.eta_min) * (1 + math.cos(math.pi * epoch / length)) / 2


def one_cycle(peak: float, step: int, total: int, warmup: float) -> float:
    """Up from peak / 25 to the peak, down to peak / 250 000, both as half cosines (Smith & Topin 2019)."""
    start, end = peak / 25, peak / 250_000
    rise = warmup * total
    if step < rise:
        return start + (peak - start) * (1 - math.cos(math.pi * step / rise)) / 2
    share = min(1.0, (step - rise) / max(1.0, total - 1 - rise))
    return end + (peak - end) * (1 + math.cos(math.pi * share)) / 2


def plateau_drops(scores: Sequence[float], patience: int) -> int:
    """How often the rate has fallen: once for every `patience` epochs in a row without a new best score."""
    drops = waited = 0
    for better in improvements(scores):
        waited = 0 if better else waited + 1
        if waited == patience:
            drops, waited = drops + 1, 0
    return drops
