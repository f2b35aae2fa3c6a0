"""What a whole run gives back: its figures, its folder, and its place in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medopt.evaluation.compression_front import CompressionFront
from medopt.evaluation.run_metrics import RunMetrics


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run at its end. `seconds` is how long each stage took; `front` is that of `medopt compress`.

    `metrics.test.int8.auc` is the AUC of the int8 model on the test split, with its interval.
    """

    metrics: RunMetrics
    folder: Path
    mlflow_link: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    front: CompressionFront | None = None

    @property
    def release(self) -> Path | None:
        """The release folder; None if a verdict did not pass the model and nobody overrode it."""
        path = self.folder / "release"
        return path if path.is_dir() else None

    def summary(self) -> dict[str, Any]:
        """All of it as JSON: the values of `metrics.json` with folder, link and seconds."""
        values = {"folder": str(self.folder), "mlflow_link": self.mlflow_link, "stages": dict(self.seconds)}
        front = {"front": self.front.json_values()} if self.front else {}
        return self.metrics.json_values() | values | front
