"""Where each DICOM frame lies: one record per frame, the same for a classic slice and a frame of an enhanced object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medopt.core.errors import DataError
from medopt.imaging import geometry
from medopt.imaging.dicom_file import finite_numbers, number_of_frames

_Vector = NDArray[np.float64]

# Functional group macros that place a frame or say what its values mean (PS3.3 C.7.6.16.2).
_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)


class FrameHeader:
    """The header as one frame sees it: its own functional groups first, then the shared ones, then the file's."""

    def __init__(self, dataset: Dataset, index: int = 0) -> None:
        """`index` counts frames from 0."""
        layers = [dataset]
        for keyword, item in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", index)):
            groups = dataset.get(keyword)
            if groups and item < len(groups):
                layers += [groups[item][macro][0] for macro in _MACROS if groups[item].get(macro)]
        self._layers = layers[::-1]

    def get(self, keyword: str, default: Any = None) -> Any:
        """The element's value, or `default` where no layer has it."""
        return next((layer.get(keyword) for layer in self._layers if keyword in layer), default)


@dataclass(frozen=True, slots=True)
class FramePose:
    """How a frame lies in the patient (PS3.3 C.7.6.2.1.1).

    `position` (3,) is the centre of its first pixel in LPS mm; `right` (3,) and `down` (3,) are unit vectors along its
    rows and down its columns.
    """

    position: _Vector
    right: _Vector
    down: _Vector

    @property
    def normal(self) -> _Vector:
        """The unit vector (3,) perpendicular to the frame."""
        return np.cross(self.right, self.down)

    def affine(self, step: _Vector, spacing: tuple[float, float]) -> geometry.Affine:
        """(4, 4) from index (slice, row, column) to LPS mm; `step` (3,) in mm leads from one slice to the next.

        `spacing` is the distance of rows and of columns in mm.
        """
        return geometry.affine_from_steps(self.position, step, self.down * spacing[0], self.right * spacing[1])


@dataclass(frozen=True, slots=True)
class FramePlane:
    """One frame: its name in messages, its header, its size in pixels, its spacing in mm, and its pose if it has one.

    `size` and `spacing` are (rows, columns); `spacing_source` names the element that the spacing comes from.
    """

    name: str
    header: FrameHeader
    size: tuple[int, int]
    spacing: tuple[float, float]
    spacing_source: str
    pose: FramePose | None

    def affine(self) -> geometry.Affine:
        """(4, 4) from index (0, row, column) of this frame alone to LPS mm; its thickness is the step of the slices."""
        if self.pose is None:
            return geometry.default_affine((1.0, *self.spacing))
        thickness = finite_numbers([self.header.get("SliceThickness")], 1)
        step = float(thickness[0]) if thickness is not None and thickness[0] > 0 else 1.0
        return self.pose.affine(self.pose.normal * step, self.spacing)


def read_planes(dataset: Dataset, name: str) -> list[FramePlane]:
    """Every frame of a file, in the order of the file. `name` stands for the file in messages.

    Raises DataError where the number of frames or their size cannot be used.
    """
    count = number_of_frames(dataset, name)
    size = (int(dataset.Rows), int(dataset.Columns))
    if min(size) < 1:
        raise DataError(f"{name}: Rows is {size[0]} and Columns is {size[1]}: there is nothing to read.")
    planes = []
    for index in range(count):
        header = FrameHeader(dataset, index)
        label = f"{name} frame {index + 1}" if count > 1 else name
        planes.append(FramePlane(label, header, size, *pixel_spacing(header), _read_pose(header)))
    return planes


def _read_pose(header: FrameHeader) -> FramePose | None:
    """Position and direction cosines, or None where they are absent or not orthonormal."""
    position = finite_numbers(header.get("ImagePositionPatient"), 3)
    orientation = finite_numbers(header.get("ImageOrientationPatient"), 6)
    if position is None or orientation is None:
        return None
    right, down = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(right), np.linalg.norm(down)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(right @ down) > 0.01:
        return None
    return FramePose(position, right / lengths[0], down / lengths[1])


# Elements that give the distance of pixels, in order, and what the distance then means (PS3.3 10.7.1.3).
_SPACINGS = (
    ("PixelSpacing", "PixelSpacing"),
    ("ImagerPixelSpacing", "ImagerPixelSpacing: at the detector, not in the patient"),
    ("NominalScannedPixelSpacing", "NominalScannedPixelSpacing: on the film"),
)
_CENTIMETRES = 3  # PS3.3 C.8.5.5.1.15


def pixel_spacing(header: FrameHeader) -> tuple[tuple[float, float], str]:
    """Millimetres between (rows, columns), and the element they come from.

    An element of zeros counts as absent. Without any, 1.0 mm is assumed, and the text says so.
    """
    for keyword, meaning in _SPACINGS:
        spacing = finite_numbers(header.get(keyword), 2)
        if spacing is not None and spacing.min() > 0:
            return (float(spacing[0]), float(spacing[1])), meaning
    regions = header.get("SequenceOfUltrasoundRegions") or []
    if (
        len(regions) == 1
        and regions[0].get("PhysicalUnitsXDirection") == regions[0].get("PhysicalUnitsYDirection") == _CENTIMETRES
    ):
        deltas = finite_numbers((regions[0].get("PhysicalDeltaY"), regions[0].get("PhysicalDeltaX")), 2)
        if deltas is not None and deltas.all():
            return (abs(float(deltas[0])) * 10, abs(float(deltas[1])) * 10), "SequenceOfUltrasoundRegions"
    aspect = finite_numbers(header.get("PixelAspectRatio"), 2)
    if aspect is not None and aspect.min() > 0 and aspect[0] != aspect[1]:
        return (float(aspect[0] / aspect[1]), 1.0), "unknown: 1.0 along a row, PixelAspectRatio down a column"
    return (1.0, 1.0), "unknown: 1.0 is assumed"
