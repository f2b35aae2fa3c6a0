"""How far a number that a model gives may be from the truth, with a guarantee (split conformal prediction)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Margin:
    """How far an answer may be from the truth: `reach` on either side, in units of the output.

    A new patient's number lies within it with the probability `coverage` or more, where patients come as those of
    validation did. None: they are too few to promise that, and `note` says how many it takes.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    reach: float | None
    coverage: float
    patients: int
    note: str = ""


def conformal_margin(errors: Floats, patients: NDArray[Any], coverage: float) -> Margin:
    """The margin that the absolute errors (N,) of validation cases of `patients` (N,) give.

    A patient counts once, with the largest of its errors, so that the promise holds for all images of a new patient.
    The ceil((n + 1) * coverage)-th smallest of n patients' errors is the margin (split conformal; Vovk et al. 2005,
    Lei et al. 2018).

    >>> conformal_margin(np.arange(1.0, 40.0), np.arange(39), 0.95).reach
    38.0
    """
    names, index = np.unique(patients, return_inverse=True)
    largest = np.zeros(len(names))
    np.maximum.at(largest, index, np.abs(errors))
    count = len(names)
    rank = math.ceil((count + 1) * coverage - 1e-9)
    if rank <= count:
        return Margin(float(np.sort(largest)[rank - 1]), coverage, count)
    needed = math.ceil(coverage / (1 - coverage) - 1e-9)
    note = f"no interval: {count} validation patients cannot promise {coverage:.0%}, which takes {needed}"
    return Margin(None, coverage, count, note)
