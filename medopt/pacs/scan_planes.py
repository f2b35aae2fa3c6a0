"""Where the images of a series lie in the patient, and values of the scan at their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import affine_transform

from medopt.core.records import FloatArray
from medopt.pacs.study_header import element_texts, image_header

_Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Plane:
    """A single-frame image in its frame of reference (PS3.3 C.7.6.2), all lengths in mm.

    `position` (3,) is the centre of its first pixel in LPS, `orientation` (6,) the directions of its rows and columns,
    `spacing` the distance of rows and of columns. `thickness` is None where the image does not give it.
    """

    image: Dataset
    frame_of_reference: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float | None
    rows: int
    columns: int

    @property
    def steps(self) -> _Vector:
        """(3, 3): columns that lead to the next slice (a unit vector), row and column of pixels."""
        right, down = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        return np.stack([np.cross(right, down), down * self.spacing[0], right * self.spacing[1]], axis=1)

    def origin(self, step: int) -> _Vector:
        """The centre of the first pixel (3,) where only every `step`-th is kept, from the middle of the first."""
        moved: _Vector = np.array(self.position) + self.steps @ [0, step // 2, step // 2]
        return moved


def scan_planes(images: Sequence[Dataset]) -> list[Plane]:
    """The planes of a series, in its order along their normal; [] where any image does not say where it lies."""
    planes = [plane for image in images if (plane := _plane(image)) is not None]
    if len(planes) < len(images) or not all(_is_parallel(plane, planes[0]) for plane in planes):
        return []
    normal = planes[0].steps[:, 0]
    return sorted(planes, key=lambda plane: float(normal @ plane.position))


def on_plane(values: FloatArray, affine: _Vector, plane: Plane, step: int) -> FloatArray:
    """Values of a scan at every `step`-th pixel of one of its images: (rows, columns), both rounded up.

    `values` (*space) lie on the scan's grid, whose `affine` (4, 4) maps (d, h, w) to LPS mm: its axes may be exchanged
    and reversed against those of the image. Linear between places of the grid; beyond its border the nearest.
    """
    grid = values if values.ndim == 3 else values[None]
    to_index = np.linalg.inv(affine)
    matrix = to_index[:3, :3] @ plane.steps * [1, step, step]
    start = (to_index @ [*plane.origin(step), 1])[:3]
    shape = (1, len(range(step // 2, plane.rows, step)), len(range(step // 2, plane.columns, step)))
    sampled = affine_transform(grid, matrix, start, output_shape=shape, order=1, mode="nearest", output=np.float32)
    return np.asarray(sampled[0])


def _plane(image: Dataset) -> Plane | None:
    header = image_header(image, Dataset())
    position, orientation = _numbers(image, "ImagePositionPatient", 3), _numbers(image, "ImageOrientationPatient", 6)
    spacing, frame = _numbers(image, "PixelSpacing", 2), element_texts(image, "FrameOfReferenceUID")
    frames = element_texts(image, "NumberOfFrames") or ["1"]
    if not (position and orientation and spacing and header.Rows and header.Columns and frames == ["1"]):
        return None
    if len(frame) != 1 or min(spacing) <= 0 or not _is_orthonormal(orientation):
        return None
    thickness = _numbers(image, "SliceThickness", 1)
    return Plane(
        image, frame[0], position, orientation, spacing, thickness[0] if thickness and thickness[0] > 0 else None,
        header.Rows, header.Columns,
    )  # fmt: skip


def _is_parallel(plane: Plane, other: Plane) -> bool:
    """Whether two planes have one frame of reference, one grid of pixels and, but for rounding, one direction."""
    grids = [(each.frame_of_reference, each.rows, each.columns) for each in (plane, other)]
    first, second = ((*each.orientation, *each.spacing) for each in (plane, other))
    return grids[0] == grids[1] and bool(np.allclose(first, second, atol=1e-4))


def _is_orthonormal(orientation: tuple[float, ...]) -> bool:
    """Whether rows and columns have unit directions at a right angle, within what headers round."""
    directions = np.reshape(orientation, (2, 3))
    return bool(np.allclose(directions @ directions.T, np.eye(2), atol=1e-3))


def _numbers(image: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    """That many finite numbers of an element; () where it has others."""
    try:
        numbers = tuple(float(text) for text in element_texts(image, keyword))
    except ValueError:
        return ()
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else ()
