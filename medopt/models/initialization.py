"""He and Xavier initialization, by name."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from medopt.models.bottleneck import BottleneckLayer


def initialize(
    model: nn.Module, method: Literal["he", "xavier"], generator: torch.Generator, *, zero_init_residual: bool = True
) -> None:
    """Draw all weights of `model` in place.

    he: normal, variance 2 / fan_out (He et al. 2015), which keeps the scale of gradients through ReLU layers.
    xavier: normal, variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010). Normalizations start at scale 1, shift 0;
    with `zero_init_residual` the last one of each block starts at 0, so that the block starts as its skip
    (Goyal et al. 2017).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            if method == "he":
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            else:
                nn.init.xavier_normal_(module.weight, generator=generator)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, BottleneckLayer):
                nn.init.zeros_(module.norm3.weight)
