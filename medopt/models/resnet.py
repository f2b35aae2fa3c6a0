"""Bottleneck ResNets of 26, 50, 101 and 152 layers on MONAI's ResNet, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import nn

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.telemetry import without_telemetry
from medopt.models.bottleneck import BottleneckLayer
from medopt.models.initialization import initialize

with without_telemetry():
    from monai.networks.nets.resnet import ResNet

Stem = Literal["auto", "small", "medium", "large"]


class _StemArguments(TypedDict):
    conv1_t_size: int
    conv1_t_stride: int
    no_max_pool: bool


LAYERS = {26: [2, 2, 2, 2], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
CHANNELS = [64, 128, 256, 512]
# MONAI's own default is a 7x7 stem of stride 1: four times the work of the published network. So it is always said.
STEMS: dict[str, _StemArguments] = {
    "small": {"conv1_t_size": 3, "conv1_t_stride": 1, "no_max_pool": True},
    "medium": {"conv1_t_size": 3, "conv1_t_stride": 2, "no_max_pool": True},
    "large": {"conv1_t_size": 7, "conv1_t_stride": 2, "no_max_pool": False},
}


class _ResNetBlock(BottleneckLayer):
    """Our block under the signature that MONAI's ResNet builds its stages with."""

    expansion = 4
    pooled = True

    def __init__(self, in_planes: int, planes: int, spatial_dims: int = 3, stride: int = 1, **_monai: Any) -> None:
        out = planes * self.expansion
        super().__init__(in_planes, planes, out, spatial_dims=spatial_dims, stride=stride, pooled=self.pooled)


class _StridedBlock(_ResNetBlock):
    """As published in 2016."""

    pooled = False


BLOCKS = {"pooled": _ResNetBlock, "strided": _StridedBlock}


def build_resnet(
    depth: int = 26,
    *,
    spatial_dims: int = 2,
    channels: int = 1,
    outputs: int = 1,
    width: float = 0.25,
    stem: Stem = "auto",
    size: Sequence[int] | None = None,
    skip: Literal["pooled", "strided"] = "pooled",
    init: Literal["he", "xavier"] = "he",
    zero_init_residual: bool = True,
    dropout: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Build a bottleneck ResNet with freshly drawn weights; the defaults are those of a study file.

    Shapes: (N, channels, *space) float32 to logits (N, outputs), with `spatial_dims` (2 or 3) axes of space of any
    length: global average pooling ends it. The logits are neither sigmoid nor softmax.

    Args:
        depth: layers: 26, 50, 101 or 152.
        spatial_dims: 2 for images (N, C, H, W), 3 for volumes (N, C, D, H, W).
        channels: channels of the input, 1 for grey values.
        outputs: logits; 1 for a binary question, else one for each label.
        width: factor on all channel counts; 1 is the published network.
        stem: "small" (3x3, stride 1), "medium" (3x3, stride 2) or "large" (7x7, stride 2 and max pooling, as
            published). "auto": by the shortest side of `size`, so that the last blocks still see 3 x 3 places or more;
            "large" where no `size` is given.
        size: length of each axis of space that the network is meant for; only `stem="auto"` looks at it.
        skip: what the skip of a block with a stride projects: "pooled", means of 3x3 places (ResNet-D), or "strided",
            every second place, as published in 2016.
        init: "he" or "xavier", see `medopt.models.initialize`.
        zero_init_residual: the last normalization of each block starts at 0 (Goyal et al. 2017).
        dropout: share of the pooled features that is dropped in training.
        seed: of the weights; torch's global random state is not touched.

    Raises ConfigError naming an argument that has no such choice.
    Source: He et al., Deep Residual Learning for Image Recognition (2016), table 1; ResNet-D: He et al., Bag of Tricks
    for Image Classification (2019).

    >>> import torch
    >>> network = build_resnet(depth=26, spatial_dims=2, channels=1, outputs=2, size=(32, 32))
    >>> network(torch.zeros(4, 1, 32, 32)).shape
    torch.Size([4, 2])
    """
    _refuse("depth", depth, LAYERS)
    _refuse("spatial_dims", spatial_dims, (2, 3))
    _refuse("stem", stem, get_args(Stem))
    _refuse("skip", skip, BLOCKS)
    _refuse("init", init, ("he", "xavier"))
    model = ResNet(
        block=BLOCKS[skip],  # type: ignore[arg-type]  # MONAI names its own classes only, but calls any block
        layers=LAYERS[depth],
        block_inplanes=CHANNELS,
        spatial_dims=spatial_dims,
        n_input_channels=channels,
        widen_factor=width,
        num_classes=outputs,
        **STEMS[choose_stem(size) if stem == "auto" else stem],
    )
    initialize(model, init, torch.Generator().manual_seed(seed), zero_init_residual=zero_init_residual)
    if dropout:
        model.fc = nn.Sequential(nn.Dropout(dropout), model.fc)  # type: ignore[arg-type, assignment]
    return model


def _refuse(name: str, value: object, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(map(str, choices))}.")


def choose_stem(size: Sequence[int] | None) -> Literal["small", "medium", "large"]:
    """The stem that reduces the shortest side as far as the last blocks bear; without a size the published one.

    The blocks halve the image three times more.
    """
    if not size:
        return "large"
    return "small" if min(size) < 48 else "medium" if min(size) < 96 else "large"


def build_model(study: Study) -> nn.Module:
    """The study's network: (N, C, *size) to (N, outputs) logits, weights drawn from the study's seed."""
    return build_resnet(
        spatial_dims=study.spatial_dims,
        channels=study.prepare.channels,
        outputs=study.data.outputs,
        size=study.prepare.size,
        seed=study.seed,
        **study.model.model_dump(),
    )
