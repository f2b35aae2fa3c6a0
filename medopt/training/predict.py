"""Logits of a torch model over a loader, in the order of the cases."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@torch.inference_mode()
def predict_logits(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
) -> tuple[NDArray[np.float64], Tensor]:
    """Logits (N, K) in float64 and the targets, rows ordered by the cases' index.

    The model is left in the mode it came in.
    """
    mode = model.training
    model.eval()
    rows = [(model(image.to(device)).float().cpu(), target, index) for image, target, index in loader]
    model.train(mode)
    order = torch.argsort(torch.cat([index for _, _, index in rows]))
    logits = torch.cat([logit for logit, _, _ in rows])[order]
    targets = torch.cat([target for _, target, _ in rows])[order]
    return logits.double().numpy(), targets
