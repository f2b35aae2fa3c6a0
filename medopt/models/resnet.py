"""Bottleneck ResNets of 26, 50, 101 and 152 layers on MONAI's ResNet, 2-D and 3-D."""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from medopt.config import Study
from medopt.models.bottleneck import BottleneckLayer
from medopt.models.initialization import initialize


class _Stem(TypedDict):
    conv1_t_size: int
    conv1_t_stride: int
    no_max_pool: bool


LAYERS = {26: [2, 2, 2, 2], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
CHANNELS = [64, 128, 256, 512]
# MONAI's own default is a 7x7 stem of stride 1: four times the work of the published network. So it is always said.
STEMS: dict[str, _Stem] = {
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


def stem_of(study: Study) -> str:
    """The study's stem by name; `auto` is the one that reduces the shortest side as far as it bears.

    The blocks halve the image three times more.
    """
    if study.model.stem != "auto":
        return study.model.stem
    shortest = min(study.prepare.size)
    return "small" if shortest < 48 else "medium" if shortest < 96 else "large"


def build_model(study: Study) -> nn.Module:
    """The study's network: (N, C, *size) to (N, outputs) logits, weights drawn from the study's seed.

    Global average pooling makes it independent of the size. Source: He et al. (2016), table 1.
    """
    config = study.model
    model = ResNet(
        block=BLOCKS[config.skip],  # type: ignore[arg-type]  # MONAI names its own classes only, but calls any block
        layers=LAYERS[config.depth],
        block_inplanes=CHANNELS,
        spatial_dims=study.spatial_dims,
        n_input_channels=study.prepare.channels,
        widen_factor=config.width,
        num_classes=study.data.outputs,
        **STEMS[stem_of(study)],
    )
    generator = torch.Generator().manual_seed(study.seed)
    initialize(model, config.init, generator, zero_init_residual=config.zero_init_residual)
    if config.dropout:
        model.fc = nn.Sequential(nn.Dropout(config.dropout), model.fc)  # type: ignore[arg-type, assignment]
    return model
