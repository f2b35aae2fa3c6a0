"""Logits of a torch model over a loader, in the order of the cases, gathered from all processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor, Tensor]  # logits (N, K), targets (N, K), indices (N,)


@torch.no_grad()
def predict_logits(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
) -> tuple[NDArray[np.float64], Tensor]:
    """Logits (N, K) in float64 and the targets, rows ordered by the cases' index.

    Each process brings its own cases, none twice, and all get the whole. The model is left in the mode it came in.
    """
    mode = model.training
    model.eval()
    rows = [(model(image.to(device, non_blocking=True)).float(), target, index) for image, target, index in loader]
    model.train(mode)
    parts = _gathered([(logit.cpu(), target, index) for logit, target, index in rows])
    order = torch.argsort(torch.cat([index for _, _, index in parts]))
    logits = torch.cat([logit for logit, _, _ in parts])[order]
    targets = torch.cat([target for _, target, _ in parts])[order]
    return logits.double().numpy(), targets


def _gathered(rows: list[Rows]) -> list[Rows]:
    if not torch.distributed.is_initialized():
        return rows
    found: list[list[Rows] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, rows)
    return [row for part in found if part for row in part]
