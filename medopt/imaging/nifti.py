"""NIfTI to Volume (https://nifti.nimh.nih.gov/nifti-1): the affine from RAS to LPS, the axes in canonical order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import Volume
from medopt.imaging import geometry

_DEFLATE_LIMIT = 1032  # the highest ratio of deflate: a header that claims more voxels is damaged


def is_nifti(name: str) -> bool:
    """Whether the name of a file ends in .nii or .nii.gz."""
    return name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path) -> Volume:
    """A .nii or .nii.gz file: (C, D, H, W), or (C, H, W) where it holds a single slice. C is 3 for RGB voxels, else 1.

    Raises DataError where the file is damaged, holds several volumes, or does not say how it is oriented.
    """
    import nibabel  # takes half a second, and a DICOM study needs none of it

    try:
        image: Any = nibabel.load(path)
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
    factor = _DEFLATE_LIMIT if path.suffix == ".gz" else 1
    if claimed > path.stat().st_size * factor:
        raise DataError(f"{path} claims {claimed} bytes of voxels, more than it can hold: it is truncated or damaged.")
    return (grid[0], grid[1], grid[2])


def _ras_affine(image: Any, path: Path) -> geometry.Affine:
    """The affine (4, 4) in RAS mm: the sform, else the qform; where both are given, their axes must agree."""
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
    except DataError as error:
        raise error if str(path) in str(error) else DataError(f"{path}: {error}.") from error
    except Exception as error:
        raise DataError(f"{path}: the orientation in its header cannot be read ({type(error).__name__}).") from error
    return np.asarray(forms[0], dtype=np.float64)


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
    out = np.empty((len(channels), *axes.shape(shape)), dtype=np.float32)
    scaled = (slope, intercept) != (1.0, 0.0) and stored.dtype.names is None
    for target, channel in zip(out, channels, strict=True):
        volume = axes.to_volume(channel)
        for at in range(len(target)):  # slice by slice, so that little is ever held in double precision
            target[at] = volume[at] * slope + intercept if scaled else volume[at]
    return out
