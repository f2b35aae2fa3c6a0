"""Several images of one case, such as T1, T2 and ADC, as the channels of one Volume on the grid of the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.config import Prepare
from medopt.core.errors import DataError
from medopt.core.records import FloatArray, Volume
from medopt.imaging.scan import read_scan

ScanPath = str | Path | tuple[str | Path, ...]
"""A scan's path; of a case of several images those of its channels in their order, "" for a missing one."""
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PS3.3 C.7.6.3.1.2 (YBR_FULL)
FRAME = "frame_of_reference"
MAX_TURN = 0.01  # largest difference of two direction cosines
MAX_SHIFT = 0.1  # voxels between two grids that are called the same, anywhere in the image
MIN_COVER = 0.5  # share of the first's grid that another image must cover


def scan_name(scan: ScanPath) -> str:
    """What an error calls a scan: its path, or that of the first channel that is there."""
    return str(scan) if not isinstance(scan, tuple) else next((str(path) for path in scan if str(path)), "")


def read_case(paths: Sequence[str | Path], prepare: Prepare) -> Volume:
    """Read the images of a case of a study; see `read_channels`."""
    return read_channels(
        paths,
        prepare.channel_names,
        resample=prepare.channel_grid == "resample",
        registered=prepare.channel_frames == "registered",
        one_patient=prepare.channel_patients == "same",
    )


def read_channels(
    paths: Sequence[str | Path],
    names: Sequence[str],
    *,
    resample: bool = False,
    registered: bool = False,
    one_patient: bool = True,
) -> Volume:
    """Read the images of a case, in the order of `names`, into one Volume (K, *space) on the grid of the first.

    An empty path is a missing channel: zeros, and None in `Volume.channels`; the others share the memory of the array.
    Colour becomes luminance. With `resample`, an image of another spacing or extent is interpolated linearly on the
    first's grid; voxels that it does not cover become background. Raises DataError where an image cannot be read or is
    given twice, where orientations differ, where grids differ by more than a tenth of a voxel and `resample` is false,
    and where an image would have to be resampled whose place in the patient is not known. So it does where DICOM says
    that images are of several patients, unless `one_patient` is false, or have several frames of reference, so that the
    position of one says nothing about another (PS3.3 C.7.4.1.1.1), unless they were `registered`.
    """
    given = [(name, path) for name, path in zip(names, paths, strict=False) if str(path)]
    if len(paths) != len(names):
        raise DataError(f"A case has {len(paths)} images, and this study takes {len(names)}: {', '.join(names)}.")
    if not given:
        raise DataError(f"A case has none of its images: {', '.join(names)}.")
    for at, (name, path) in enumerate(given):
        if same := [other for other, one in given[:at] if str(one) == str(path)]:
            raise DataError(f"{path} is given as {same[0]} and as {name}. Give another image for each.")
    first = read_scan(given[0][1])
    stack = np.zeros((len(names), *first.array.shape[1:]), np.float32)
    parts: list[Volume | None] = [None] * len(names)
    said: dict[str, tuple[str, str]] = {}
    for name, path in given:
        volume = first if name == given[0][0] else read_scan(path)
        at = names.index(name)
        _refuse_other(said, volume, path, name, (one_patient, not registered))
        part = _onto(first, volume, f"{path} ({name}) and {given[0][0]}", resample)
        if same := [
            one for one, row in zip(names, parts, strict=True) if row and _same_pixels(row.array[0], part.array[0])
        ]:
            raise DataError(f"{path} ({name}) and {same[0]} have the same pixels. Give another image for each.")
        stack[at] = part.array[0]
        parts[at] = replace(part, array=stack[at : at + 1])
        if volume is first:
            first = replace(first, array=stack[at : at + 1])
    return replace(first, array=stack, background=None, channels=tuple(parts))


