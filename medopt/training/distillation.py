"""A trained network as teacher: its answers to the very images that a smaller one sees, as targets.

Hinton et al. 2015, Distilling the Knowledge in a Neural Network; at temperature 1, since the answers of a network that
was trained with mixup are soft already.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Teacher:
    """Mixes the teacher's answers into the truth."""

    def __init__(self, network: nn.Module, share: float, *, exclusive: bool) -> None:
        self.network, self.share, self.exclusive = network.eval().requires_grad_(False), share, exclusive

    @torch.no_grad()
    def targets(self, image: Tensor, target: Tensor) -> Tensor:
        """Targets (N, K) in 0..1 for images (N, C, *size) whose truth is `target` (N, K)."""
        logits = self.network(image).float()
        answers = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        return torch.lerp(target.float(), answers, self.share)
