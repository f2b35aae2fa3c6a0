"""Figures of a predicted number: error, agreement with the truth, and how often the promised interval holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import Estimate
from medopt.metrics.bootstrap import Resampling, estimates
from medopt.metrics.proportions import proportion
from medopt.metrics.weighted import Floats, Index, Statistic, Weights

LIMITS = 1.96
"""Standard deviations on either side of the bias: 95 % of differences, were they normal (Bland & Altman 1986)."""


@dataclass(frozen=True, slots=True)
class NumberFigures:
    """How a predicted number agrees with the truth, in its own unit; a difference is predicted less true.

    `mae` and `rmse` are the mean absolute and the root mean square error, `r2` the share of the variance that is
    explained (1 at best, below 0 where the mean would be better). `bias` is the mean difference, `lower` and `upper`
    are the limits of agreement around it (Bland & Altman 1986). `covered` is the share of cases whose number lies
    within the interval that the answer promises; None where it promises none. `unit` is a UCUM code.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # where a file is read into it

    mae: Estimate
    rmse: Estimate
    r2: Estimate
    bias: Estimate
    lower: Estimate
    upper: Estimate
    covered: Estimate | None
    unit: str


def number_figures(
    predicted: Floats, truth: Floats, patients: Index, inside: NDArray[np.bool_] | None, unit: str, how: Resampling
) -> NumberFigures:
    """Figures of numbers (N,), N > 0; `inside` (N,) says which true numbers lie within the promised interval.

    Intervals by patient bootstrap, that of `covered` by Wilson's with clustered variance.
    """
    generator = np.random.default_rng(how["seed"])
    options = {"bootstrap": how["bootstrap"], "confidence": how["confidence"], "generator": generator}
    found = estimates(_statistic(predicted, truth), patients, **options)  # type: ignore[arg-type]
    covered = None if inside is None else proportion(inside, patients, how["confidence"], len(truth))
    return NumberFigures(**found, covered=covered, unit=unit)


def _statistic(predicted: Floats, truth: Floats) -> Statistic:
    """All but the coverage, from weights (B, N)."""
    error, centred = predicted - truth, truth - truth.mean()
    columns = np.stack([np.abs(error), error, error**2, centred, centred**2], axis=1)

    def statistic(weights: Weights) -> dict[str, Floats]:
        count = weights.sum(axis=1)
        absolute, bias, squared, mean, variance = (weights @ columns / count[:, None]).T
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.sqrt(np.maximum(squared - bias**2, 0) * count / (count - 1))
            explained = 1 - squared / np.where(variance - mean**2 > 0, variance - mean**2, np.nan)
        return {
            "mae": absolute,
            "rmse": np.sqrt(squared),
            "r2": explained,
            "bias": bias,
            "lower": bias - LIMITS * spread,
            "upper": bias + LIMITS * spread,
        }

    return statistic


def error_change(before: Floats, after: Floats, truth: Floats, patients: Index, how: Resampling) -> Estimate:
    """How much larger the mean absolute error of `after` is than that of `before`, all (N,), on the same cases.

    As a share of the standard deviation of the truth; paired, with an interval by patient bootstrap.
    """
    spread = float(truth.std())
    change = (np.abs(after - truth) - np.abs(before - truth)) / (spread if spread > 0 else np.nan)

    def statistic(weights: Weights) -> dict[str, Floats]:
        return {"change": weights @ change / weights.sum(axis=1)}

    generator = np.random.default_rng(how["seed"])
    options = {"bootstrap": how["bootstrap"], "confidence": how["confidence"], "generator": generator}
    return estimates(statistic, patients, **options)["change"]  # type: ignore[arg-type]
