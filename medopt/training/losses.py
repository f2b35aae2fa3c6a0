"""Cross-entropy and focal loss on logits, by task: of hard, smoothed and mixed targets, and of a teacher's answers."""

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


def build_loss(study: Study, cases: Sequence[Case], *, of_answers: bool = False) -> Loss:
    """The study's loss: (logits (N, K), targets (N, K) in 0..1) to one value a case, (N,).

    A value a case, so that micro-batches and processes of any size add up to the same step. A target that is NaN is not
    known: it adds nothing, and all others count alike, so that the mean over the training cases is that over their
    known labels. Smoothing moves targets toward 1/2 (binary, multi-label) or 1/K (multi-class; Szegedy et al. 2016).
    The focal loss weighs a case by how far its probability is from its target, to the power of gamma (Lin et al. 2017;
    for soft targets Li et al. 2020). `of_answers`: for the answers of a teacher, in which class weights and smoothing
    are already; applied again they would shift every probability twice.
    """
    config = study.training
    smoothing, gamma = config.label_smoothing, config.focal_gamma if config.loss == "focal" else 0.0
    exclusive = study.data.task == "multiclass"
    weights = torch.tensor(class_weights(study, cases), dtype=torch.float32)  # (2, K): of absence and of presence
    if of_answers:
        smoothing, weights = 0.0, torch.ones_like(weights)
    given = ~np.isnan(label_table(cases))
    share = float(given.mean()) if given.any() else 1.0  # of the training labels that are known

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        target = target.nan_to_num()
        off, on = weights.to(logits.device)
        if exclusive:
            weighted = on * target  # a label's weight is that of its class, also of the part that smoothing moves away
            mass = weighted * (1 - smoothing) + weighted.sum(dim=1, keepdim=True) * smoothing / logits.shape[1]
            target = target * (1 - smoothing) + smoothing / logits.shape[1]
            log_p = F.log_softmax(logits, dim=1)
            parts = -mass * log_p
            likely = log_p.exp()
        else:
            present, absent, moved = on * target, off * (1 - target), smoothing / 2
            yes, no = present * (1 - moved) + absent * moved, absent * (1 - moved) + present * moved
            target = target * (1 - smoothing) + moved
            parts = -(yes * F.logsigmoid(logits) + no * F.logsigmoid(-logits))
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
    """A trained network whose answers to the training images are the other part of a smaller network's loss.

    At temperature 1, since the answers of a network that was trained with mixup are soft already. `loss` is that of its
    answers; the loss of the labels counts 1 - `share`.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015).
    """

    def __init__(self, network: nn.Module, share: float, loss: Loss, *, exclusive: bool) -> None:
        self.network, self.share, self.loss = network.eval().requires_grad_(False), share, loss
        self.exclusive = exclusive

    @torch.no_grad()
    def answers(self, image: Tensor, target: Tensor) -> Tensor:
        """Probabilities (N, K) of images (N, C, *size); NaN where the truth `target` (N, K) is not known."""
        logits = self.network(image).float()
        found = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        return torch.where(target.isnan(), target.float(), found)

    def joined(self, of_labels: Tensor, logits: Tensor, answers: Tensor) -> Tensor:
        """The loss (N,) of the labels and that of the teacher's `answers`, each by its share."""
        return torch.lerp(of_labels, self.loss(logits, answers), self.share)
