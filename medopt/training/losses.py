"""The loss by task: of labels (hard, smoothed and mixed, and of a teacher's answers), of grades, and of a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.records import Case, Task, has_one_output, is_exclusive, label_table

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
    if study.data.task == "regression":
        return _number_loss(study.loss)
    if study.loss == "cumulative":
        return cumulative_loss
    config = study.training
    smoothing, gamma = config.label_smoothing, config.focal_gamma if config.loss == "focal" else 0.0
    exclusive = is_exclusive(study.data.task)
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


def _number_loss(name: str) -> Loss:
    """Of outputs and targets (N, 1) in units of the number's spread. huber: squared up to 1, then linear (1964)."""

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        error = outputs - target
        if name == "squared":
            return (error**2 / 2).mean(dim=1)
        if name == "absolute":
            return error.abs().mean(dim=1)
        return F.huber_loss(outputs, target, reduction="none").mean(dim=1)

    return loss


def cumulative_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Log loss (N,) of all questions "above grade k?", on average, of logits (N, K) and targets (N, K) in grade order.

    The probability of a grade above k is the sum of the softmax beyond it, so that a grade far from the truth costs
    more than its neighbour; a target may be mixed of two grades. It is a proper score: the logarithmic form of the
    ranked probability score (Epstein 1969), and the likelihood of the cumulative questions of McCullagh (1980).
    """
    log_p = F.log_softmax(logits, dim=1)
    upto, above = torch.logcumsumexp(log_p, dim=1)[:, :-1], torch.logcumsumexp(log_p.flip(1), dim=1).flip(1)[:, 1:]
    beyond = target.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # share of the target above grade k
    return -(beyond * above + (1 - beyond) * upto).mean(dim=1)


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
        if not has_one_output(study.data.task):
            weights[0] = 1
    elif setting == "balanced" and is_exclusive(study.data.task):
        counts = np.bincount(labels[:, 0].astype(np.int64), minlength=study.data.outputs)
        weights[1] = len(labels) / (len(counts) * np.maximum(counts, 1))
    elif setting == "balanced":
        known = ~np.isnan(labels)
        share = (np.nansum(labels, axis=0) / np.maximum(known.sum(axis=0), 1)).clip(1e-6, 1 - 1e-6)
        weights[0], weights[1] = 0.5 / (1 - share), 0.5 / share
    return weights


class Teacher:
    """Trained networks whose mean answer to a training image is the other part of a smaller network's loss.

    The mean is that of the logits, as an ensemble's. At temperature 1, since the answers of networks that were trained
    with mixup are soft already. `loss` is that of their answers; the loss of the labels counts 1 - `share`.
    Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015).
    """

    def __init__(self, networks: Sequence[nn.Module], share: float, loss: Loss, *, task: Task) -> None:
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.share, self.loss = share, loss
        self.task = task

    @torch.no_grad()
    def answers(self, image: Tensor, target: Tensor, *table: Tensor) -> Tensor:
        """Probabilities (N, K) of images (N, C, *size), or the number's outputs; NaN where `target` is not known.

        `table` are the encoded covariates (N, F) of a study that has some.
        """
        logits = torch.stack([network(image, *table).float() for network in self.networks]).mean(0)
        if self.task == "regression":
            return logits
        found = logits.softmax(dim=1) if is_exclusive(self.task) else logits.sigmoid()
        return torch.where(target.isnan(), target.float(), found)

    def joined(self, of_labels: Tensor, logits: Tensor, answers: Tensor) -> Tensor:
        """The loss (N,) of the labels and that of the teacher's `answers`, each by its share."""
        return torch.lerp(of_labels, self.loss(logits, answers), self.share)
