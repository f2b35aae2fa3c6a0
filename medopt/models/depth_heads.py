"""The two ends that a pretrained network has beside its blocks: the scale of its input, and a head on every depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class InputScaling(nn.Module):
    """Make of an image in 0..1 what the weights were trained on: `x * scale + shift`, a factor and a term a channel.

    Shapes: (N, 1 or channels, *space) to (N, channels, *space); a grey image is given to every channel. It stands
    before the first padding: folded into a convolution that pads with zeros it would be wrong at the border.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int, dims: int = 2) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels, *[1] * dims))
        self.register_buffer("shift", torch.zeros(channels, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1 or C, *space) to (N, C, *space)."""
        if x.shape[1] < len(self.scale):  # said, not left to broadcasting, which OpenVINO fuses into the convolution
            x = torch.cat([x] * len(self.scale), dim=1)
        return x * self.scale + self.shift


class DepthHeads(nn.Module):
    """One linear layer on the pooled features of all depths, kept as one a depth, whose logits add up.

    So a block's channels can be pruned with their column of the head. Only the last one has a bias. `dropout` is the
    share of the features that is dropped in training.
    """

    def __init__(self, widths: Sequence[int], outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        last = len(widths) - 1
        self.heads = nn.ModuleList(nn.Linear(width, outputs, bias=at == last) for at, width in enumerate(widths))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features (N, width) of each depth to logits (N, outputs)."""
        parts = [head(self.dropout(feature)) for head, feature in zip(self.heads, features, strict=True)]
        logits: Tensor = parts[0]
        for part in parts[1:]:
            logits = logits + part
        return logits
