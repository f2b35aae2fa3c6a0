"""The bottleneck block: 1x1 reduce, 3x3, 1x1 expand, and a skip connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from medopt.core.telemetry import without_telemetry

with without_telemetry():
    from monai.networks.layers.factories import Conv, Norm


class BottleneckLayer(nn.Module):
    """A residual bottleneck, usable alone: `BottleneckLayer(128, 32, 256)`.

    Shapes: (N, in_channels, *space) to (N, out_channels, *space / stride), with 2 or 3 spatial axes. `stride` and
    `kernel`, the odd sides of the 3x3 convolution, are a number for all axes or one for each. The skip is the identity
    where the shape is kept, else a 1x1 projection. Where there is a stride, `projects` says of what: "pooled",
    the means of 3x3 places; "averaged", those of 2x2; "strided", only one place in each stride, as published. The
    stride of the other branch sits on the 3x3 convolution, or on the first 1x1 with `stride_on="reduce"`.
    Source: He et al., Deep Residual Learning for Image Recognition (2016), figure 5; stride as in Goyal et al. (2017);
    averaged skip as in He et al., Bag of Tricks for Image Classification (2019), ResNet-D; pooled is the same with an
    odd window, which also takes an axis of one place.
    """

    def __init__(
        self,
        in_channels: int,
        bottleneck_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 2,
        stride: int | Sequence[int] = 1,
        kernel: int | Sequence[int] = 3,
        projects: Literal["pooled", "averaged", "strided"] = "pooled",
        stride_on: Literal["spatial", "reduce"] = "spatial",
    ) -> None:
        super().__init__()
        conv, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        steps, sides = _of_axes(stride, spatial_dims), _of_axes(kernel, spatial_dims)
        none = (1,) * spatial_dims
        first, second = (steps, none) if stride_on == "reduce" else (none, steps)
        self.reduce = conv(in_channels, bottleneck_channels, kernel_size=1, stride=first, bias=False)
        self.norm1 = norm(bottleneck_channels)
        padding = tuple(side // 2 for side in sides)
        self.spatial = conv(
            bottleneck_channels, bottleneck_channels, kernel_size=sides, stride=second, padding=padding, bias=False
        )
        self.norm2 = norm(bottleneck_channels)
        self.expand = conv(bottleneck_channels, out_channels, kernel_size=1, bias=False)
        self.norm3 = norm(out_channels)
        self.act = nn.ReLU(inplace=True)
        self.skip: nn.Module = nn.Identity()
        if steps != none or in_channels != out_channels:
            pools = _means(steps, projects) if projects != "strided" and steps != none else []
            own = none if pools else steps
            projection = conv(in_channels, out_channels, kernel_size=1, stride=own, bias=False)
            self.skip = nn.Sequential(*pools, projection, norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *space) to (N, out_channels, *space / stride)."""
        out = self.act(self.norm1(self.reduce(x)))
        out = self.act(self.norm2(self.spatial(out)))
        out = self.norm3(self.expand(out))
        return self.act(out + self.skip(x))


def _of_axes(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _means(stride: Any, window: Literal["pooled", "averaged"]) -> list[nn.Module]:
    """Layers that take means of 3x3 places ("pooled") or 2x2 ("averaged"), a stride apart, of what lies in the image.

    An axis without a stride is left alone. Torch does not pool a volume's axis of one or two places, padded or not:
    there the places at the edge come twice.
    """
    if window == "averaged":
        pool = nn.AvgPool2d if len(stride) == 2 else nn.AvgPool3d
        return [pool(stride, stride, ceil_mode=True, count_include_pad=False)]
    sides: Any = tuple(3 if step > 1 else 1 for step in stride)
    edges: Any = tuple(int(step > 1) for step in stride)
    if len(stride) == 2:
        return [nn.AvgPool2d(sides, stride, edges, count_include_pad=False)]
    both: Any = tuple(edge for edge in reversed(edges) for _ in range(2))  # torch counts the axes from the last one
    return [nn.ReplicationPad3d(both), nn.AvgPool3d(sides, stride)]
