"""Where voxels lie: orientation, spacing, and the one order of axes of every volume.

All positions are millimetres in DICOM's patient system LPS (PS3.3 C.7.6.2.1.1): x grows toward the patient's left,
y toward posterior, z toward the head (superior). NIfTI's x and y point the other way (RAS).

The axes (D, H, W) of a volume run toward Superior, Posterior and Left as closely as exchanging and reversing whole
axes allows; values are never interpolated. So the same scan gives the same array whether it comes as DICOM slices in
any direction, as a multi-frame object, or as NIfTI.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError

Affine = NDArray[np.float64]

LPS_FROM_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])
_WORLD_AXIS = (2, 1, 0)  # D runs along z, H along y, W along x


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axis of a grid becomes D, H and W, and which of the three are then reversed.

    >>> axes = Axes(order=(2, 1, 0), flip=(False, False, True))
    >>> axes.to_volume(np.zeros((4, 5, 6))).shape
    (6, 5, 4)
    """

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]

    def to_volume(self, grid: NDArray[Any]) -> NDArray[Any]:
        """The grid (..., a, b, c) as (..., D, H, W): a view, nothing is copied."""
        lead = grid.ndim - 3
        moved = grid.transpose(*range(lead), *(lead + axis for axis in self.order))
        return moved[(..., *(slice(None, None, -1 if flip else None) for flip in self.flip))]

    def to_grid(self, volume: NDArray[Any]) -> NDArray[Any]:
        """A volume (..., D, H, W) in the order of the grid: a view, the inverse of `to_volume`."""
        turned = volume[(..., *(slice(None, None, -1 if flip else None) for flip in self.flip))]
        lead = volume.ndim - 3
        return turned.transpose(*range(lead), *(lead + self.order.index(axis) for axis in range(3)))

    def shape(self, grid_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(D, H, W) of a grid of this shape."""
        return (grid_shape[self.order[0]], grid_shape[self.order[1]], grid_shape[self.order[2]])

    def affine(self, affine: Affine, grid_shape: tuple[int, ...]) -> Affine:
        """The affine (4, 4) of the volume, from the affine of a grid of this shape."""
        moved = affine.copy()
        for target, (axis, flip) in enumerate(zip(self.order, self.flip, strict=True)):
            moved[:, target] = -affine[:, axis] if flip else affine[:, axis]
            if flip:
                moved[:, 3] += affine[:, axis] * (grid_shape[axis] - 1)
        return moved


def canonical_axes(affine: Affine) -> Axes:
    """The exchange and reversal of axes that brings a grid closest to Superior, Posterior, Left.

    `affine` (4, 4) maps grid indices to LPS mm; it may be sheared. Raises DataError where it is singular.

    >>> canonical_axes(np.diag([-1.0, 1.0, 3.0, 1.0]))
    Axes(order=(2, 1, 0), flip=(False, False, True))
    """
    directions = affine[:3, :3]
    lengths = np.linalg.norm(directions, axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0 or abs(np.linalg.det(directions / lengths)) < 1e-3:
        raise DataError("its orientation is not usable: the affine is singular or not a number")
    cosines = directions / lengths

    def closeness(order: tuple[int, ...]) -> float:
        return sum(abs(float(cosines[world, axis])) for world, axis in zip(_WORLD_AXIS, order, strict=True))

    first, second, third = max(permutations(range(3)), key=closeness)
    order = (first, second, third)
    flips = [bool(cosines[world, axis] < 0) for world, axis in zip(_WORLD_AXIS, order, strict=True)]
    return Axes(order, (flips[0], flips[1], flips[2]))


def display_axes(axes: Axes, shape: tuple[int, int, int]) -> Axes:
    """Axes of a volume of one slice as the image is displayed: the slice, rows downward, columns rightward.

    `shape` is (D, H, W) in canonical order. Axial: rows to posterior, columns to left. Coronal: rows to the feet,
    columns to left. Sagittal: rows to the feet, columns to posterior (PS3.3 C.7.6.1.1.1 names the directions).
    """
    slice_axis = shape.index(1)
    rows, columns = (axis for axis in range(3) if axis != slice_axis)
    # The head is at the top: an axis that runs toward it is reversed when it becomes the rows.
    flips = [axes.flip[slice_axis], axes.flip[rows] != (rows == 0), axes.flip[columns]]
    return Axes((axes.order[slice_axis], axes.order[rows], axes.order[columns]), (flips[0], flips[1], flips[2]))


def spacing(affine: Affine) -> tuple[float, float, float]:
    """Millimetres from one index to the next along each axis of an affine (4, 4)."""
    d, h, w = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return (d, h, w)


def affine_from_steps(origin: NDArray[np.float64], *steps: NDArray[np.float64]) -> Affine:
    """An affine (4, 4) from the position of index (0, 0, 0) and the step along each of the three axes, all in mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.stack(steps, axis=1)
    affine[:3, 3] = origin
    return affine


def default_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Affine:
    """The affine (4, 4), for (D, H, W), of a scan without a place in the patient: canonical directions, origin 0."""
    d, h, w = spacing_mm
    return affine_from_steps(np.zeros(3), np.array([0, 0, d]), np.array([0, h, 0]), np.array([w, 0, 0]))
