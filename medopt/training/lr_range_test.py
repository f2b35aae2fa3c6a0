"""The learning-rate range test: one short training whose rate rises until the loss explodes (Smith 2017).

The loss as a function of the rate stays flat where steps are too small to matter, falls, turns, and explodes. The rate
suggested is half of that at the turn: the largest, with a margin, at which training still goes forward. It is a fresh
training of the study's own network, seed, batches and augmentation, so the same study gives the same answer, and
nothing has to be put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.records import Case
from medopt.core.reporter import Reporter, SilentReporter
from medopt.data.loaders import endless_steps
from medopt.training.hardware import open_fabric
from medopt.training.losses import build_loss
from medopt.training.step import Stepper, start_state

LOW, HIGH, STEPS = 1e-5, 10.0, 100
EXPLODED = 2.0
"""The test ends where the smoothed loss is this many times its best, and above its start."""
MEMORY = 0.8
"""Weight of what came before in the smoothed loss that ends the test."""
BLUR = 5.0
"""Standard deviation, in steps, of the smoothing (to both sides) from which the rate is chosen."""
MIN_FALL = 0.02
"""A loss that fell by less than this share of its start did not fall."""
BELOW_TURN, BELOW_EXPLOSION = 2.0, 10.0
"""How far below the turn the suggestion lies, and how far below the rate that exploded it has to lie."""


@dataclass(frozen=True, slots=True)
class RangeTest:
    """What was tried and what it suggests: entries of the four sequences belong together, a step each.

    `slope` is the change of the smoothed loss for each factor of e on the rate. `exploded` is the rate at which the
    test ended early, else None. `turn` is the rate of the smallest loss. `suggestion` is None where none made it fall.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    slope: tuple[float, ...]
    exploded: float | None
    turn: float
    suggestion: float | None
    reason: str

    def json_values(self) -> dict[str, JsonValue]:
        """As JSON holds it: a loss that is not finite becomes null."""
        names = ("rates", "losses", "smoothed", "slope")
        lists = {name: [value if math.isfinite(value) else None for value in getattr(self, name)] for name in names}
        single = {name: getattr(self, name) for name in ("suggestion", "reason", "turn", "exploded")}
        return single | lists


def range_test(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path],
    *,
    low: float = LOW,
    high: float = HIGH,
    steps: int = STEPS,
    reporter: Reporter | None = None,
) -> RangeTest:
    """Train afresh on the training `cases` for at most `steps` steps, at rates from `low` to `high`.

    The study's batch sizes must be numbers by now; its learning rate may be `auto`. Where the training split is too
    small for so many steps it is passed several times. Raises ConfigError where the rates or steps make no sense.
    """
    if not 0 < low < high or steps < 10:
        raise ConfigError(
            f"A range test goes from a lower to a higher rate in at least 10 steps, not from {low:g} to {high:g} in "
            f"{steps}."
        )
    rates, losses = [], []
    advance = (reporter or SilentReporter()).progress(steps, "learning-rate range test")
    watch = _Watch()
    for rate, loss in _train(study, cases, files, np.geomspace(low, high, steps)):
        rates.append(rate)
        losses.append(loss)
        advance(1, rate=f"{rate:.1e}", loss=f"{loss:.3f}")
        if watch.exploded(loss):
            break
    else:
        return judge(rates, losses, None)
    return judge(rates, losses, rates[-1])


def _train(
    study: Study, cases: Sequence[Case], files: Sequence[Path], rates: NDArray[np.float64]
) -> Iterator[tuple[float, float]]:
    """Rate and loss of one step after the other; the caller may stop at any of them."""
    number = study.training.optimizer.model_copy(update={"lr": float(rates[0])})
    study = study.model_copy(update={"training": study.training.model_copy(update={"optimizer": number})})
    fabric = open_fabric(study.training)
    torch.manual_seed(study.seed)
    stepper = Stepper(study, fabric, start_state(study, fabric), build_loss(study, cases))
    stepper.state.network.train()
    for rate, batch in zip(rates.tolist(), endless_steps(study, cases, files, fabric.device), strict=False):
        loss, _ = stepper.step(batch, rate)
        yield rate, float(loss)


class _Watch:
    """Whether the loss has exploded, from what came before alone: a test that is not worth going on with ends."""

    def __init__(self) -> None:
        self.seen, self.sum, self.start, self.best = 0, 0.0, math.nan, math.inf

    def exploded(self, loss: float) -> bool:
        """Take one more loss."""
        if not math.isfinite(loss):
            return True
        self.seen += 1
        self.sum = MEMORY * self.sum + (1 - MEMORY) * loss
        smooth = self.sum / (1 - MEMORY**self.seen)
        self.start = loss if self.seen == 1 else self.start
        self.best = min(self.best, smooth)
        return smooth > max(EXPLODED * self.best, self.start)


def judge(rates: Sequence[float], losses: Sequence[float], exploded: float | None) -> RangeTest:
    """What rates and losses, one a step, suggest; `exploded` is the rate that ended the test, if one did."""
    x, y = np.log(rates), np.array(losses, dtype=float)
    finite = np.isfinite(y)
    smoothed, slope = np.full(len(y), np.nan), np.full(len(y), np.nan)
    if finite.sum() >= 3:
        # One huge loss at the end would reach back by the smoothing and hide the turn.
        cut = np.minimum(y[finite], EXPLODED * max(y[finite][:10]))
        smoothed[finite], slope[finite] = _smooth(x[finite], cut)
    if not np.isfinite(smoothed).any():
        return _refused(rates, losses, smoothed, slope, exploded, float(rates[0]), "the loss was never a finite number")
    turn = int(np.nanargmin(smoothed))
    start = float(smoothed[0])
    if smoothed[turn] > (1 - MIN_FALL) * start:
        why = f"the loss fell nowhere by {MIN_FALL:.0%} of its start ({start:.3f})"
        return _refused(rates, losses, smoothed, slope, exploded, rates[turn], why)
    steepest = int(np.nanargmin(slope[: turn + 1]))
    limit = math.inf if exploded is None else exploded / BELOW_EXPLOSION
    suggestion = float(f"{min(rates[turn] / BELOW_TURN, limit):.1e}")
    reason = (
        f"the loss falls from {start:.3f}, fastest at {rates[steepest]:.1e}, and turns at {rates[turn]:.1e} "
        f"({smoothed[turn]:.3f}); {'nothing exploded' if exploded is None else f'it explodes at {exploded:.1e}'}. "
        + ("Half of the turn's rate." if suggestion < limit else "A tenth of the rate that exploded.")
    )
    return RangeTest(
        tuple(rates), tuple(losses), tuple(smoothed.tolist()), tuple(slope.tolist()), exploded, rates[turn], suggestion,
        reason,
    )  # fmt: skip


def _refused(
    rates: Sequence[float], losses: Sequence[float], smoothed: NDArray[np.float64], slope: NDArray[np.float64],
    exploded: float | None, turn: float, why: str,
) -> RangeTest:  # fmt: skip
    reason = f"No rate is suggested: {why}. Are the labels right, and is there anything to learn in so few steps?"
    return RangeTest(
        tuple(rates), tuple(losses), tuple(smoothed.tolist()), tuple(slope.tolist()), exploded, turn, None, reason
    )


def _smooth(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A line fitted around each step with Gaussian weights: its value and its slope there (both (N,))."""
    steps = np.arange(len(y))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / BLUR) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = weights @ x, weights @ y
    slope = (weights @ (x * y) - mean_x * mean_y) / (weights @ (x * x) - mean_x**2)
    return mean_y + slope * (x - mean_x), slope
