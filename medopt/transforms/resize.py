"""Resizing and fitting of (C, H, W) and (C, D, H, W) tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize the spatial axes with an antialiased triangle filter: (C, *space) to (C, *size).

    The filter is separable, so a volume is resized in its planes first and along its depth after; torch has no
    antialiased trilinear mode.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if image.ndim == 3:
        return _resize_plane(image[None], size)[0]
    depth, height, width = size
    planes = _resize_plane(image, (height, width))  # (C, D, h, w)
    columns = planes.movedim(1, 2)  # (C, h, D, w)
    return _resize_plane(columns, (depth, width)).movedim(2, 1).contiguous()


def _resize_plane(images: Tensor, size: Sequence[int]) -> Tensor:
    """Rows first: the pass along rows, the slower one, then has less to do."""
    for now in ((size[0], images.shape[-1]), (size[0], size[1])):
        if tuple(images.shape[-2:]) != now:
            images = F.interpolate(images, size=now, mode="bilinear", align_corners=False, antialias=True)
    return images


def crop_or_pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Cut or zero-fill each spatial axis around its centre: (C, *space) to (C, *size)."""
    out = image
    for axis, target in enumerate(size, start=1):
        excess = out.shape[axis] - target
        if excess > 0:
            out = out.narrow(axis, excess // 2, target)
    missing = [target - have for target, have in zip(size, out.shape[1:], strict=True)]
    if any(missing):
        pads = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
        out = F.pad(out, pads)
    return out


def fitted(shape: Sequence[int], size: Sequence[int], how: str) -> list[int]:
    """To what `shape` is resized: stretch, to `size`; pad, by one factor into it; crop_or_pad, not at all."""
    if how == "stretch":
        return list(size)
    if how == "crop_or_pad":
        return list(shape)
    factor = min(target / have for target, have in zip(size, shape, strict=True))
    return [max(1, round(have * factor)) for have in shape]
