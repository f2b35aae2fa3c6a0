"""Several images of one case, such as T1, T2 and ADC, as the channels of one Volume on the grid of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import FloatArray, Volume
from medopt.imaging.scan import read_scan

ScanPath = str | Path | tuple[str | Path, ...]
"""A scan's path; of a case of several images those of its channels in their order, "" for a missing one."""
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PS3.3 C.7.6.3.1.2 (YBR_FULL)
MAX_TURN = 0.01  # largest difference of two direction cosines
MAX_SHIFT = 0.1  # voxels between two grids that are called the same, anywhere in the image
MIN_COVER = 0.5  # share of the first's grid that another image must cover


def scan_name(scan: ScanPath) -> str:
    """What an error calls a scan: its path, or that of the first channel that is there."""
    return str(scan) if not isinstance(scan, tuple) else next((str(path) for path in scan if str(path)), "")


def read_channels(paths: Sequence[str | Path], names: Sequence[str], *, resample: bool = False) -> Volume:
    """Read the images of a case, in the order of `names`, into one Volume (K, *space) on the grid of the first.

    An empty path is a missing channel: zeros, and None in `Volume.channels`. Colour becomes luminance. With `resample`,
    an image of another spacing or extent is brought onto the first's grid, linearly; what it does not cover shows
    nothing. Raises DataError where an image cannot be read, where orientations differ, and where grids differ beyond a
    tenth of a voxel and `resample` is not asked for.
    """
    if len(paths) != len(names):
        raise DataError(f"A case has {len(paths)} images, and this study takes {len(names)}: {', '.join(names)}.")
    read = [(name, path, read_scan(path) if str(path) else None) for name, path in zip(names, paths, strict=True)]
    first = next(((name, volume) for name, _, volume in read if volume is not None), None)
    if first is None:
        raise DataError(f"A case has none of its images: {', '.join(names)}.")
    parts = [
        None if volume is None else _onto(first[1], volume, f"{path} ({name}) and {first[0]}", resample)
        for name, path, volume in read
    ]
    empty = np.zeros((1, *first[1].array.shape[1:]), np.float32)
    stack = np.concatenate([empty if part is None else part.array for part in parts])
    return replace(first[1], array=stack, background=None, channels=tuple(parts))


def split_channels(volume: Volume, count: int) -> list[Volume | None]:
    """The channels of a Volume (K, *space), each as a Volume (1, *space) that shares its memory; None where missing."""
    if len(volume.array) != count:
        raise DataError(f"A scan has {len(volume.array)} channels; this study takes {count}.")
    known = volume.channels or (volume,) * count
    return [
        None if one is None else replace(one, array=volume.array[at : at + 1], channels=())
        for at, one in enumerate(known)
    ]


def _grey(array: FloatArray) -> FloatArray:
    """(1, *space) as it is; the luminance of colour (3, *space)."""
    return array if len(array) == 1 else np.tensordot(np.asarray(LUMINANCE, np.float32), array, axes=1)[None]


def _onto(first: Volume, volume: Volume, what: str, resample: bool) -> Volume:
    """The image in grey on the grid of the first."""
    volume = replace(volume, array=_grey(volume.array))
    if volume.spatial_dims != first.spatial_dims:
        raise DataError(f"{what}: one is a single image and the other a volume; they cannot be channels of one case.")
    if first.has_spacing != volume.has_spacing:
        raise DataError(f"{what}: only one says how large its pixels are, so that they have no common grid.")
    turn = float(np.abs(_directions(first) - _directions(volume)).max())
    if turn > MAX_TURN:
        raise DataError(
            f"{what} are oriented otherwise (direction cosines differ by {turn:.2f}); they are no channels."
        )
    step = np.linalg.inv(volume.affine) @ first.affine  # from an index of the first to one of the image
    if first.array.shape[1:] == volume.array.shape[1:] and _shift(step, first) <= MAX_SHIFT:
        return volume
    if not resample:
        raise DataError(
            f"{what} have other grids: {_grid_text(volume)} and {_grid_text(first)}, {_shift(step, first):.2g} voxels "
            "apart. Register them, or bring them onto the first's grid with prepare.channel_grid: resample."
        )
    return _resampled(first, volume, step, what)


def _directions(volume: Volume) -> NDArray[np.float64]:
    steps = volume.affine[:3, :3]
    return np.asarray(steps / np.linalg.norm(steps, axis=0))


def _shift(step: NDArray[np.float64], first: Volume) -> float:
    """How many voxels lie between the two grids at most, at the corners of the first."""
    shape = (1, *first.array.shape[1:])[-3:]
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    return float(np.abs((corners @ step.T - corners)[:, :3]).max())


def _grid_text(volume: Volume) -> str:
    shape, spacing = (
        " x ".join(f"{value:.4g}" for value in row) for row in (volume.array.shape[1:], volume.spacing_mm)
    )
    return f"{shape} of {spacing} mm"


def _resampled(first: Volume, volume: Volume, step: NDArray[np.float64], what: str) -> Volume:
    """Linear interpolation; before it a Gaussian where the first's voxels are larger, as in skimage's resize."""
    from scipy.ndimage import affine_transform, gaussian_filter

    dims = first.spatial_dims
    matrix, offset = step[3 - dims : 3, 3 - dims : 3], step[3 - dims : 3, 3]
    shape = first.array.shape[1:]

    def moved(image: NDArray[Any], order: int, outside: float) -> NDArray[Any]:
        return np.asarray(
            affine_transform(image, matrix, offset, output_shape=shape, order=order, mode="constant", cval=outside)
        )

    shows = np.ones(volume.array.shape[1:]) if volume.background is None else (~volume.background).astype(float)
    covered = moved(shows, 0, 0.0) > 0.5
    if covered.mean() < MIN_COVER:
        raise DataError(
            f"{what}: it covers {covered.mean():.0%} of the first's grid; at least {MIN_COVER:.0%} is needed."
        )
    coarser = np.maximum(np.abs(np.diag(matrix)) - 1, 0) / 2
    smooth = gaussian_filter(volume.array[0], coarser) if coarser.any() else volume.array[0]
    array = moved(smooth.astype(np.float32), 1, float(np.nanmin(volume.array)))[None].astype(np.float32)
    return replace(
        volume,
        array=array,
        affine=first.affine,
        spacing_mm=first.spacing_mm,
        background=None if covered.all() else ~covered,
    )
