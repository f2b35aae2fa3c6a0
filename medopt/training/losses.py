"""Losses by task: binary and multi-label cross-entropy on logits, softmax cross-entropy for multi-class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medopt.config import Study
from medopt.records import Case

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(study: Study, cases: Sequence[Case]) -> Loss:
    """The study's loss: (logits (N, K), targets) to a scalar.

    `class_weights: balanced` weighs each class by the inverse of its share among the training `cases`. Smoothing
    moves targets toward 1/2 (binary, multi-label) or 1/K (multi-class; Szegedy et al. 2016).
    """
    smoothing = study.training.label_smoothing
    labels = np.array([case.label for case in cases])
    balanced = study.training.class_weights == "balanced"
    if study.data.task == "multiclass":
        weight = None
        if balanced:
            counts = np.bincount(labels[:, 0], minlength=study.data.outputs)
            weight = torch.tensor(len(labels) / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
        return lambda logits, target: F.cross_entropy(
            logits, target, weight=None if weight is None else weight.to(logits.device), label_smoothing=smoothing
        )
    positive = None
    if balanced:
        share = labels.mean(axis=0).clip(1e-6, 1 - 1e-6)
        positive = torch.tensor((1 - share) / share, dtype=torch.float32)
    return lambda logits, target: F.binary_cross_entropy_with_logits(
        logits,
        target * (1 - smoothing) + smoothing / 2,
        pos_weight=None if positive is None else positive.to(logits.device),
    )
