"""DICOM files to one Volume: a single image, a multi-frame object, or the files of one series.

Slices are ordered by their position, never by file name or InstanceNumber (see `medopt.imaging.stack`). Pixels are
decoded one frame at a time, straight into the finished array: a series is never held twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medopt.core.errors import DataError, listed
from medopt.core.records import FloatArray, Volume
from medopt.imaging import geometry
from medopt.imaging.background import darkened
from medopt.imaging.dicom_file import (
    decode_frames,
    header_errors,
    is_dicom,
    not_an_image_reason,
    read_header,
    source_facts,
    unreadable_reason,
)
from medopt.imaging.dicom_frames import FramePlane, read_planes
from medopt.imaging.dicom_values import ValueMapping, channel_count, value_mapping
from medopt.imaging.scan_path import files_below
from medopt.imaging.series_index import series_files
from medopt.imaging.stack import stack_frames

MAX_FILES = 20_000
# Files that scanners, viewers and media writers leave beside the images.
_BESIDE = re.compile(
    r".*\.(txt|md|json|xml|csv|tsv|pdf|html?|log|ini|inf|exe|db|bval|bvec|license)"
    r"|(dicomdir|license|readme|version|lockfile)(\..*)?",
    re.IGNORECASE,
)
# Elements that all files of one series share (PS3.3 A.1.2.3).
_SHARED = ("PatientID", "FrameOfReferenceUID", "Modality", "Units")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    dataset: Dataset


def read_dicom(path: Path) -> Volume:
    """One DICOM file: an image (C, H, W), or the volume (C, D, H, W) of a multi-frame object.

    Raises DataError with the reason where it is not an image, is damaged, or its frames do not form a volume.
    """
    dataset = read_header(path)
    with header_errors(str(path)):
        reason = not_an_image_reason(dataset) or unreadable_reason(dataset)
    if reason:
        raise DataError(f"{path} is not read: {reason}.")
    return _volume([_File(path.name, dataset)], path)


def read_series(folder: Path, uid: str = "") -> Volume:
    """The images of one DICOM series below a folder: (C, H, W) or (C, D, H, W).

    Without `uid` (a SeriesInstanceUID) the folder must hold exactly one series; objects that are not images (reports,
    segmentations, presentation states) may lie beside it. Raises DataError naming the files where the folder holds no
    series or several, or where the slices do not form an even volume.
    """
    files, others, flawed = [], [], []
    for path in series_files(folder, uid) if uid else _candidates(folder):
        dataset, name = read_header(path, defer=True), str(path.relative_to(folder))
        with header_errors(name):
            if other := not_an_image_reason(dataset):
                others.append(f"{name}: {other}")
            elif reason := unreadable_reason(dataset):
                flawed.append(f"{name}: {reason}")
            else:
                files.append(_File(name, dataset))
    if flawed:
        raise DataError(f"{folder} is not read, since part of it cannot be: {listed(flawed)}. Get these files again.")
    if not files:
        beside = f" Found: {listed(others)}." if others else ""
        raise DataError(f"{folder} holds no DICOM image.{beside} Give a file, or the folder of one series.")
    _one_series(files, folder)
    return _volume(files, folder)


def _candidates(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name. Raises DataError where a file should be DICOM and is not."""
    dicom, broken = [], []
    for path in map(folder.joinpath, files_below(folder)):
        if _BESIDE.fullmatch(path.name) or not path.is_file():
            continue
        with path.open("rb") as stream:
            head = stream.read(132)
        if is_dicom(head):
            dicom.append(path)
        else:
            broken.append(str(path.relative_to(folder)) + (" (empty)" if not head else ""))
        if len(dicom) > MAX_FILES:
            raise DataError(f"{folder} holds more than {MAX_FILES} DICOM files. Give the folder of one series.")
    if broken and dicom:
        raise DataError(
            f"{folder} is not read, since not all of its files are DICOM: {listed(sorted(broken))}. If a slice was "
            "damaged on the way, get it again; move other files elsewhere."
        )
    return sorted(dicom)


def _one_series(files: Sequence[_File], folder: Path) -> None:
    series: dict[str, list[Dataset]] = defaultdict(list)
    for file in files:
        series[str(file.dataset.get("SeriesInstanceUID") or "")].append(file.dataset)
    if len(series) > 1:
        raise DataError(
            f"{folder} holds {len(series)} series, and which one is meant is not said: "
            f"{listed(sorted(_series_label(members) for members in series.values()), 12)}. Give the folder of one, "
            "or write its SeriesInstanceUID behind the folder: folder#UID."
        )


