"""Tuning a start without losing what it knows: smaller steps for earlier stages, frozen stages, held statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medopt.config import FineTune

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "fc")
_FREEZES = {"nothing": 0, "stem": 1, "layer1": 2, "layer2": 3, "layer3": 4, "all": 5}


def stage_of(name: str) -> int:
    """The place in STAGES of a parameter by its name: what weighs tiles and covariates is of the last."""
    first = name.partition(".")[0]
    if first in ("tiling", "covariates"):
        return STAGES.index("fc")
    return STAGES.index(first) if first in STAGES else 0


def rate_factor(config: FineTune, name: str) -> float:
    """Factor on the learning rate of a parameter: 1 for the last layer, smaller by `layer_decay` a stage before it."""
    return float(config.layer_decay ** (len(STAGES) - 1 - stage_of(name)))


def freeze(model: nn.Module, config: FineTune) -> None:
    """Let the parameters of the first stages, as many as `config.freeze` says, keep their values."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage_of(name) >= _FREEZES[config.freeze])


def hold_statistics(model: nn.Module) -> None:
    """Let every batch normalization of a network in training use, and keep, the statistics that it has."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@torch.no_grad()
def pull_toward(parameters: Sequence[Tensor], anchors: Sequence[Tensor], share: float) -> None:
    """Move each parameter toward its anchor by a share of their distance (L2-SP, decoupled from the gradient)."""
    torch._foreach_lerp_(list(parameters), list(anchors), share)
