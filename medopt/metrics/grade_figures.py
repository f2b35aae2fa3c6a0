"""Figures of a predicted grade: how far it is from the true one, and the weighted kappa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.metrics.bootstrap import Resampling, estimates
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import Floats, Index, Statistic, Weights


@dataclass(frozen=True, slots=True)
class GradeFigures:
    """How predicted grades agree with the true ones.

    `kappa` is the quadratically weighted kappa (Cohen 1968): 1 at best, 0 by chance. `distance` is the mean number of
    grades between them, `within_one` the share of cases that are at most one grade off.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    kappa: Estimate
    distance: Estimate
    within_one: Estimate


def grade_figures(
    decided: NDArray[np.int64], truth: NDArray[np.int64], patients: Index, how: Resampling
) -> GradeFigures:
    """Figures of grades (N,), N > 0, counted from 0. Intervals by patient bootstrap; of the share by Wilson's."""
    generator = np.random.default_rng(how["seed"])
    options = {"bootstrap": how["bootstrap"], "confidence": how["confidence"], "generator": generator}
    found = estimates(_statistic(decided, truth), patients, **options)  # type: ignore[arg-type]
    near = proportion(np.abs(decided - truth) <= 1, patients, how["confidence"], len(truth))
    return GradeFigures(**found, within_one=near)


def _statistic(decided: NDArray[np.int64], truth: NDArray[np.int64]) -> Statistic:
    """Kappa and the mean distance, from weights (B, N)."""
    off = np.abs(decided - truth).astype(np.float64)
    columns = np.stack([off, off**2, decided, decided**2, truth, truth**2], axis=1)

    def statistic(weights: Weights) -> dict[str, Floats]:
        distance, squared, one, one_squared, other, other_squared = (weights @ columns / weights.sum(1)[:, None]).T
        by_chance = one_squared - 2 * one * other + other_squared  # of grades that are drawn independently
        with np.errstate(invalid="ignore", divide="ignore"):
            kappa = 1 - squared / np.where(by_chance > 1e-12, by_chance, np.nan)
        return {"kappa": kappa, "distance": distance}

    return statistic