def _series_label(members: Sequence[Dataset]) -> str:
    first = members[0]
    description = str(first.get("SeriesDescription") or "").strip() or "no description"
    number, modality = first.get("SeriesNumber") or "none", first.get("Modality") or ""
    return f"number {number} {modality} '{description}' ({len(members)} files)"


def _volume(files: Sequence[_File], path: Path) -> Volume:
    """Place every frame, map its values, and decode each frame straight into its slice of the array."""
    frames, mappings = [], []
    for file in files:
        with header_errors(file.name):
            planes = read_planes(file.dataset, file.name)
            frames += [(file, plane) for plane in planes]
            mappings += [value_mapping(file.dataset, plane.header, plane.name) for plane in planes]
    first, plane = frames[0]
    facts = source_facts(first.dataset) | {"spacing": plane.spacing_source}
    has_padding = any(mapping.padding for mapping in mappings)
    if len(frames) == 1:
        array = np.empty((channel_count(first.dataset), *plane.size), dtype=np.float32)
        background = np.zeros(plane.size, bool) if has_padding else None
        mappings[0].write(next(decode_frames(first.dataset, first.name)), array, background)
        facts["orientation"] = "patient" if plane.pose is not None else "unknown"
        image = Volume(array, plane.affine(), plane.spacing, _modality(first), mappings[0].window, facts)
        return _without_padding(
            replace(image, window_function=mappings[0].window_function, background=background), path
        )
    _refuse_mixed(frames, mappings, path)
    stack = stack_frames([plane for _, plane in frames], path)
    grid_shape = (len(frames), *plane.size)
    axes = geometry.canonical_axes(stack.affine)
    array = np.empty((channel_count(first.dataset), *axes.shape(grid_shape)), dtype=np.float32)
    background = np.zeros(array.shape[1:], bool) if has_padding else None
    padded = axes.to_grid(background) if background is not None else None
    _fill(axes.to_grid(array), padded, files, mappings, stack.order)
    affine = axes.affine(stack.affine, grid_shape)
    middle = mappings[stack.order[len(frames) // 2]]
    facts |= {"orientation": "patient"} | stack.facts
    volume = Volume(array, affine, geometry.spacing(affine), _modality(first), middle.window, facts)
    return _without_padding(replace(volume, window_function=middle.window_function, background=background), path)


def _without_padding(volume: Volume, path: Path) -> Volume:
    try:
        return darkened(volume, "padding (PixelPaddingValue, 0028,0120)")
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _fill(
    slots: FloatArray,
    padded: NDArray[np.bool_] | None,
    files: Sequence[_File],
    mappings: Sequence[ValueMapping],
    order: Sequence[int],
) -> None:
    """Decode every frame into its slot of (C, slice, row, column), and mark its padding in (slice, row, column)."""
    slot_of_frame = {frame: slot for slot, frame in enumerate(order)}
    frame = 0
    for file in files:
        for pixels in decode_frames(file.dataset, file.name):
            slot = slot_of_frame[frame]
            mappings[frame].write(pixels, slots[:, slot], None if padded is None else padded[slot])
            frame += 1
        if "PixelData" in file.dataset:
            del file.dataset.PixelData  # frees the memory for the next file


def _modality(file: _File) -> str:
    return str(file.dataset.get("Modality") or "")


def _refuse_mixed(frames: Sequence[tuple[_File, FramePlane]], mappings: Sequence[ValueMapping], path: Path) -> None:
    """Refuse a series whose files differ in patient, frame of reference, modality, colour, or polarity."""
    units = defaultdict(list)
    for (_, plane), mapping in zip(frames, mappings, strict=True):
        units[mapping.unit].append(plane.name)
    if len(units) > 1:
        odd = min(units, key=lambda unit: len(units[unit]))
        others = listed(sorted({*units} - {odd}))
        raise DataError(
            f"{path}: {len(units[odd])} of {len(frames)} slices have {odd}, the others {others} (RescaleSlope, "
            f"RescaleIntercept, RescaleType): {listed(units[odd])}. Their values are not in one unit; get the "
            "series again."
        )
    groups = defaultdict(list)
    for (file, plane), mapping in zip(frames, mappings, strict=True):
        photometric = str(file.dataset.get("PhotometricInterpretation") or "")
        inverted = (mapping.slope, mapping.intercept) if photometric == "MONOCHROME1" else ()
        shared = tuple(str(file.dataset.get(keyword) or "") for keyword in _SHARED)
        groups[shared, photometric, channel_count(file.dataset), inverted].append(plane.name)
    if len(groups) > 1:
        fewest = min(groups.values(), key=len)
        raise DataError(
            f"{path}: its files are not one series: they differ in patient, frame of reference, modality, colour or "
            f"grey scale. The smallest group: {listed(fewest)}. Move them elsewhere."
        )
