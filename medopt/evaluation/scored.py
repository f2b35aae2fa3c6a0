"""Predictions seen through what was fitted on validation: what every figure and every picture is computed from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medopt.config import Task
from medopt.evaluation.calibration import probabilities, targets
from medopt.evaluation.thresholds import OperatingPoint
from medopt.records import Predictions

UNDECIDED = OperatingPoint(0.5, "fixed", "no operating point was chosen")


@dataclass(frozen=True)
class Scored:
    """One model's predictions with its temperature and operating point. All tables are (N, K), one column an output.

    Raises DataError on first use where a logit is not a finite number.
    """

    predictions: Predictions
    task: Task
    temperature: float = 1.0
    operating_point: OperatingPoint = UNDECIDED

    @cached_property
    def probability(self) -> NDArray[np.float64]:
        """Calibrated probabilities."""
        return probabilities(self.predictions.logits, self.temperature, self.task)

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """What cases are ranked by: logits, since a sigmoid makes ties of the surest; the probability of a softmax."""
        probability = self.probability
        return probability if self.task == "multiclass" else self.predictions.logits

    @cached_property
    def target(self) -> NDArray[np.bool_]:
        """The truth."""
        return targets(self.predictions.labels, self.predictions.logits.shape[1], self.task)

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """The decisions at the operating point."""
        return targets(self.operating_point.decide(self.probability), self.probability.shape[1], self.task)
