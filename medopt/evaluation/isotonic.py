"""Isotonic regression: the rising step curve nearest to the outcomes, by pooling adjacent violators.

Ayer et al. 1955; for calibration Zadrozny & Elkan 2002. Between the ends of two pooled blocks it is a straight line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.optimize import isotonic_regression

from medopt.evaluation.metrics import Floats


@dataclass(frozen=True, slots=True)
class Curve:
    """A rising curve through points; flat beyond its ends."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    position: tuple[float, ...]
    probability: tuple[float, ...]

    def at(self, position: Floats) -> Floats:
        """The curve at `position` (N,)."""
        return np.interp(position, self.position, self.probability)


def fit_curve(position: Floats, positive: NDArray[np.bool_]) -> Curve:
    """Fit the curve to outcomes (N,) at positions (N,), N > 0.

    No probability of 0 or 1 comes out of N cases: the curve is held within 1 / (N + 2) of both (Laplace).
    """
    levels, index, counts = np.unique(position, return_inverse=True, return_counts=True)
    observed = np.bincount(index, weights=positive) / counts
    fitted = isotonic_regression(observed, weights=counts).x
    least = 1 / (len(position) + 2)
    held = np.clip(fitted, least, 1 - least)
    # The two ends of each flat block are all that the curve needs.
    change = np.diff(held) > 0
    kept = np.append(True, change) | np.append(change, True)
    return Curve(tuple(levels[kept].tolist()), tuple(held[kept].tolist()))
