"""What can be known of an image without looking at what it shows: size, padding, brightness, corners, file, header.

Where one of these tells the label, a network can learn it instead of the finding (`medopt.evaluation.shortcuts`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from math import nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from medopt.core.records import FloatArray, Volume
from medopt.manifest.csv_text import read_csv

CORNER = 5  # a corner is a fifth of each side, where markers and text stand
BRIGHT = 0.98  # of the range of an image: what is burned in is as bright as can be
KEYWORDS = (
    *("BitsStored", "PhotometricInterpretation"),
    *("StudyDate", "AcquisitionDate", "ContentDate", "StudyTime", "AcquisitionTime", "ContentTime"),
)


@dataclass(frozen=True, slots=True)
class TrivialFacts:
    """Facts of one image by name: `numbers` (one or several that belong together; NaN: not known) and `words`."""

    numbers: Mapping[str, tuple[float, ...]]
    words: Mapping[str, str]


def trivial_facts(volume: Volume, headers: Sequence[Dataset], file_size: int | None) -> TrivialFacts:
    """The facts of an image whose values are finite, and of its DICOM headers where it has any.

    `file_size` is in bytes, None where several images share a file.
    """
    sides = volume.array.shape[1:]
    numbers = {
        "the size of the image": (*map(float, sides), float(np.prod(sides)), sides[-2] / sides[-1]),
        "padding": _padding(volume.array, volume.background),
        "the brightness": (float(volume.content.mean()), float(volume.content.std())),
        "the brightness of the corners": _bright_corners(volume),
    }
    if volume.has_spacing:
        extent = np.multiply(sides, volume.spacing_mm)
        numbers["the spacing"] = tuple(map(float, volume.spacing_mm))
        numbers["the extent in mm"] = (*map(float, extent), float(np.prod(extent)))
    if file_size is not None:
        numbers["the size of the file"] = (float(file_size), file_size / volume.array.size)
    if headers:
        numbers |= {f"the {what} of the scan": (_earliest(headers, what),) for what in ("date", "time")}
    source = volume.source
    words = {
        "the file format": source.get("format", ""),
        "the transfer syntax": source.get("transfer_syntax", ""),
        "the manufacturer": source.get("manufacturer", ""),
        "the model of the scanner": source.get("model", ""),
        "the number of channels": str(volume.array.shape[0]),
    }
    for keyword, name in (
        ("BitsStored", "the bit depth"),
        ("PhotometricInterpretation", "the photometric interpretation"),
    ):
        words[name] = "/".join(sorted({str(header.get(keyword) or "") for header in headers}))
    return TrivialFacts(numbers, words)


def with_missing(facts: TrivialFacts | None, channels: Sequence[str]) -> TrivialFacts | None:
    """The facts of the first image of a case of several, with which of them are there."""
    if facts is None:
        return None
    there = " ".join("there" if image else "missing" for image in channels)
    return TrivialFacts(facts.numbers, {**facts.words, "which images are missing": there})


def moments_of(manifest: Path) -> dict[str, tuple[str, ...]]:
    """The columns of a manifest, by name and in the order of its rows, that hold nothing but dates or times."""
    (_, head), *rows = read_csv(manifest, "the manifest")
    found = {}
    for at, name in enumerate(head):
        cells = tuple(row[at] if at < len(row) else "" for _, row in rows)
        if any(cells) and all(moment(cell) is not None for cell in cells if cell):
            found[name] = cells
    return found


def moment(text: str) -> float | None:
    """A date as a day's number, a time of day in hours; None for another text.

    >>> moment("2020-01-02") == moment("02.01.2020") == moment("20200102"), moment("12:30"), moment("12")
    (True, 12.5, None)
    """
    for form in ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d"):
        with suppress(ValueError):
            return float(datetime.strptime(text, form).toordinal())
    with suppress(ValueError):
        hour = time.fromisoformat(text) if ":" in text else None
        return hour.hour + hour.minute / 60 if hour else None
    with suppress(ValueError):
        day = datetime.fromisoformat(text) if len(text) > len("2020-01-02") else None
        return day.toordinal() + day.hour / 24 if day else None
    return None


def _padding(array: FloatArray, background: NDArray[np.bool_] | None) -> tuple[float, ...]:
    """The share of the image with the values of its first corner, that of its constant margins, and that of padding."""
    corner = array[(slice(None), *(slice(0, 1),) * (array.ndim - 1))]
    same = (array == corner).all(axis=0)
    margins = 1.0
    for axis in range(same.ndim):
        filled = np.flatnonzero(~same.all(axis=tuple(other for other in range(same.ndim) if other != axis)))
        margins *= (filled[-1] - filled[0] + 1) / same.shape[axis] if len(filled) else 0.0
    declared = 0.0 if background is None else float(background.mean())
    return float(same.mean()), 1 - margins, declared


def _bright_corners(volume: Volume) -> tuple[float, ...]:
    """The share of pixels in each corner (of all slices) that are nearly as bright as the brightest of the image."""
    low, high = float(volume.content.min()), float(volume.content.max())
    bright = volume.array >= low + BRIGHT * (high - low)
    height, width = (max(1, side // CORNER) for side in volume.array.shape[-2:])
    rows, columns = (slice(None, height), slice(-height, None)), (slice(None, width), slice(-width, None))
    return tuple(float(bright[..., row, column].mean()) for row in rows for column in columns)


def _earliest(headers: Sequence[Dataset], what: str) -> float:
    """The first date (a day's number) or time of day (in hours) that the headers give; NaN without one."""
    found = []
    for header in headers:
        texts = (str(header.get(f"{of}{what.capitalize()}") or "") for of in ("Study", "Acquisition", "Content"))
        found += [value for text in texts if (value := _number(text, what)) is not None]
    return min(found, default=nan)


def _number(text: str, what: str) -> float | None:
    """An element of VR DA or TM (PS3.5 6.2), as `moment` gives it."""
    digits = re.sub(r"[.:-]", "", text)[: 8 if what == "date" else 6]
    if not digits.isdigit():
        return None
    if what == "time":
        return int(digits[:2]) + int(digits[2:4] or 0) / 60
    try:
        return float(date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).toordinal())
    except ValueError:
        return None
