"""NIfTI to Volume (https://nifti.nimh.nih.gov/nifti-1): the affine from RAS to LPS, the axes in canonical order."""

from __future__ import annotations

import gzip
import logging
import struct
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging import geometry

_DEFLATE_LIMIT = 1032  # the highest ratio of deflate: a header that claims more voxels is damaged
_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}  # unknown: the standard's usual unit
_SAME_SIZE = 0.01  # of a voxel: how far pixdim and the matrices may differ


def is_nifti(name: str) -> bool:
    """Whether the name of a file ends in .nii or .nii.gz."""
    return name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path) -> Volume:
    """A .nii or .nii.gz file: (C, D, H, W), or (C, H, W) where it holds a single slice. C is 3 for RGB voxels, else 1.

    Whether it is compressed follows from its content. Voxels that are not a number stay so. Raises DataError where the
    file is damaged, holds several volumes, infinite values, or does not say how large and how oriented its voxels are.
    """
    import nibabel  # takes half a second, and a DICOM study needs none of it

    try:
        image: Any = _opened(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise DataError(f"{path} is named as NIfTI and is another format.")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} is not readable as NIfTI ({type(error).__name__}). Get it again.") from error
    shape = _grid_shape(image, path)
    affine = geometry.LPS_FROM_RAS @ _ras_affine(image, path)
    axes = geometry.canonical_axes(affine)
    is_image = 1 in axes.shape(shape)
    if is_image:
        axes = geometry.display_axes(axes, axes.shape(shape))
    array = _voxels(image, shape, axes, path)
    affine = axes.affine(affine, shape)
    spacing = geometry.spacing(affine)
    facts = {"format": "NIfTI", "spacing": "affine", "orientation": "patient"}
    return Volume(array[:, 0] if is_image else array, affine, spacing[1:] if is_image else spacing, source=facts)


def nifti_shape(path: Path) -> tuple[int, ...]:
    """The shape in the header of a file, whatever its name; raises what nibabel does where it is damaged."""
    return tuple(int(size) for size in _opened(path).shape)


def _opened(path: Path) -> Any:
    """nibabel's image. nibabel goes by the name alone, so where that is wrong, it is given the stream."""
    import nibabel

    nibabel.imageglobals.logger.setLevel(logging.CRITICAL)  # what it mends in a header is refused here, with the file
    if _is_compressed(path) == path.name.lower().endswith(".gz"):
        return nibabel.load(path)
    stream = _stream(path)
    is_second = 540 in struct.unpack("<i", head := stream.read(4)) + struct.unpack(">i", head)
    stream.seek(0)
    return (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image).from_stream(stream)


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _stream(path: Path) -> BufferedIOBase:
    return gzip.open(path) if _is_compressed(path) else path.open("rb")


def _grid_shape(image: Any, path: Path) -> tuple[int, int, int]:
    """The spatial shape of the voxels as stored; refuses several volumes and headers that claim too much."""
    shape = tuple(int(size) for size in image.shape)
    grid = (*shape[:3], *(1,) * (3 - len(shape)))
    if any(size > 1 for size in shape[3:]):
        raise DataError(
            f"{path} holds {int(np.prod(shape[3:]))} volumes (shape {shape}: time points, contrasts or vectors), and "
            "one is needed. Split it into files of one volume each."
        )
    if min(grid, default=0) < 1 or sorted(grid)[1] < 2:
        raise DataError(f"{path} has the shape {shape}, which is not an image.")
    claimed = int(np.prod(grid, dtype=object)) * image.get_data_dtype().itemsize
    factor = _DEFLATE_LIMIT if _is_compressed(path) else 1
    if claimed > path.stat().st_size * factor:
        raise DataError(f"{path} claims {claimed} bytes of voxels, more than it can hold: it is truncated or damaged.")
    return (grid[0], grid[1], grid[2])


