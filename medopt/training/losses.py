"""Cross-entropy and focal loss on logits, by task, for hard, smoothed and mixed targets; a teacher's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.records import Case, label_table

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(study: Study, cases: Sequence[Case]) -> Loss:
    """The study's loss: (logits (N, K), targets (N, K) in 0..1) to one value a case, (N,).

    A value a case, so that micro-batches and processes of any size add up to the same step. A target that is NaN is not
    known: it adds nothing, and all others count alike, so that the mean over the training cases is that over their
    known labels. Smoothing moves targets
    toward 1/2 (binary, multi-label) or 1/K (multi-class; Szegedy et al. 2016). The focal loss weighs a case by how far
    its probability is from its target, to the power of gamma (Lin et al. 2017; for soft targets Li et al. 2020).
    """
    config = study.training
    smoothing, gamma = config.label_smoothing, config.focal_gamma if config.loss == "focal" else 0.0
    exclusive = study.data.task == "multiclass"
    weights = torch.tensor(class_weights(study, cases), dtype=torch.float32)  # (2, K): of absence and of presence
    given = ~np.isnan(label_table(cases))
    share = float(given.mean()) if given.any() else 1.0  # of the training labels that are known

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        target = target.nan_to_num()
        off, on = weights.to(logits.device)
        if exclusive:
            target = target * (1 - smoothing) + smoothing / logits.shape[1]
            log_p = F.log_softmax(logits, dim=1)
            parts = -target * on * log_p
            likely = log_p.exp()
        else:
            target = target * (1 - smoothing) + smoothing / 2
            parts = -(on * target * F.logsigmoid(logits) + off * (1 - target) * F.logsigmoid(-logits))
            likely = logits.sigmoid()
        if gamma:
            parts = parts * (target - likely).abs() ** gamma
        return parts.sum(dim=1) if exclusive else (parts * known).mean(dim=1) / share

    return loss


def class_weights(study: Study, cases: Sequence[Case]) -> NDArray[np.float64]:
    """(2, K) weights of a label's absence and presence, for the training `cases`.

    balanced: the inverse of its share, 1 on average over the cases of which it is known. Where the study names a weight
    for each label, a binary study's first label is the absence of the second; otherwise absence weighs 1.
    """
    labels, setting = label_table(cases), study.training.class_weights
    weights = np.ones((2, study.data.outputs))
    if isinstance(setting, dict):
        named = [setting[label] for label in study.data.labels]
        weights[:, 0], weights[1] = named[0], named[-study.data.outputs :]
        if study.data.task != "binary":
            weights[0] = 1
    elif setting == "balanced" and study.data.task == "multiclass":
        counts = np.bincount(labels[:, 0].astype(np.int64), minlength=study.data.outputs)
        weights[1] = len(labels) / (len(counts) * np.maximum(counts, 1))
    elif setting == "balanced":
        known = ~np.isnan(labels)
        share = (np.nansum(labels, axis=0) / np.maximum(known.sum(axis=0), 1)).clip(1e-6, 1 - 1e-6)
        weights[0], weights[1] = 0.5 / (1 - share), 0.5 / share
    return weights


class Teacher:
    """A trained network whose answers to the training images become part of a smaller network's targets.

    At temperature 1, since the answers of a network that was trained with mixup are soft already.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015).
    """

    def __init__(self, network: nn.Module, share: float, *, exclusive: bool) -> None:
        self.network, self.share, self.exclusive = network.eval().requires_grad_(False), share, exclusive

    @torch.no_grad()
    def targets(self, image: Tensor, target: Tensor) -> Tensor:
        """Targets (N, K) in 0..1 for images (N, C, *size) whose truth is `target` (N, K); NaN stays NaN."""
        logits = self.network(image).float()
        answers = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        return torch.lerp(target.float(), answers, self.share)
