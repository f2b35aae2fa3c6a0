from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import nn

from medopt.config import Study
from medopt.models import BottleneckLayer, build_model, initialize


def blocks(model: nn.Module) -> list[BottleneckLayer]:
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


@pytest.mark.parametrize("size", [[32, 32], [16, 16, 16]])
@pytest.mark.parametrize("method", ["he", "xavier"])
def test_the_spread_of_the_weights_is_the_published_one(
    tiny_study: Callable[..., Study], method: str, size: list[int]
) -> None:
    model = build_model(tiny_study(prepare={"size": size}, model={"init": method, "width": 0.25}))
    checked = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.weight.numel() > 4000:
            taps = math.prod(module.kernel_size)
            fan_in, fan_out = module.in_channels * taps, module.out_channels * taps
            expected = math.sqrt(2 / fan_out if method == "he" else 2 / (fan_in + fan_out))
            weight = module.weight.detach()
            assert float(weight.std()) == pytest.approx(expected, rel=0.05)
            assert abs(float(weight.mean())) < 0.1 * expected
            checked += 1
    assert checked > 5


def test_normalizations_start_at_one_and_the_classifier_without_bias(tiny_study: Callable[..., Study]) -> None:
    model = build_model(tiny_study(model={"zero_init_residual": False}))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert (model.fc.bias == 0).all() and (model.fc.weight != 0).any()


@pytest.mark.parametrize("method", ["he", "xavier"])
def test_zero_init_makes_every_block_its_skip(method: Literal["he", "xavier"]) -> None:
    block = BottleneckLayer(8, 4, 8)
    initialize(block, method, torch.Generator().manual_seed(0))
    x = torch.randn(3, 8, 6, 6)
    assert torch.equal(block(x), x.relu())
    initialize(block, method, torch.Generator().manual_seed(0), zero_init_residual=False)
    assert not torch.allclose(block(x), x.relu())


def test_zero_init_touches_the_last_normalization_of_a_block_only(tiny_study: Callable[..., Study]) -> None:
    model = build_model(tiny_study())
    assert all((block.norm3.weight == 0).all() for block in blocks(model))
    assert all((block.norm1.weight == 1).all() and (block.norm2.weight == 1).all() for block in blocks(model))
    assert (model.bn1.weight == 1).all()


def test_the_generator_decides() -> None:
    def drawn(seed: int) -> torch.Tensor:
        layer = nn.Conv2d(3, 4, 3)
        initialize(layer, "he", torch.Generator().manual_seed(seed))
        return layer.weight

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
