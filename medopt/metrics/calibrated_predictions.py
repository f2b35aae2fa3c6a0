"""Predictions seen through what was fitted on validation: what every figure and every picture is computed from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medopt.core.number_scale import NumberScale
from medopt.core.records import Predictions, Task, is_exclusive
from medopt.metrics.calibration import UNCALIBRATED, Calibration, targets, truth
from medopt.metrics.numbers import Margin
from medopt.metrics.thresholds import OperatingPoint
from medopt.metrics.weighted import Floats, Index

COMPUTED = ("patients", "probability", "truth", "target", "decided", "undecided", "wrong")
UNDECIDED = OperatingPoint(0.5, "fixed", "no operating point was chosen")


@dataclass(frozen=True)
class CalibratedPredictions:
    """One model's predictions with its calibration and operating point. All tables are (N, K), one column an output.

    Raises DataError on first use where a logit is not a finite number.
    """

    predictions: Predictions
    task: Task
    calibration: Calibration = UNCALIBRATED
    operating_point: OperatingPoint = UNDECIDED
    scale: NumberScale | None = None
    """How an output of a regression study becomes a number."""
    margin: Margin | None = None
    """How far that number may be from the truth."""

    @cached_property
    def probability(self) -> NDArray[np.float64]:
        """Calibrated probabilities."""
        return self.calibration.probabilities(self.predictions.logits, self.task)

    @cached_property
    def score(self) -> NDArray[np.float64]:
        """What cases are ranked by: logits, since a sigmoid makes ties of the surest; the probability of a softmax."""
        probability = self.probability
        return probability if is_exclusive(self.task) else self.predictions.logits

    @cached_property
    def truth(self) -> Floats:
        """The truth, 0 or 1, and NaN where a label is not known."""
        return truth(self.predictions.labels, self.predictions.logits.shape[1], self.task)

    @property
    def judged(self) -> CalibratedPredictions:
        """The cases that a figure can count: those of which any label is known."""
        unknown = np.isnan(self.truth).all(axis=1)
        return self.where(np.flatnonzero(~unknown)) if unknown.any() else self

    @cached_property
    def target(self) -> NDArray[np.bool_]:
        """The truth; raises DataError where a label is not known."""
        return targets(self.predictions.labels, self.predictions.logits.shape[1], self.task)

    def of_output(self, output: int) -> tuple[CalibratedPredictions, NDArray[np.bool_]]:
        """The rows at which the truth of an output is known, and that truth (M,)."""
        column = self.truth[:, output]
        known = ~np.isnan(column)
        return self if known.all() else self.where(known), column[known] == 1

    def where(self, mask: NDArray[np.bool_] | NDArray[np.intp]) -> CalibratedPredictions:
        """The rows at which `mask` (N,) holds, or the rows of an index, in its order."""
        found = replace(self, predictions=self.predictions.where(mask))
        # What was computed of these rows already holds for them.
        found.__dict__.update({name: self.__dict__[name][mask] for name in COMPUTED if name in self.__dict__})
        return found

    @cached_property
    def patients(self) -> Index:
        """A number (N,) for each case's patient, not below 0."""
        return np.unique(self.predictions.patient_id, return_inverse=True)[1].astype(np.intp)

    @cached_property
    def undecided(self) -> NDArray[np.bool_]:
        """Which cases (N,) the operating point leaves undecided; of a multi-label study which labels (N, K)."""
        return self.operating_point.undecided(self.probability)

    @property
    def numbers(self) -> tuple[Floats, Floats] | None:
        """Predicted and true numbers, each (N,), of a regression study."""
        if self.scale is None or self.predictions.numbers is None:
            return None
        return self.scale.numbers(self.predictions.logits[:, 0]), self.predictions.numbers

    @property
    def inside(self) -> NDArray[np.bool_] | None:
        """Which true numbers (N,) lie within the promised interval; None where none is promised."""
        if self.scale is None or self.predictions.numbers is None or self.margin is None or self.margin.reach is None:
            return None
        apart = np.abs(self.predictions.logits[:, 0] - self.scale.outputs(self.predictions.numbers))
        return np.asarray(apart <= self.margin.reach)

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """Which cases (N,) are decided wrongly; of a multi-label study those of which any known label is."""
        return np.asarray((np.where(self.decided, self.truth == 0, self.truth == 1)).any(axis=1))

    @cached_property
    def decided(self) -> NDArray[np.bool_]:
        """The decisions at the operating point."""
        return targets(self.operating_point.decide(self.probability), self.probability.shape[1], self.task)
