"""Back from the model's geometry to the scan's own grid, and back to the masks that a change of an image must keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medopt.config import Prepare
from medopt.transforms.resize import crop_or_pad, fitted, needed_part, resampled, resize


def to_scan(values: Tensor, shape: Sequence[int], spacing_mm: Sequence[float], config: Prepare) -> Tensor:
    """Bring values on the prepared grid (C, *size) onto the scan's own grid (C, *shape).

    `shape` and `spacing_mm` are those of the scan as it was read. Undoes the steps of `PrepareChain` in reverse: what
    was padded is cut off, what was cut off is zero (the model has not seen it), then both resizings are undone at once.
    """
    if part := needed_part(shape, spacing_mm, config):
        out = values.new_zeros(len(values), *shape)
        inside = out[(slice(None), *part)]
        inside.copy_(to_scan(values, inside.shape[1:], spacing_mm, config))
        return out
    if config.spacing_mm is None:
        space = fitted(shape, config.size, config.fit, spacing_mm)
    else:
        space = fitted(resampled(shape, spacing_mm, config.spacing_mm), config.size, config.fit)
    return resize(crop_or_pad(values, space), shape)


def spread_out(size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Bring a stage's map (N, 1, *small) to the image's size.

    A convolution with an odd kernel, a stride and as much padding centres its place i on pixel i * stride. The usual
    upsampling takes it for the middle of a block of pixels and so moves every map half a stride down and to the right,
    which is 15 pixels at the last stage.
    """

    def spread(values: Tensor) -> Tensor:
        grid = torch.stack(
            torch.meshgrid(*[_places(n, h) for n, h in zip(size, values.shape[2:], strict=True)], indexing="ij")
        )
        # grid_sample counts axes from the last one.
        where = grid.flip(0).movedim(0, -1)[None].expand(len(values), *[-1] * (len(size) + 1))
        return nn.functional.grid_sample(values, where, padding_mode="border", align_corners=True)

    return spread


def _places(pixels: int, places: int) -> Tensor:
    """Where each of `pixels` lies among a stage's `places`, from -1 (the first) to 1 (the last)."""
    return torch.arange(pixels) / stride_of(pixels, places) * (2 / max(1, places - 1)) - 1


def stride_of(pixels: int, places: int) -> int:
    """How many pixels lie between the places of a stage, a power of two, of which there is one that gives so many.

    >>> stride_of(224, 7), stride_of(20, 20), stride_of(40, 2)
    (32, 1, 32)
    """
    stride = int(2 ** max(0, math.ceil(math.log2(pixels / places))))
    if -(-pixels // stride) == places:
        return stride
    # A pooling that does not pad has a place less, and a finer grid may have some behind the image's edge.
    return int(2 ** max(0, round(math.log2(pixels / places))))


def restore_masks(config: Prepare, before: Tensor, after: Tensor) -> Tensor:
    """Changed images (C, *size) or (N, C, *size) with the masks from before, and missing channels zeros again."""
    if config.missing_channel == "refuse":
        return after
    axis, count = before.ndim - len(config.size) - 1, len(config.channel_names)
    masks = before.narrow(axis, count, before.shape[axis] - count)
    return torch.cat([after.narrow(axis, 0, count) * masks, masks], axis)
