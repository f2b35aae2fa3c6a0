"""What one image costs a network: multiply-adds, and the values that training keeps of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medopt.config import Study
from medopt.models.resnet import BottleneckResNet, build_model

_LAYERS = (nn.Conv2d, nn.Conv3d, nn.Linear)
_POOLS = (nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool2d, nn.MaxPool3d, nn.ReplicationPad3d)
_KEPT = (*_LAYERS, nn.BatchNorm2d, nn.BatchNorm3d, *_POOLS)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one image: multiply-adds of a forward pass, and values kept for the backward pass. `parameters`: weights."""

    multiply_adds: int
    kept_values: int
    parameters: int


def multiply_adds(model: nn.Module, channels: int, size: Sequence[int]) -> int:
    """Multiply-adds of one image (channels, *size): those of the convolutions and linear layers."""
    return sum(layer_costs(model, channels, size).values())


def layer_costs(model: nn.Module, channels: int, size: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer by name, counted in one forward pass."""
    return _layer_costs(model, _output_shapes(model, channels, size, _LAYERS))


def _layer_costs(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in shapes}
    weights = {name: layer.weight.numel() for name, layer in layers.items() if isinstance(layer, _LAYERS)}
    return {name: count * shapes[name][0] * math.prod(shapes[name][2:]) for name, count in weights.items()}


def study_cost(study: Study) -> Cost:
    """What one image costs a study's network, as `multiply_adds` counts it; nothing is computed for it.

    Training keeps what each convolution, normalization and pooling gives; activations work in place. Of tiles it keeps
    so many at once.
    """
    with torch.device("meta"):
        model = build_model(study)
    shapes = _output_shapes(model, study.prepare.input_channels, study.prepare.size, _KEPT)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    kept = sum(map(math.prod, shapes.values()))
    if isinstance(model, BottleneckResNet) and model.tiling is not None and model.tiling.at_once is not None:
        kept = kept * min(model.tiling.at_once, study.network_input.count) // study.network_input.count
    return Cost(sum(_layer_costs(model, shapes).values()), kept, parameters)


def _output_shapes(
    model: nn.Module, channels: int, size: Sequence[int], kinds: tuple[type[nn.Module], ...]
) -> dict[str, tuple[int, ...]]:
    """The shape of what each layer of these kinds gives for one image, by the layer's name."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            before = shapes[name][0] if name in shapes else 0  # tiles pass a few at a time
            shapes[name] = (before + output.shape[0], *output.shape[1:])

        return hook

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kinds)}
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    weight, mode = next(model.parameters()), model.training
    try:
        with torch.no_grad():
            model.eval()(weight.new_zeros((1, channels, *size)))
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return shapes
