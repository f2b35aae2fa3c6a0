"""Calibration: how a model's logits become probabilities. Fitted on validation, applied here and nowhere else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.special import logit, softmax

from medopt.config import Task
from medopt.core.errors import ConfigError
from medopt.evaluation.calibration import fit_temperature, probabilities, targets
from medopt.evaluation.isotonic import Curve, fit_curve

Method = Literal["temperature", "isotonic", "none"]
LEAST_CASES, LEAST_OF_A_CLASS = 200, 50


@dataclass(frozen=True, slots=True)
class Calibration:
    """How logits (N, K) become probabilities (N, K).

    temperature: one number divides all logits (Guo et al. 2017). isotonic: a rising curve an output, of the logit, or
    of the softmax's probability where classes exclude each other, which are then scaled to a sum of one (Zadrozny &
    Elkan 2002). none: as the network gives them.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: Method = "none"
    temperature: float = 1.0
    curves: tuple[Curve, ...] = ()
    note: str = ""

    def probabilities(self, logits: NDArray[np.floating], task: Task) -> NDArray[np.float64]:
        """Calibrated probabilities (N, K); raises DataError where a logit is not a finite number."""
        plain = probabilities(logits, self.temperature, task)
        if self.method != "isotonic":
            return plain
        position = plain if task == "multiclass" else np.asarray(logits, dtype=np.float64)
        found = np.stack([curve.at(column) for curve, column in zip(self.curves, position.T, strict=True)], axis=1)
        return found / found.sum(axis=1, keepdims=True) if task == "multiclass" else found

    def logits(self, logits: NDArray[np.floating], task: Task) -> NDArray[np.float64]:
        """Logits whose sigmoid or softmax is the calibrated probability: what may be averaged over models."""
        if self.method != "isotonic":
            return np.asarray(logits, dtype=np.float64) / self.temperature
        found = self.probabilities(logits, task)
        return np.asarray(np.log(found) if task == "multiclass" else logit(found))

    def as_dict(self) -> dict[str, Any]:
        """The form that `metrics.json` carries."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Calibration:
        """From what `as_dict` gave, read back from JSON."""
        curves = tuple(Curve(tuple(one["position"]), tuple(one["probability"])) for one in facts["curves"])
        return cls(facts["method"], facts["temperature"], curves, facts["note"])

    def told(self) -> str:
        """In a few words: temperature 1.34, isotonic (12 steps), none."""
        if self.method == "temperature":
            return f"temperature {self.temperature:.4g}"
        if self.method == "isotonic":
            return f"isotonic ({', '.join(str(len(curve.position)) for curve in self.curves)} points)"
        return "no calibration"


UNCALIBRATED = Calibration()


def fit_calibration(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    task: Task,
    method: Method = "temperature",
    *,
    enough: bool = False,
) -> Calibration:
    """Fit a calibration on validation cases: logits (N, K), labels (N,) or (N, K).

    Raises ConfigError where isotonic is asked of too few cases (`refuse_few`), unless `enough` says that they are.
    """
    if method == "none":
        return UNCALIBRATED
    if method == "temperature":
        return Calibration("temperature", fit_temperature(logits, labels, task))
    if not enough:
        refuse_few(labels, logits.shape[1], task)
    target = targets(labels, logits.shape[1], task)
    position = softmax(logits, axis=1) if task == "multiclass" else np.asarray(logits, dtype=np.float64)
    columns = zip(position.T, target.T, strict=True)
    return Calibration("isotonic", 1.0, tuple(fit_curve(column, truth) for column, truth in columns))


def refuse_few(labels: NDArray[np.int64], outputs: int, task: Task) -> None:
    """Raise ConfigError where validation is too small for an isotonic curve, which has a freedom a case."""
    target = targets(labels, outputs, task)
    rarest = int(min(target.sum(axis=0).min(), (~target).sum(axis=0).min())) if len(target) else 0
    if len(target) < LEAST_CASES or rarest < LEAST_OF_A_CLASS:
        raise ConfigError(
            f"evaluation.calibration: isotonic needs {LEAST_CASES} validation cases and {LEAST_OF_A_CLASS} of each "
            f"class, or it follows their noise; validation holds {len(target)}, and {rarest} of the rarest. Set it to "
            "temperature, which has one number to fit, or give validation more cases."
        )
