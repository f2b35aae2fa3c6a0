"""Resizing and fitting of (C, H, W) and (C, D, H, W) tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from medopt.config import Prepare

MAX_VOXELS = 2**28
"""A gigabyte in float32: what a resized scan may have at most."""
_SQUARE = 0.01  # pixels whose sides differ by less are square, but for rounding in the header


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


def fitted(shape: Sequence[int], size: Sequence[int], how: str, spacing_mm: Sequence[float] | None = None) -> list[int]:
    """To what `shape` is resized: stretch, to `size`; pad, by one factor into it; crop_or_pad, not at all.

    With the spacing of an image (not of a volume) whose pixels are not square, the latter two make them so
    (PS3.3 C.7.6.3.1.7).
    """
    if how == "stretch":
        return list(size)
    extent = list(shape) if spacing_mm is None else square_shape(shape, spacing_mm)
    if how == "crop_or_pad":
        return [max(1, round(side)) for side in extent]
    factor = min(target / have for target, have in zip(size, extent, strict=True))
    return [max(1, round(have * factor)) for have in extent]


def square_shape(shape: Sequence[int], spacing_mm: Sequence[float]) -> list[float]:
    """The size of an image in square pixels as large as the shorter side of its own; of a volume, its shape.

    >>> square_shape((60, 120), (0.8, 0.4))
    [120.0, 120.0]
    """
    finest = min(spacing_mm)
    if len(shape) != 2 or max(spacing_mm) <= finest * (1 + _SQUARE):
        return list(shape)
    return [side * step / finest for side, step in zip(shape, spacing_mm, strict=True)]


def resampled(shape: Sequence[int], have_mm: Sequence[float], want_mm: Sequence[float]) -> list[int]:
    """The shape of a scan of spacing `have_mm` at the spacing `want_mm`."""
    return [max(1, round(n * have / want)) for n, have, want in zip(shape, have_mm, want_mm, strict=True)]


def needed_part(shape: Sequence[int], have_mm: Sequence[float], config: Prepare) -> list[slice] | None:
    """The middle of a scan, where resampling all of it would take too much memory and only that is kept; else None."""
    if config.spacing_mm is None or config.fit != "crop_or_pad":
        return None
    if not is_too_large(shape, resampled(shape, have_mm, config.spacing_mm)):
        return None
    part = []
    for n, have, want, kept in zip(shape, have_mm, config.spacing_mm, config.size, strict=True):
        need = min(n, math.ceil((kept + 4) * want / have) + 4)  # with a margin for the filter
        part.append(slice((n - need) // 2, (n - need) // 2 + need))
    return part


def is_too_large(shape: Sequence[int], size: Sequence[int]) -> bool:
    """Whether resizing passes through more than MAX_VOXELS: planes come first, then the depth."""
    return max(math.prod(size), math.prod([*shape[:-2], *size[-2:]])) > MAX_VOXELS
