from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

from medopt.config import Optimizer
from medopt.models import BottleneckLayer
from medopt.training.optimizers import build_optimizer


def config(**settings: Any) -> Optimizer:
    return Optimizer.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", optim.Adam), ("adamw", optim.AdamW), ("nadam", optim.NAdam), ("sgd", optim.SGD)]
)
def test_optimizers_by_name_hold_every_parameter_once_and_decay_weights_only(name: str, kind: type) -> None:
    model = nn.Sequential(BottleneckLayer(4, 2, 8), nn.Flatten(), nn.Linear(8, 2))
    made = build_optimizer(config(name=name, lr=0.1, weight_decay=0.05), model)
    assert type(made) is kind
    held = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert held == {id(p): 0.05 if p.ndim > 1 else 0.0 for p in model.parameters()}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_has_nesterov_momentum(momentum: float) -> None:
    layer = nn.Linear(1, 1, bias=False)
    before = layer.weight.item()
    made = build_optimizer(config(name="sgd", lr=0.1, weight_decay=0, momentum=momentum), layer)
    for _ in range(2):
        layer.weight.grad = torch.ones(1, 1)
        made.step()
    # Gradient 1 twice: velocities 1 and 1 + m, each step looks one momentum ahead.
    expected = (1 + momentum) + (1 + momentum * (1 + momentum))
    assert before - layer.weight.item() == pytest.approx(0.1 * expected)


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad_(False)
    made = build_optimizer(config(), layer)
    assert [p is layer.bias for group in made.param_groups for p in group["params"]] == [True]
