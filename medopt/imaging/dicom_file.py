"""One DICOM file: read its header, decode its stored pixels, and refuse what is not an image or cannot be decoded.

The file format is PS3.10, data elements PS3.6, the pixel data PS3.5 section 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from medopt.core.errors import DataError
from medopt.core.privacy import UNKNOWN_PATIENT, pseudonym
from medopt.imaging.acquisition import patient_age
from medopt.imaging.decoders import PLUGIN, decoder_of
from medopt.imaging.parse_dicom import parse_dicom

# The first tag of a file without the prefix: (0002,0000), or an early tag of group 8, in either byte order.
_FIRST_TAGS = {
    group.to_bytes(2, order) + element.to_bytes(2, order)
    for group, element in ((2, 0), (2, 0x10), (8, 0), (8, 1), (8, 5), (8, 8), (8, 0x16))
    for order in ("little", "big")
}
_DEFERRED_BYTES = 64 * 1024  # larger values stay in the file until they are accessed

# SOP classes that may carry pixels or frames and yet are not images of the patient (PS3.4 B.5).
_OTHER_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    str(MediaStorageDirectoryStorage): "a DICOMDIR, the table of contents of a medium",
}


def is_dicom(head: bytes) -> bool:
    """Whether a file whose first 132 (or more) bytes are `head` is DICOM.

    True with the prefix of PS3.10 7.1, and for old files without it, whose first element is in group 2 or 8.

    >>> is_dicom(bytes(128) + b"DICM")
    True
    """
    return head[128:132] == b"DICM" or head[:4] in _FIRST_TAGS


@contextmanager
def header_errors(name: str) -> Iterator[None]:
    """Refuse the file `name` where an element of its header cannot be parsed; pydicom parses on first access.

    Raises DataError.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{name}: an element of the header cannot be read ({type(error).__name__}), so the file is damaged or "
            "written wrongly. Get it again from its source."
        ) from error


def read_header(path: Path, *, defer: bool = False) -> Dataset:
    """Parse a DICOM file (PS3.10). With `defer`, pixels stay in the file until they are decoded.

    Raises DataError where the file is missing, empty or not DICOM.
    """
    try:
        dataset = parse_dicom(path, force=True, defer_size=_DEFERRED_BYTES if defer else None)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror or type(error).__name__}.") from error
    except Exception as error:
        raise DataError(
            f"{path} is not readable as DICOM: its header breaks off or is damaged ({type(error).__name__}). "
            "Get the file again from its source."
        ) from error
    if not len(dataset):
        raise DataError(f"{path} is not readable as DICOM: it is truncated or damaged. Get it again from its source.")
    with header_errors(str(path)):
        if "TransferSyntaxUID" not in dataset.file_meta:  # from before PS3.10: it follows from the encoding
            implicit, little = dataset.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        if not dataset.file_meta.TransferSyntaxUID.is_transfer_syntax:
            raise DataError(
                f"{path} names a transfer syntax that does not exist (0002,0010): it is damaged. Get it again."
            )
    return dataset


def not_an_image_reason(dataset: Dataset, *, pixels_follow: bool = False) -> str | None:
    """What an object is that is not an image of the patient (a report, a segmentation); None for an image.

    `pixels_follow`: the file has pixels, which were not read into `dataset`.
    """
    sop_class = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    if sop_class in _OTHER_CLASSES:
        return f"it is {_OTHER_CLASSES[sop_class]}, not an image"
    if pixels_follow or _has_pixels(dataset) or "Image" in sop_class.name:
        return None
    return (
        f"it is not an image ({sop_class.name.removesuffix(' Storage')})" if sop_class.is_valid else "it holds no image"
    )


def unreadable_reason(dataset: Dataset) -> str | None:
    """Why an image object cannot be read, or None."""
    if not _has_pixels(dataset):
        return "it has no pixel data: it is a header alone, or it breaks off"
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        return "its header lacks Rows (0028,0010) or Columns (0028,0011)"
    if "MOSAIC" in (dataset.get("ImageType") or []):
        return "it is a mosaic, the slices of a volume tiled into one image; export it as single slices or enhanced MR"
    return _bits_problem(dataset)


def _has_pixels(dataset: Dataset) -> bool:
    return any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def decode_frames(dataset: Dataset, name: str) -> Iterator[NDArray[Any]]:
    """Decode the stored pixels frame by frame: (rows, columns) or (rows, columns, 3), NumberOfFrames of them.

    YBR becomes RGB. Bits above BitsStored are cleared, except those that `unused_bits` counts. Raises DataError where
    pixels are truncated, damaged, or in a transfer syntax that no installed decoder knows.
    """
    count, syntax = number_of_frames(dataset, name), dataset.file_meta.TransferSyntaxUID
    options: dict[str, Any] = {"view_only": True, "correct_unused_bits": not any(unused_bits(dataset))}
    try:
        _refuse_more_frames(dataset, count)
        decoder = decoder_of(syntax)
        options["decoding_plugin"] = PLUGIN if syntax.is_encapsulated else ""
        if count == 1:
            pixels, _ = decoder.as_array(dataset, **options)
            if pixels.ndim > 2 + (dataset.get("SamplesPerPixel", 1) > 1):
                raise ValueError(f"there are {len(pixels)} frames where NumberOfFrames says one")
            yield pixels
        else:
            for _, (pixels, _) in zip(range(count), decoder.iter_array(dataset, **options), strict=True):
                yield pixels
    except Exception as error:
        raise DataError(
            f"{name}: the pixels cannot be decoded (transfer syntax {syntax.name}): {_decoder_message(error)} "
            "If the file is damaged, get it again from its source."
        ) from error


