"""What more training patients would bring: an inverse power law through the AUCs of runs of different sizes.

AUC(n) = a - b * n^-c (Figueroa et al. 2012, Predicting sample size required for classification performance). For every
c of a grid, a and b are those of least squares, with a <= 1 and b >= 0. The interval of a prediction refits the law to
draws: the runs' common test patients move all AUCs together, and each run scatters by its residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from medopt.core.records import Estimate
from medopt.metrics.weighted import Floats

EXPONENTS = np.geomspace(0.05, 2.0, 80)
DRAWS = 2000
MIN_SIZES = 3


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """AUC(n) = asymptote - slope * n^-exponent, and what the same law says of other draws (B,)."""

    asymptote: float
    slope: float
    exponent: float
    drawn: tuple[Floats, Floats, Floats]
    runs: int

    def at(self, patients: float, confidence: float = 0.95) -> Estimate:
        """The AUC that so many training patients would reach, with its interval over draws."""
        value = _law(self.asymptote, self.slope, self.exponent, patients)
        low, high = np.quantile(_law(*self.drawn, patients), [(1 - confidence) / 2, (1 + confidence) / 2])
        return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)), self.runs)


def _law(asymptote: Floats | float, slope: Floats | float, exponent: Floats | float, patients: float) -> Floats:
    return np.clip(asymptote - slope * patients ** -np.asarray(exponent, np.float64), 0, 1)


def fit_learning_curve(
    patients: NDArray[np.floating], auc: NDArray[np.floating], error: float, generator: np.random.Generator
) -> LearningCurve:
    """Fit the law to runs (M,) of so many training `patients`; `error` is the AUCs' standard error on the logit scale.

    Raises ValueError where there are fewer than MIN_SIZES different sizes, or no more runs than that.
    """
    sizes, values = np.asarray(patients, np.float64), np.asarray(auc, np.float64)
    if len(np.unique(sizes)) < MIN_SIZES or len(sizes) <= MIN_SIZES:
        raise ValueError(
            f"a learning curve takes {MIN_SIZES + 1} runs or more at {MIN_SIZES} or more different numbers of training "
            f"patients; these are {len(sizes)} runs at {len(np.unique(sizes))}"
        )
    (asymptote,), (slope,), (exponent,) = _fit(sizes, values[None])
    fitted = np.clip(_on(sizes, asymptote, slope, exponent), 1e-4, 1 - 1e-4)
    apart = logit(np.clip(values, 1e-4, 1 - 1e-4)) - logit(fitted)
    scatter = float(np.sqrt((apart**2).sum() / (len(sizes) - MIN_SIZES)))
    common = error * generator.normal(size=(DRAWS, 1))
    moved = logit(fitted) + common + scatter * generator.normal(size=(DRAWS, len(sizes)))
    return LearningCurve(float(asymptote), float(slope), float(exponent), _fit(sizes, expit(moved)), len(sizes))


def _on(sizes: Floats, asymptote: float, slope: float, exponent: float) -> Floats:
    return np.asarray(asymptote - slope * sizes**-exponent)


def _fit(sizes: Floats, values: Floats) -> tuple[Floats, Floats, Floats]:
    """Asymptote, slope and exponent (B,) of least squares for each row of AUCs (B, M)."""
    best = np.full(len(values), np.inf)
    asymptote, slope, exponent = (np.zeros(len(values)) for _ in range(3))
    for c in EXPONENTS:
        x = sizes**-c
        deviation = x - x.mean()
        b = np.maximum(0.0, -(values @ deviation) / (deviation @ deviation))
        a = values.mean(axis=1) + b * x.mean()
        over = a > 1
        b = np.where(over, np.maximum(0.0, ((1 - values) @ x) / (x @ x)), b)
        a = np.minimum(a, 1.0)
        errors = ((values - a[:, None] + b[:, None] * x) ** 2).sum(axis=1)
        better = errors < best - 1e-15
        best = np.where(better, errors, best)
        asymptote, slope = np.where(better, a, asymptote), np.where(better, b, slope)
        exponent = np.where(better, c, exponent)
    return asymptote, slope, exponent