def _ras_affine(image: Any, path: Path) -> geometry.Affine:
    """The affine (4, 4) in RAS mm: the sform, else the qform; where both are given, axes and voxel size must agree."""
    from nibabel.orientations import io_orientation

    header = image.header
    try:
        forms = [
            form for form in (header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]) if form is not None
        ]
        if not forms:
            raise DataError(
                f"{path} does not say how it is oriented (sform_code and qform_code are 0), so left and right are "
                "unknown. Convert it again from its source."
            )
        for form in forms:
            geometry.canonical_axes(form)
        if len(forms) == 2 and not np.array_equal(io_orientation(forms[0]), io_orientation(forms[1])):
            raise DataError(
                f"{path}: sform and qform disagree on the patient's axes. Convert it again from its source."
            )
        _check_sizes(image, forms, path)
        scale = _MM[header.get_xyzt_units()[0]]
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}.") from error
    except Exception as error:
        raise DataError(f"{path}: the orientation in its header cannot be read ({type(error).__name__}).") from error
    return np.diag([scale, scale, scale, 1.0]) @ np.asarray(forms[0], dtype=np.float64)


def _check_sizes(image: Any, forms: Sequence[geometry.Affine], path: Path) -> None:
    """The voxel size stands in pixdim and in the matrices, and must be the same in all (nifti1.h, METHOD 2 and 3)."""
    sizes = np.abs(_pixdim(image, path))
    counted = [axis for axis, count in enumerate(image.shape[:3]) if count > 1]
    if not np.isfinite(sizes[counted]).all() or (sizes[counted] == 0).any():
        raise DataError(
            f"{path} does not say how large its voxels are: pixdim is {_sizes(sizes)}. Convert it again from its "
            "source."
        )
    for form in forms:
        lengths = np.linalg.norm(form[:3, :3], axis=0)
        if (np.abs(lengths - sizes)[counted] > _SAME_SIZE * sizes[counted]).any():
            raise DataError(
                f"{path}: its header gives two sizes of a voxel, {_sizes(sizes)} in pixdim and {_sizes(lengths)} in "
                "the matrix of sform or qform. Convert it again from its source."
            )


def _pixdim(image: Any, path: Path) -> NDArray[np.float64]:
    """pixdim[1..3] as the file has it: nibabel writes 1 in the place of 0."""
    with _stream(path) as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    return np.asarray(header["pixdim"][1:4], dtype=np.float64)


def _sizes(values: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _voxels(image: Any, shape: tuple[int, int, int], axes: geometry.Axes, path: Path) -> NDArray[np.float32]:
    """(C, D, H, W): stored values * scl_slope + scl_inter, written once in the order of `axes`."""
    try:
        proxy = image.dataobj
        stored = np.asarray(proxy.get_unscaled()).reshape(shape)
        slope, intercept = float(proxy.slope), float(proxy.inter)
    except Exception as error:
        raise DataError(f"{path}: its voxels cannot be read ({type(error).__name__}): truncated or damaged.") from error
    if stored.dtype.names:
        channels = [stored[name] for name in stored.dtype.names[:3]]  # RGB, without alpha
    elif np.issubdtype(stored.dtype, np.complexfloating):
        raise DataError(f"{path} holds complex numbers. Convert it to magnitude.")
    else:
        channels = [stored]
    if any(np.isinf(channel).any() for channel in channels if channel.dtype.kind == "f"):
        raise DataError(f"{path} holds infinite values. Convert it again from its source, or leave it out.")
    out = np.empty((len(channels), *axes.shape(shape)), dtype=np.float32)
    scaled = (slope, intercept) != (1.0, 0.0) and stored.dtype.names is None
    for target, channel in zip(out, channels, strict=True):
        volume = axes.to_volume(channel)
        for at in range(len(target)):  # slice by slice, so that little is ever held in double precision
            target[at] = volume[at] * slope + intercept if scaled else volume[at]
    return out
