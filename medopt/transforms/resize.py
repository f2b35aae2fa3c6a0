"""Resizing and fitting of (C, H, W) and (C, D, H, W) tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def crop_or_pad(image: Tensor, size: Sequence[int]) -> Tensor:
    """Cut or zero-fill each spatial axis around its centre: (C, *space) to (C, *size)."""
    out = image
    for axis, wanted in enumerate(size, start=1):
        excess = out.shape[axis] - wanted
        if excess > 0:
            out = out.narrow(axis, excess // 2, wanted)
    missing = [wanted - have for wanted, have in zip(size, out.shape[1:], strict=True)]
    if any(missing):
        pads = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
        out = F.pad(out, pads)
    return out


def fit(image: Tensor, size: Sequence[int], how: str) -> Tensor:
    """Bring an image to `size` by `how`: stretch, pad (keeps the aspect) or crop_or_pad (keeps the scale)."""
    if how == "stretch":
        return resize(image, size)
    if how == "pad":
        factor = min(wanted / have for wanted, have in zip(size, image.shape[1:], strict=True))
        image = resize(image, [max(1, round(have * factor)) for have in image.shape[1:]])
    return crop_or_pad(image, size).contiguous(memory_format=torch.contiguous_format)
