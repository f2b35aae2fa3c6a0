"""Frames to an evenly spaced stack of slices, or the reason why they do not form one.

Order and spacing come from ImagePositionPatient alone (PS3.3 C.7.6.2.1.1). Every slice must lie within TOLERANCE of the
slice spacing from its place on the line through the first and the last slice. A step that leads sideways as well (a
tilted CT gantry) is kept: the affine is then sheared, as the scan is, because straightening it would need resampling.
The facts of the stack give the angle in degrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError, listed
from medopt.imaging.dicom_frames import FramePlane, FramePose
from medopt.imaging.geometry import Affine

TOLERANCE = 0.1  # of the slice spacing
_SAME_DIRECTION = 1e-3  # largest difference of direction cosines, 0.06 degrees
_SAME_SPACING = 1e-3  # mm
_SAME_PLACE_MM = 1e-3
_MIN_TILT_DEGREES = 0.1  # less is rounding
_MAX_TILT_DEGREES = 45.0  # beyond it, the axes of the volume could not be told apart


@dataclass(frozen=True, slots=True)
class Stack:
    """`order` lists the indices of the frames along the stack; `affine` (4, 4) maps (slice, row, column) to LPS mm."""

    order: tuple[int, ...]
    affine: Affine
    facts: dict[str, str]


def stack_frames(planes: Sequence[FramePlane], path: Path) -> Stack:
    """Order frames along their normal.

    Raises DataError naming the files for frames without a position, a scout among slices, mixed size, spacing or
    orientation, two frames in one place, a gap, or uneven steps.
    """
    poses = _poses(planes, path)
    _refuse_mixed(planes, poses, path)
    positions = np.array([pose.position for pose in poses])
    normal = poses[0].normal
    normal = normal * np.sign(normal[np.abs(normal).argmax()])  # toward left, posterior or superior, as in volumes
    along = positions @ normal
    order = tuple(np.argsort(along, kind="stable").tolist())
    names = [planes[index].name for index in order]
    _refuse_uneven(along[list(order)], names, path)
    step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    _refuse_bent(positions[list(order)], step, names, path)
    sideways = float(np.linalg.norm(step - (step @ normal) * normal))
    tilt = float(np.degrees(np.arctan2(sideways, step @ normal)))
    if tilt > _MAX_TILT_DEGREES:
        raise DataError(f"{path}: its slices slide sideways by {tilt:.0f} degrees; no gantry tilts that far.")
    facts = {"tilt_degrees": f"{tilt:.2f}"} if tilt > _MIN_TILT_DEGREES else {}
    return Stack(order, poses[order[0]].affine(step, planes[order[0]].spacing), facts)


def _poses(planes: Sequence[FramePlane], path: Path) -> list[FramePose]:
    without = [plane.name for plane in planes if plane.pose is None]
    if without:
        raise DataError(
            f"{path} holds {len(planes)} frames, and {len(without)} of them have no usable ImagePositionPatient and "
            f"ImageOrientationPatient: {listed(without, 3)}. They are not slices of one volume but a cine loop, views, "
            "tiles or time points, and which is meant is not said. Give one frame as a file."
        )
    return [plane.pose for plane in planes if plane.pose is not None]


def _refuse_mixed(planes: Sequence[FramePlane], poses: Sequence[FramePose], path: Path) -> None:
    """Refuse frames that differ in size, spacing or orientation, or have no spacing."""
    _refuse_scouts(planes, path)
    if any(plane.spacing_source != "PixelSpacing" for plane in planes):
        raise DataError(
            f"{path}: its slices have no usable PixelSpacing (0028,0030), so the size of the volume is unknown."
        )
    names = [plane.name for plane in planes]
    directions = [(*pose.right, *pose.down) for pose in poses]
    _uniform(names, [plane.size for plane in planes], "size", 0, path)
    _uniform(names, [plane.spacing for plane in planes], "pixel spacing", _SAME_SPACING, path)
    _uniform(names, directions, "orientation", _SAME_DIRECTION, path)


def _refuse_scouts(planes: Sequence[FramePlane], path: Path) -> None:
    scouts = [plane.name for plane in planes if "LOCALIZER" in (plane.header.get("ImageType") or [])]
    if scouts and len(scouts) < len(planes):
        raise DataError(
            f"{path}: a scout (ImageType LOCALIZER) lies among the slices: {listed(scouts)}. Move it elsewhere."
        )


def _uniform(
    names: Sequence[str], values: Sequence[tuple[float, ...]], what: str, tolerance: float, path: Path
) -> None:
    """Refuse frames whose values differ by more than the tolerance from the most frequent value, and name them."""
    groups: list[tuple[tuple[float, ...], list[str]]] = []  # value, names of the frames that have it
    for name, own in zip(names, values, strict=True):
        members = next(
            (members for value, members in groups if np.abs(np.subtract(value, own)).max() <= tolerance), None
        )
        if members is None:
            groups.append((own, members := []))
        members.append(name)
    if len(groups) > 1:
        usual, *others = sorted(groups, key=lambda group: -len(group[1]))
        odd = [f"{name} ({_short(value)})" for value, members in others for name in members]
        raise DataError(
            f"{path}: mixed {what} within one series. {len(usual[1])} frames have {_short(usual[0])}, others differ: "
            f"{listed(odd)}. A scout or another acquisition lies among the slices; move it elsewhere."
        )


def _short(value: tuple[float, ...]) -> str:
    return "\\".join(f"{item:.4g}" for item in value)


def _refuse_uneven(along: NDArray[np.float64], names: Sequence[str], path: Path) -> None:
    """Refuse gaps and uneven steps; `along` (n,) are the sorted positions along the normal in mm."""
    steps = np.diff(along)
    same = np.flatnonzero(steps < _SAME_PLACE_MM)
    if len(same):
        pairs = [f"{names[i]} and {names[i + 1]}" for i in same.tolist()]
        raise DataError(
            f"{path}: {len(same)} slices lie in the place of another: {listed(pairs, 3)}. They are copies, or "
            "several time points, echoes or directions in one series; give a folder with one frame for each position."
        )
    usual = float(np.median(steps))
    wide = np.flatnonzero(steps > 1.5 * usual)
    if len(wide):
        gaps = [f"{steps[i]:.2f} mm between {names[i]} and {names[i + 1]}" for i in wide.tolist()]
        raise DataError(
            f"{path}: a gap in the series, whose slices are {usual:.2f} mm apart: {listed(gaps, 3)}. Slices are "
            "missing, or a slice of another acquisition (a scout) lies among them. Get the complete series."
        )
    even = along[0] + (along[-1] - along[0]) / len(steps) * np.arange(len(along))
    _refuse_off_place(np.abs(along - even), float(steps.mean()), names, path, "uneven slice positions")


def _refuse_bent(positions: NDArray[np.float64], step: NDArray[np.float64], names: Sequence[str], path: Path) -> None:
    """Refuse slices beside the line from the first along `step` (3,) mm; `positions` (n, 3) are in order."""
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    _refuse_off_place(off, float(np.linalg.norm(step)), names, path, "slices shifted sideways unevenly")


def _refuse_off_place(off: NDArray[np.float64], usual: float, names: Sequence[str], path: Path, what: str) -> None:
    wrong = np.flatnonzero(off > TOLERANCE * usual)
    if len(wrong):
        places = [f"{names[i]} by {off[i]:.2f} mm" for i in wrong[np.argsort(-off[wrong])].tolist()]
        raise DataError(
            f"{path}: {what}. With slices {usual:.2f} mm apart, more than {TOLERANCE:.0%} of that off its place: "
            f"{listed(places, 3)}. Such a series cannot be given one spacing; get an evenly spaced reconstruction."
        )