def _refuse_other(
    first_values: dict[str, tuple[str, str]], volume: Volume, path: str | Path, name: str, compared: tuple[bool, bool]
) -> None:
    """Raise DataError where an image is of another patient or in another frame of reference than `first_values` has.

    `compared` says which of the two are.
    """
    one_patient, one_frame = compared
    if one_patient and (other := _contradicts(first_values, "patient", volume, name)):
        raise DataError(
            f"{path} ({name}) and {other} are of different patients by their headers (PatientID). Give the images of "
            "one patient. Where PatientID stands for no patient: prepare.channel_patients: ignore."
        )
    if one_frame and _has_place(volume) and (other := _contradicts(first_values, FRAME, volume, name)):
        raise DataError(
            f"{path} ({name}) and {other} have different frames of reference (FrameOfReferenceUID), so their positions "
            "cannot be compared (PS3.3 C.7.4.1.1.1). Where they were registered to each other: "
            "prepare.channel_frames: registered."
        )


def _contradicts(first_values: dict[str, tuple[str, str]], key: str, volume: Volume, name: str) -> str:
    """The name of the first image whose file says something else; empty where none does."""
    value = volume.source.get(key, "")
    if not value:
        return ""
    other, before = first_values.setdefault(key, (name, value))
    return other if before != value else ""


def _same_pixels(first: FloatArray, second: FloatArray) -> bool:
    """Whether two images of one shape are the same, and no plain surface; the middle mostly settles it."""
    middle = len(first) // 2
    parts = ((first[middle], second[middle]), (first, second))
    return all(np.array_equal(one, other, equal_nan=True) for one, other in parts) and bool(np.ptp(first) > 0)


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
        raise DataError(f"{what}: only one of them says how large its pixels are, so they have no common grid.")
    if _has_place(first) != _has_place(volume):
        raise DataError(f"{what}: only one of them says where it lies in the patient, so they have no common grid.")
    turn = float(np.abs(_directions(first) - _directions(volume)).max())
    if turn > MAX_TURN:
        raise DataError(
            f"{what} have different orientations (direction cosines differ by {turn:.2f}), so they cannot be channels "
            "of one case. Reformat one of them first."
        )
    step = np.linalg.inv(volume.affine) @ first.affine  # from an index of the first to one of the image
    if first.array.shape[1:] == volume.array.shape[1:] and _shift(step, first) <= MAX_SHIFT:
        return volume
    grids = f"{what} have different grids: {_grid_text(volume)} and {_grid_text(first)}"
    if not _has_place(first):
        raise DataError(
            f"{grids}. Neither says where it lies in the patient, so which pixels show the same place is not known. "
            "Register them and save them on one grid first."
        )
    if first.spatial_dims == 2 and (apart := _slices_apart(step, first)) > MAX_SHIFT:
        raise DataError(
            f"{grids}. They are different slices, {apart:.2g} slice thicknesses apart, so they cannot be channels of "
            "one case."
        )
    if not resample:
        raise DataError(
            f"{grids}, {_shift(step, first):.2g} voxels apart. Register them, or resample them on the first's grid "
            "with prepare.channel_grid: resample."
        )
    return _resampled(first, volume, step, what)


def _has_place(volume: Volume) -> bool:
    """Whether the file says where the scan lies in the patient; without that, its affine is made up."""
    return volume.source.get("orientation", "unknown") != "unknown"


def _directions(volume: Volume) -> NDArray[np.float64]:
    steps = volume.affine[:3, :3]
    return np.asarray(steps / np.linalg.norm(steps, axis=0))


def _shift(step: NDArray[np.float64], first: Volume) -> float:
    """How many voxels lie between the two grids at most, at the corners of the first."""
    return float(_offsets(step, first).max())


def _slices_apart(step: NDArray[np.float64], first: Volume) -> float:
    """How far the plane of a single image is from that of another at most, in slice thicknesses of the other."""
    return float(_offsets(step, first)[:, 0].max())


def _offsets(step: NDArray[np.float64], first: Volume) -> NDArray[np.float64]:
    """(8, 3): between the two grids at the corners of the first, in voxels along each axis."""
    shape = (1, *first.array.shape[1:])[-3:]
    corners = np.array([[*index, 1] for index in np.ndindex(2, 2, 2)]) * [*(n - 1 for n in shape), 1]
    return np.asarray(np.abs((corners @ step.T - corners)[:, :3]))


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
            f"{what}: the former covers {covered.mean():.0%} of the grid of the latter; at least {MIN_COVER:.0%} is "
            "needed."
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
