"""How published bottleneck ResNets differ beside depth and width: each runs as its weights were trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

from medopt.models.bottleneck import BottleneckLayer


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to build the same layers.

    stride_on: the convolution of a block that has the stride: "spatial" (3x3) or "reduce" (1x1). skip: what the skip of
    such a block projects: "strided", every second place; "pooled", means of 3x3 places; "averaged", means of 2x2.
    pads_pool: the stem's max pooling begins half a window outside the image, not at its edge. dilated: the last two
    stages see twice and four times as far instead of having a stride.
    """

    stride_on: Literal["spatial", "reduce"]
    skip: Literal["strided", "pooled", "averaged"]
    pads_pool: bool = True
    dilated: bool = False


VARIANTS = {
    "pooled": Variant("spatial", "pooled"),  # medopt's own
    "v1": Variant("reduce", "strided"),  # He et al. (2016), Keras
    "caffe": Variant("reduce", "strided", pads_pool=False),  # the weights that were published with it
    "v1.5": Variant("spatial", "strided"),  # Goyal et al. (2017), torchvision
    "d": Variant("spatial", "averaged"),  # ResNet-D, He et al. (2019), timm
    "dilated": Variant("spatial", "strided", dilated=True),  # MedicalNet, Chen et al. (2019)
}


def dilate(stage: nn.Sequential, factor: int, dims: int) -> None:
    """Take the stride of a stage away, and let its 3x3 convolutions reach `factor` places far instead."""
    for module in stage:
        block = cast(BottleneckLayer, module)
        padding = tuple(factor * (side // 2) for side in block.spatial.kernel_size)
        block.spatial.stride, block.spatial.dilation = (1,) * dims, (factor,) * dims
        block.spatial.padding = padding
        block.spatial._reversed_padding_repeated_twice = [pad for pad in reversed(padding) for _ in range(2)]
        if isinstance(block.skip, nn.Sequential):
            cast(nn.Conv2d, block.skip[0]).stride = (1,) * dims
