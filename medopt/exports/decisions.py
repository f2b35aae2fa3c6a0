"""Logits of an exported model to the release's probabilities and decisions, from the `medopt.json` beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medopt.core.errors import ReleaseError
from medopt.core.records import Task, has_one_output
from medopt.core.telemetry import without_telemetry
from medopt.exports.folder import FACTS
from medopt.metrics.calibration import Calibration
from medopt.release.layout import Kind, ModelInfo
from medopt.release.predictor import decisions_of

with without_telemetry():
    from monai.transforms import Transform


@dataclass(frozen=True, slots=True)
class Decider:
    """What one model's logits mean."""

    labels: list[str]
    task: Task
    calibration: Calibration
    model: ModelInfo

    @classmethod
    def read(cls, folder: Path, kind: Kind) -> Decider:
        """From an export's folder; raises ReleaseError where it is not one, or does not have the model."""
        try:
            facts = json.loads((folder / FACTS).read_bytes())
            model = ModelInfo.model_validate(facts["models"][kind])
            return cls(facts["labels"], facts["task"], model.calibration, model)
        except (OSError, ValueError, KeyError) as error:
            raise ReleaseError(f"{folder} holds no export with a {kind} model ({error!r}).") from None

    def probabilities(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the labels (N, labels) from logits (N, K)."""
        table = self.calibration.probabilities(np.asarray(logits, np.float64), self.task)
        return np.hstack([1 - table, table]) if has_one_output(self.task) else table

    def decisions(self, logits: ArrayLike) -> list[str]:
        """The decision on each case, as a release's answer has it."""
        table = self.calibration.probabilities(np.asarray(logits, np.float64), self.task)
        return list(decisions_of(self.labels, self.task, self.model.operating_point, table))


class ToProbabilities(Transform):
    """Logits (K,) of one case to the probabilities of its labels: the last step of an exported MONAI bundle."""

    def __init__(self, folder: str, kind: Kind = "float") -> None:
        self.decider = Decider.read(Path(folder), kind)

    def __call__(self, logits: Tensor) -> Tensor:
        """(K,) to (labels,)."""
        return torch.from_numpy(self.decider.probabilities(logits.detach().cpu().numpy()[None])[0])
