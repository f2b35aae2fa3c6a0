"""The probe of a pretraining: how well the nearest neighbours of labelled images say their label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medopt.core.records import Case, Task, is_exclusive, label_table
from medopt.data.cache import as_tensor
from medopt.metrics.nearest_neighbours import neighbour_scores
from medopt.metrics.weighted import auc

MAX_IMAGES = 2000
"""Labelled images of a probe, drawn from the seed; more hardly move its figure."""
_BATCH = 32


@dataclass(frozen=True, slots=True)
class NeighbourProbe:
    """Labelled prepared images: those of validation are judged by those of training, without one by all others.

    An image of the same patient never votes. cases and files are parallel; all have a label of `labels`.
    """

    cases: tuple[Case, ...]
    files: tuple[Path, ...]
    labels: tuple[str, ...]
    task: Task

    @classmethod
    def of(
        cls, cases: Sequence[Case], files: Sequence[Path], labels: tuple[str, ...], task: Task, seed: int
    ) -> NeighbourProbe | None:
        """The probe of those of the cases of which a label is known; None where no two of them differ."""
        rows = [row for row, case in enumerate(cases) if any(label is not None for label in case.label)]
        if len(rows) > MAX_IMAGES:
            rows = sorted(np.random.default_rng(seed).choice(rows, MAX_IMAGES, replace=False).tolist())
        if len({cases[row].label for row in rows}) < 2:
            return None
        return cls(tuple(cases[row] for row in rows), tuple(files[row] for row in rows), labels, task)

    def score(self, backbone: nn.Module, device: torch.device) -> float | None:
        """AUC of the neighbours' votes, a mean over labels that have both answers; None where there is none.

        The network is left in the mode it came in.
        """
        features, targets = self._features(backbone, device), self._targets()
        patients = np.array([case.patient_id for case in self.cases])
        judged = np.array([case.split == "val" for case in self.cases])
        voters, asked = (~judged, judged) if judged.any() and not judged.all() else (slice(None), slice(None))
        same = patients[asked][:, None] == patients[voters][None, :]
        scores = neighbour_scores(features[voters], targets[voters], features[asked], same)
        wanted = targets[asked]
        defined = (wanted == 0).any(0) & (wanted == 1).any(0)  # labels whose AUC can be computed
        return float(auc(scores[:, defined], wanted[:, defined])[0]) if defined.any() else None

    def _targets(self) -> NDArray[np.float64]:
        """(N, K) zeros and ones, NaN where a label is not known; one column for a binary question."""
        if is_exclusive(self.task):
            return np.eye(len(self.labels))[[case.class_index for case in self.cases]]
        return label_table(self.cases)

    @torch.no_grad()
    def _features(self, backbone: nn.Module, device: torch.device) -> NDArray[np.float64]:
        mode = backbone.training
        backbone.eval()
        parts = [
            backbone(torch.stack([as_tensor(file) for file in self.files[at : at + _BATCH]]).to(device)).float().cpu()
            for at in range(0, len(self.files), _BATCH)
        ]
        backbone.train(mode)
        return torch.cat(parts).double().numpy()
