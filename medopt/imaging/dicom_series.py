"""DICOM files to one Volume: a single image, a multi-frame object, or the files of one series.

Slices are ordered by their position, never by file name or InstanceNumber (see `medopt.imaging.stack`). Pixels are
decoded one frame at a time, straight into the finished array: a series is never held twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medopt.core.errors import DataError, listed
from medopt.core.records import FloatArray, Volume
from medopt.imaging import geometry
from medopt.imaging.dicom_file import decoded, flaw, interpreting, is_dicom, other_object, read_header, source
from medopt.imaging.dicom_frames import FramePlane, planes
from medopt.imaging.dicom_values import ValueMapping, channels, meaning
from medopt.imaging.series_index import series_files
from medopt.imaging.stack import stacked

MOST_FILES = 20_000
# What scanners, viewers and media writers leave beside the images.
_BESIDE = re.compile(
    r".*\.(txt|md|json|xml|csv|tsv|pdf|html?|log|ini|inf|exe|db|bval|bvec|license)"
    r"|(dicomdir|license|readme|version|lockfile)(\..*)?",
    re.IGNORECASE,
)
# What files of one series share (PS3.3 A.1.2.3).
_ALIKE = ("PatientID", "FrameOfReferenceUID", "Modality")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    dataset: Dataset


def read_dicom(path: Path) -> Volume:
    """One DICOM file: an image (C, H, W), or the volume (C, D, H, W) of a multi-frame object.

    Raises DataError with the reason where it is no image, is damaged, or its frames form no volume.
    """
    dataset = read_header(path)
    with interpreting(str(path)):
        reason = other_object(dataset) or flaw(dataset)
    if reason:
        raise DataError(f"{path} is not read: {reason}.")
    return _volume([_File(path.name, dataset)], path)


def read_series(folder: Path, uid: str = "") -> Volume:
    """A folder, with the folders below it, that holds the images of exactly one series, or one of its series by UID.

    Objects that are no images (reports, segmentations, presentation states) may lie beside them. Raises DataError
    with the files where the folder holds no or several series, or where the slices form no even volume.
    """
    files, others, flawed = [], [], []
    for path in series_files(folder, uid) if uid else _candidates(folder):
        dataset, name = read_header(path, defer=True), str(path.relative_to(folder))
        with interpreting(name):
            if other := other_object(dataset):
                others.append(f"{name}: {other}")
            elif reason := flaw(dataset):
                flawed.append(f"{name}: {reason}")
            else:
                files.append(_File(name, dataset))
    if flawed:
        raise DataError(f"{folder} is not read, since part of it cannot be: {listed(flawed)}. Get these files again.")
    if not files:
        found = f" Found: {listed(others)}." if others else ""
        raise DataError(f"{folder} holds no DICOM image.{found} Give a file, or the folder of one series.")
    _one_series(files, folder)
    return _volume(files, folder)


def _candidates(folder: Path) -> list[Path]:
    """The folder's DICOM files, sorted by name. A file that should be one and is not is refused."""
    found, broken = [], []
    for path in folder.rglob("*"):
        if path.name.startswith(".") or _BESIDE.fullmatch(path.name) or not path.is_file():
            continue
        with path.open("rb") as stream:
            head = stream.read(132)
        if is_dicom(head):
            found.append(path)
        else:
            broken.append(str(path.relative_to(folder)) + (" (empty)" if not head else ""))
        if len(found) > MOST_FILES:
            raise DataError(f"{folder} holds more than {MOST_FILES} DICOM files. Give the folder of one series.")
    if broken and found:
        raise DataError(
            f"{folder} is not read, since not all of its files are DICOM: {listed(sorted(broken))}. If a slice was "
            "damaged on the way, get it again; move other files elsewhere."
        )
    return sorted(found)


def _one_series(files: Sequence[_File], folder: Path) -> None:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for file in files:
        series[str(file.dataset.get("SeriesInstanceUID") or "")].append(file.dataset)
    if len(series) > 1:
        raise DataError(
            f"{folder} holds {len(series)} series, and which one is meant is not said: "
            f"{listed(sorted(_described(members) for members in series.values()), most=12)}. Give the folder of one, "
            "or write its SeriesInstanceUID behind the folder: folder#UID."
        )


def _described(members: Sequence[Dataset]) -> str:
    first = members[0]
    what = str(first.get("SeriesDescription") or "").strip() or "no description"
    return f"number {first.get('SeriesNumber') or 'none'} {first.get('Modality') or ''} '{what}' ({len(members)} files)"


def _volume(files: Sequence[_File], path: Path) -> Volume:
    """Place every frame, give every value its meaning, and decode each frame to where it belongs."""
    frames, meanings = [], []
    for file in files:
        with interpreting(file.name):
            own = planes(file.dataset, file.name)
            frames += [(file, plane) for plane in own]
            meanings += [meaning(file.dataset, plane.header, plane.name) for plane in own]
    first, plane = frames[0]
    facts = source(first.dataset) | {"spacing": plane.spacing_from}
    if len(frames) == 1:
        array = np.empty((channels(first.dataset), *plane.size), dtype=np.float32)
        meanings[0].write(next(decoded(first.dataset, first.name)), array)
        facts["orientation"] = "patient" if plane.pose is not None else "unknown"
        return Volume(array, plane.affine(), plane.spacing, _modality(first), meanings[0].window, facts)
    _same_kind(frames, meanings, path)
    stack = stacked([plane for _, plane in frames], path)
    grid_shape = (len(frames), *plane.size)
    axes = geometry.canonical_axes(stack.affine)
    array = np.empty((channels(first.dataset), *axes.shape(grid_shape)), dtype=np.float32)
    _fill(axes.undone(array), files, meanings, stack.order)
    affine = axes.affine(stack.affine, grid_shape)
    window = meanings[stack.order[len(frames) // 2]].window
    facts |= {"orientation": "patient"} | stack.facts
    return Volume(array, affine, geometry.spacing(affine), _modality(first), window, facts)


def _fill(slots: FloatArray, files: Sequence[_File], meanings: Sequence[ValueMapping], order: Sequence[int]) -> None:
    """Decode every frame into its slot of (C, slice, row, column)."""
    place = {frame: slot for slot, frame in enumerate(order)}
    frame = 0
    for file in files:
        for pixels in decoded(file.dataset, file.name):
            meanings[frame].write(pixels, slots[:, place[frame]])
            frame += 1
        if "PixelData" in file.dataset:
            del file.dataset.PixelData  # its room is wanted for the next file


def _modality(file: _File) -> str:
    return str(file.dataset.get("Modality") or "")


def _same_kind(frames: Sequence[tuple[_File, FramePlane]], meanings: Sequence[ValueMapping], path: Path) -> None:
    """Refuse a series whose files differ in kind: patient, frame of reference, modality, colour, or polarity."""
    kinds = defaultdict(list)
    for (file, plane), own in zip(frames, meanings, strict=True):
        photometric = str(file.dataset.get("PhotometricInterpretation") or "")
        mirrored = (own.slope, own.intercept) if photometric == "MONOCHROME1" else ()
        belongs = tuple(str(file.dataset.get(keyword) or "") for keyword in _ALIKE)
        kinds[belongs, photometric, channels(file.dataset), mirrored].append(plane.name)
    if len(kinds) > 1:
        fewest = min(kinds.values(), key=len)
        raise DataError(
            f"{path}: its files form no series, since they differ in patient, frame of reference, modality, colour or "
            f"grey scale. The fewest of a kind: {listed(fewest)}. Move them elsewhere."
        )
