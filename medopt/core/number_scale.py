"""A number as a network's output: the distance from a threshold in units of a spread.

Above 0 the number lies above the threshold, so that all that holds for the output of a yes-or-no question holds for
this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NumberScale:
    """How an output becomes a number: `threshold` is the number at 0, `spread` the step of 1 on the scale.

    `quantity` says what it is, `code` its concept in DICOM results (VALUE^SCHEME^MEANING) and `unit` its unit, a UCUM
    code.

    >>> volume = NumberScale("log", threshold=3000.0, spread=0.13, unit="mm3")
    >>> volume.numbers(volume.outputs([3000.0, 3500.0])).round(6).tolist()
    [3000.0, 3500.0]
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}  # where a file is read into it

    scale: Literal["linear", "log"]
    threshold: float
    spread: float
    unit: str = "1"
    quantity: str = ""
    code: str = ""

    def outputs(self, numbers: Any) -> Floats:
        """Numbers to outputs, of any shape."""
        values = np.asarray(numbers, np.float64)
        if self.scale == "log":
            return np.asarray((np.log(values) - math.log(self.threshold)) / self.spread)
        return np.asarray((values - self.threshold) / self.spread)

    def numbers(self, outputs: Any) -> Floats:
        """Outputs to numbers, of any shape."""
        steps = np.asarray(outputs, np.float64) * self.spread
        if self.scale == "log":
            return np.asarray(self.threshold * np.exp(np.clip(steps, -700, 700)))
        return np.asarray(self.threshold + steps)