def _refuse_more_frames(dataset: Dataset, count: int) -> None:
    """Uncompressed pixels of more frames than NumberOfFrames says; pydicom would read the first ones."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or "PixelData" not in dataset:
        return
    samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else dataset.SamplesPerPixel
    bits = dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated
    found = len(dataset.PixelData) * 8 // bits if bits else 0
    if found > count:
        raise ValueError(f"there are {found} frames where NumberOfFrames (0028,0008) says {count}")


def unused_bits(dataset: Dataset) -> tuple[int, int]:
    """How many (high, low) bits of uncompressed grey pixels the caller has to clear, as it converts every value anyway.

    The low ones lie below the value, where HighBit is not BitsStored - 1 (PS3.5 8.1.1).
    """
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or dataset.get("SamplesPerPixel", 1) != 1:
        return 0, 0
    allocated, stored = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if "PixelData" not in dataset or not allocated or not stored:
        return 0, 0
    highest = dataset.get("HighBit", stored - 1)
    return max(0, allocated - 1 - highest), max(0, highest + 1 - stored)


def _bits_problem(dataset: Dataset) -> str | None:
    """Why BitsAllocated, BitsStored and HighBit do not say where a value lies, or None."""
    allocated, stored, highest = (dataset.get(word) for word in ("BitsAllocated", "BitsStored", "HighBit"))
    if "PixelData" not in dataset or None in (allocated, stored, highest) or highest == stored - 1:
        return None
    bits = f"HighBit (0028,0102) is {highest}, BitsStored {stored} and BitsAllocated {allocated}"
    if not stored - 1 <= highest < allocated:
        return f"{bits}, which contradict each other"
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or dataset.get("SamplesPerPixel", 1) != 1:
        return f"{bits}; such values are read from uncompressed grey images only. Export it uncompressed"
    return None


def _decoder_message(error: Exception) -> str:
    """A decoder's message on one line, without anything that looks like a UID."""
    text = re.sub(r"\d+(\.\d+){3,}", "(UID)", " ".join(str(error).split())) or type(error).__name__
    return (text[:297] + "..." if len(text) > 300 else text).rstrip(".") + "."


_MAX_FRAMES = 100_000


def number_of_frames(dataset: Dataset, name: str) -> int:
    """NumberOfFrames (0028,0008), or 1 where it is absent. Raises DataError for a number below 1."""
    with header_errors(name):
        count = int(dataset.get("NumberOfFrames") or 1)
    if not 1 <= count <= _MAX_FRAMES:
        raise DataError(f"{name}: NumberOfFrames (0028,0008) is {count}; from 1 to {_MAX_FRAMES} can be read.")
    return count


_SOURCE_KEYWORDS = (
    ("manufacturer", "Manufacturer"),
    ("model", "ManufacturerModelName"),
    ("view", "ViewPosition"),
    ("sex", "PatientSex"),
)

_IDENTIFIERS = (
    ("patient", "PatientID"),
    ("study", "StudyInstanceUID"),
    ("series", "SeriesInstanceUID"),
    ("frame_of_reference", "FrameOfReferenceUID"),
)


def source_facts(dataset: Dataset) -> dict[str, str]:
    """Facts of the file that identify nobody: format, transfer syntax, device, view, the patient's sex and age.

    Patient, study, series and frame of reference are pseudonyms, empty where the file does not say them. Age is in
    whole years; 90 stands for 90 and above, since few people are older.
    """
    facts = {"format": "DICOM", "transfer_syntax": dataset.file_meta.TransferSyntaxUID.name}
    for key, keyword in _SOURCE_KEYWORDS:
        facts[key] = str(dataset.get(keyword) or "").strip()
    facts["age"] = patient_age(dataset)
    for key, keyword in _IDENTIFIERS:
        value = normalize("NFC", str(dataset.get(keyword) or "").strip())
        known = value and (key != "patient" or value.lower() not in UNKNOWN_PATIENT)
        facts[key] = pseudonym(value) if known else ""
    return facts


def finite_numbers(value: Any, count: int) -> NDArray[np.float64] | None:
    """A multi-valued element as `count` finite numbers (count,), or None where it is absent or not that."""
    try:
        numbers = np.array([float(item) for item in value], dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None
