"""How the scale of activations and gradients changes with depth when training begins: why a 152-layer net trains.

Without skips each layer multiplies the gradient by a factor of its own. He's variance (2 / fan_out) keeps that factor
near 1 without BatchNorm, Xavier's halves the signal at each ReLU; with BatchNorm in every layer the factor is above 1
whatever the initialization (Yang et al. 2019), so the first block of a plain net gets a gradient that grew
exponentially with depth. A skip adds the gradient as it is: it can then neither vanish nor grow exponentially. Without
BatchNorm each block of such a net still doubles the variance; a branch that starts at zero (its last BatchNorm's scale,
or a scalar where there is none) makes each block the identity, at which both scales stay as they are.

Sources: Glorot & Bengio (2010), He et al. (2015; 2016), Goyal et al. (2017), Zhang et al., Fixup Initialization (2019),
Yang et al., A Mean Field Theory of Batch Normalization (2019), De & Smith, Batch Normalization Biases Residual Blocks
Towards the Identity Function (2020; its SkipInit is the scalar).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medopt.config import Study
from medopt.models.bottleneck import BottleneckLayer
from medopt.models.resnet import build_model

Depth = Literal[14, 26, 50, 101, 152]
Init = Literal["he", "xavier"]
Loss = Callable[[Tensor, Tensor], Tensor]
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True)
class Variant:
    """A net to be measured: its depth and initialization, with or without skips, BatchNorm and the zero start.

    `zero_init`: each residual branch starts at zero. A plain net has no branch, and takes none.
    """

    depth: Depth
    init: Init
    skip: bool = True
    norm: bool = True
    zero_init: bool = False

    def __post_init__(self) -> None:
        if self.zero_init and not self.skip:
            raise ValueError("a plain net whose blocks start at zero carries no signal at all")

    @property
    def description(self) -> str:
        """All but depth and initialization, in words."""
        words = ("residual" if self.skip else "plain", "" if self.norm else "no BatchNorm")
        return ", ".join(filter(None, (*words, "zero start" if self.zero_init else "")))

    @property
    def name(self) -> str:
        """As a table names it."""
        return f"{self.description}, {self.init}, {self.depth} layers"


@dataclass(frozen=True, slots=True)
class Scale:
    """What one batch shows, an entry a block, from the first to the last.

    activation: standard deviation of the block's output. gradient: Euclidean norm of the loss's gradient with respect
    to that output, over the whole batch. weights: norm of the gradient of the block's weights. Infinite or 0 where
    float32 does not reach.
    """

    activation: tuple[float, ...]
    gradient: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Gradient of the first block's weights over that of the last block's; 1 is best, not defined where 0/0."""
        first, last = self.weights[0], self.weights[-1]
        return first / last if last else (math.inf if first else math.nan)


class _Nothing(nn.Module):
    """A skip that is not there: zero, whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


class _Scalar(nn.Module):
    """One learnable factor where the last BatchNorm of a branch was (SkipInit)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def variants(depth: Depth, init: Init) -> tuple[Variant, ...]:
    """All that is compared at one depth and initialization, the usual one first."""
    return (
        Variant(depth, init, zero_init=True),
        Variant(depth, init),
        Variant(depth, init, skip=False),
        Variant(depth, init, norm=False, zero_init=True),
        Variant(depth, init, norm=False),
        Variant(depth, init, skip=False, norm=False),
    )


def build_variant(study: Study, variant: Variant) -> nn.Module:
    """The study's network as `variant` has it: the same width, stem and seed, so that nets of one init differ only in
    what their names say.
    """
    changed = {
        "depth": variant.depth, "init": variant.init, "zero_init_residual": variant.norm and variant.zero_init,
        "dropout": 0.0,
    }  # fmt: skip
    model = build_model(study.model_copy(update={"model": study.model.model_copy(update=changed)}))
    blocks = blocks_of(model)
    if not variant.norm:
        ends = {id(block.norm3) for block in blocks}
        _replace(model, lambda norm: _Scalar(float(not variant.zero_init)) if id(norm) in ends else nn.Identity())
    if not variant.skip:
        for block in blocks:
            block.skip = _Nothing()
    return model


def _replace(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
    """Every BatchNorm of `model` becomes what `make` makes of it."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _NORMS):
                setattr(parent, name, make(child))


def blocks_of(model: nn.Module) -> list[BottleneckLayer]:
    """The bottleneck blocks, from the input to the output."""
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def measure_scale(model: nn.Module, image: Tensor, target: Tensor, loss: Loss) -> Scale:
    """One forward and one backward pass of a batch (N, C, *size), in training mode; the weights stay as they are.

    `loss` maps (logits (N, K), targets) to a value a case, or to one for all. Gradients that the model had are dropped;
    running statistics of BatchNorm move as in any pass.
    """
    blocks = blocks_of(model)
    activation, gradient = [math.nan] * len(blocks), [math.nan] * len(blocks)

    def watch(place: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(output_gradient: Tensor) -> None:
            gradient[place] = _norm(output_gradient)

        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            activation[place] = float(output.detach().double().std())
            output.register_hook(keep)

        return hook

    hooks = [block.register_forward_hook(watch(place)) for place, block in enumerate(blocks)]
    try:
        model.train()
        model.zero_grad()
        loss(model(image), target).mean().backward()
    finally:
        for hook in hooks:
            hook.remove()
    weights = tuple(_norm(*(p.grad for p in block.parameters() if p.grad is not None)) for block in blocks)
    model.zero_grad()
    return Scale(tuple(activation), tuple(gradient), weights)


def _norm(*gradients: Tensor) -> float:
    """Euclidean norm of all values together, summed in double precision."""
    return math.sqrt(sum(float(gradient.detach().double().square().sum()) for gradient in gradients))
