"""Where each DICOM frame lies: one record a frame, alike for a classic slice and a frame of an enhanced object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medopt.core.errors import DataError
from medopt.imaging import geometry
from medopt.imaging.dicom_file import number_of_frames, vector

_Vector = NDArray[np.float64]

# Functional group macros that place a frame or give its values a meaning (PS3.3 C.7.6.16.2).
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
    """How a frame lies in the patient: the centre of its first pixel in LPS mm, and unit vectors along its rows
    (`right`) and down its columns (`down`).
    """

    position: _Vector
    right: _Vector
    down: _Vector

    @property
    def normal(self) -> _Vector:
        """The unit vector perpendicular to the frame."""
        return np.cross(self.right, self.down)

    def affine(self, step: _Vector, spacing: tuple[float, float]) -> geometry.Affine:
        """Index (slice, row, column) to LPS mm, where `step` (mm) leads from one slice to the next."""
        return geometry.placed(self.position, step, self.down * spacing[0], self.right * spacing[1])


@dataclass(frozen=True, slots=True)
class FramePlane:
    """One frame: its name for messages, its header, its size in pixels and mm, and its pose where the file has one."""

    name: str
    header: FrameHeader
    size: tuple[int, int]
    spacing: tuple[float, float]
    spacing_from: str
    pose: FramePose | None

    def affine(self) -> geometry.Affine:
        """Index (0, row, column) of this frame alone to LPS mm; the step leads along the normal by its thickness."""
        if self.pose is None:
            return geometry.unplaced((1.0, *self.spacing))
        thickness = vector([self.header.get("SliceThickness")], 1)
        step = float(thickness[0]) if thickness is not None and thickness[0] > 0 else 1.0
        return self.pose.affine(self.pose.normal * step, self.spacing)


def planes(dataset: Dataset, name: str) -> list[FramePlane]:
    """Every frame of a file, in the file's order.

    Raises DataError where the size, the spacing or the functional groups cannot be used.
    """
    count = number_of_frames(dataset, name)
    size = (int(dataset.Rows), int(dataset.Columns))
    found = []
    for index in range(count):
        header = FrameHeader(dataset, index)
        spacing, spacing_from = pixel_spacing(header)
        label = f"{name} frame {index + 1}" if count > 1 else name
        found.append(FramePlane(label, header, size, spacing, spacing_from, _pose(header)))
    if min(size) < 1:
        raise DataError(f"{name}: Rows is {size[0]} and Columns is {size[1]}: there is nothing to read.")
    return found


def _pose(header: FrameHeader) -> FramePose | None:
    """Position and direction cosines (PS3.3 C.7.6.2.1.1), or None where they are absent or not orthonormal."""
    position = vector(header.get("ImagePositionPatient"), 3)
    orientation = vector(header.get("ImageOrientationPatient"), 6)
    if position is None or orientation is None:
        return None
    right, down = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(right), np.linalg.norm(down)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(right @ down) > 0.01:
        return None
    return FramePose(position, right / lengths[0], down / lengths[1])


# Where the distance of pixels is looked for, and what it then means (PS3.3 10.7.1.3).
_SPACINGS = (
    ("PixelSpacing", "PixelSpacing"),
    ("ImagerPixelSpacing", "ImagerPixelSpacing: at the detector, not in the patient"),
    ("NominalScannedPixelSpacing", "NominalScannedPixelSpacing: on the film"),
)
_CM = 3  # PS3.3 C.8.5.5.1.15


def pixel_spacing(header: FrameHeader) -> tuple[tuple[float, float], str]:
    """Millimetres between (rows, columns), and the element they come from.

    An element of zeros says nothing, as one that is absent. Where nothing is said, 1.0 is taken and noted.
    """
    for keyword, note in _SPACINGS:
        found = vector(header.get(keyword), 2)
        if found is not None and found.min() > 0:
            return (float(found[0]), float(found[1])), note
    regions = header.get("SequenceOfUltrasoundRegions") or []
    if (
        len(regions) == 1
        and regions[0].get("PhysicalUnitsXDirection") == regions[0].get("PhysicalUnitsYDirection") == _CM
    ):
        found = vector((regions[0].get("PhysicalDeltaY"), regions[0].get("PhysicalDeltaX")), 2)
        if found is not None and found.all():
            return (abs(float(found[0])) * 10, abs(float(found[1])) * 10), "SequenceOfUltrasoundRegions"
    aspect = vector(header.get("PixelAspectRatio"), 2)
    if aspect is not None and aspect.min() > 0 and aspect[0] != aspect[1]:
        return (float(aspect[0] / aspect[1]), 1.0), "unknown: 1.0 along a row, PixelAspectRatio down a column"
    return (1.0, 1.0), "unknown: 1.0 is assumed"
