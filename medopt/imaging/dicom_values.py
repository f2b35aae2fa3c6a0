"""What stored pixels mean: modality LUT or rescale, palette, polarity, and the window the scan names.

The order is the standard's grey-scale pipeline (PS3.4 N.2.1): modality transformation, VOI, presentation polarity.
The VOI *window* is reported, not applied: whether to use it is the study's choice. A VOI *LUT* cannot be reported as
two numbers. It is applied to projection X-ray images that name no window, whose values before it are in the maker's
own units (PS3.3 C.11.2, C.8.11.3); elsewhere (CT, MR, PET) it would destroy the rescaled unit and is left out.
MONOCHROME1 (low is bright) is mirrored within the range of its stored bits, so that high is bright everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_color_lut

from medopt.errors import DataError
from medopt.imaging.dicom_file import vector
from medopt.imaging.dicom_frames import FrameHeader
from medopt.records import FloatArray

_PROJECTION = {"CR", "DX", "MG", "IO", "PX", "RG"}


@dataclass(frozen=True, slots=True)
class Table:
    """A look-up table: stored value `first` maps to `entries[0]` (PS3.3 C.11.1.1)."""

    first: int
    entries: NDArray[Any]
    bits: int

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Map values; those outside the table take its first or last entry."""
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]


@dataclass(frozen=True, slots=True)
class Meaning:
    """How one frame's stored values become the volume's: tables first, then `slope * value + intercept`."""

    colour: Table | None
    modality: Table | None
    voi: Table | None
    slope: float
    intercept: float
    window: tuple[float, float] | None

    def write(self, stored: NDArray[Any], out: FloatArray) -> None:
        """Write a frame (rows, columns[, 3]) into `out` (C, rows, columns) with a single conversion to float32."""
        for table in (self.colour, self.modality):
            stored = table(stored) if table is not None else stored
        if stored.dtype.itemsize > 2 and (self.slope, self.intercept) != (1.0, 0.0):
            stored = stored.astype(np.float64) * self.slope + self.intercept
            out[...] = _channels_first(stored)
        else:
            out[...] = _channels_first(stored)
            if self.slope != 1.0:
                out *= np.float32(self.slope)
            if self.intercept != 0.0:
                out += np.float32(self.intercept)
        if self.voi is not None:
            out[...] = self.voi(out)


def _channels_first(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)[:3]


def channels(dataset: Dataset) -> int:
    """3 for colour (also by palette), else 1."""
    colour = dataset.get("PhotometricInterpretation") == "PALETTE COLOR" or dataset.get("SamplesPerPixel", 1) == 3
    return 3 if colour else 1


def meaning(dataset: Dataset, frame: FrameHeader, name: str) -> Meaning:
    """The pipeline of one frame. `frame` answers for the frame's functional groups, else for the whole file.

    Raises DataError naming the element that cannot be used.
    """
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if photometric == "PALETTE COLOR":
        return Meaning(_palette(dataset, name), None, None, 1.0, 0.0, None)
    if channels(dataset) == 3:
        return Meaning(None, None, None, 1.0, 0.0, None)
    modality = _table(frame, "ModalityLUTSequence", name)
    slope, intercept = (1.0, 0.0) if modality else _rescale(frame, name)
    window = _window(frame)
    voi = None
    if window is None and dataset.get("Modality") in _PROJECTION:
        voi = _table(frame, "VOILUTSequence", name)
    if photometric != "MONOCHROME1":
        return Meaning(None, modality, voi, slope, intercept, _full_range(voi) or window)
    return _mirrored(dataset, Meaning(None, modality, voi, slope, intercept, _full_range(voi) or window), name)


def _mirrored(dataset: Dataset, plain: Meaning, name: str) -> Meaning:
    """MONOCHROME1: value x becomes (lowest + highest) - x of the range that the stored bits can express."""
    if "PixelData" not in dataset:
        raise DataError(f"{name}: MONOCHROME1 with floating-point pixels, which PS3.3 C.7.6.24 does not allow.")
    if plain.voi is not None:
        top = 2**plain.voi.bits - 1
        turned = Table(plain.voi.first, top - plain.voi.entries.astype(np.int64), plain.voi.bits)
        return Meaning(None, plain.modality, turned, plain.slope, plain.intercept, plain.window)
    if plain.modality is not None:
        total = 2.0**plain.modality.bits - 1
    else:
        signed = dataset.get("PixelRepresentation", 0) == 1
        total = -1.0 if signed else 2.0 ** int(dataset.BitsStored) - 1
    # slope * (total - v) + intercept, and the same mirror for the window's centre
    mirror = plain.slope * total + 2 * plain.intercept
    window = (mirror - plain.window[0], plain.window[1]) if plain.window else None
    return Meaning(None, plain.modality, None, -plain.slope, plain.slope * total + plain.intercept, window)


def _full_range(voi: Table | None) -> tuple[float, float] | None:
    return (2.0 ** (voi.bits - 1), 2.0**voi.bits) if voi else None


def _rescale(frame: FrameHeader, name: str) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept (PS3.3 C.11.1.1.2)."""
    found = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        value = frame.get(keyword)
        try:
            found.append(default if value in (None, "") else float(value))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: {keyword} is not a number.") from error
    slope, intercept = found
    if not np.isfinite(found).all() or slope == 0:
        raise DataError(f"{name}: RescaleSlope {slope} and RescaleIntercept {intercept} give no values.")
    return slope, intercept


def _window(frame: FrameHeader) -> tuple[float, float] | None:
    """The first (center, width) of the VOI LUT module (PS3.3 C.11.2.1.2)."""
    first = [
        value[0] if isinstance(value, (list, tuple)) or (hasattr(value, "__len__") and len(value)) else value
        for value in (frame.get("WindowCenter"), frame.get("WindowWidth"))
    ]
    found = vector(first, 2)
    return (float(found[0]), float(found[1])) if found is not None and found[1] > 0 else None


def _table(frame: FrameHeader, keyword: str, name: str) -> Table | None:
    """The first table of a modality or VOI LUT sequence (PS3.3 C.11.1.1.1)."""
    items = frame.get(keyword)
    if not items:
        return None
    try:
        count, first, bits = (int(value) for value in items[0].LUTDescriptor)
        data, count = items[0].LUTData, count or 2**16
        if isinstance(data, bytes):
            little = getattr(items[0], "is_little_endian", True) is not False
            width = (
                "u1" if len(data) in (count, count + 1) and bits == 8 and count > 1 else ("<u2" if little else ">u2")
            )
            entries = np.frombuffer(data, dtype=width)[:count]
        else:
            entries = np.asarray(data)[:count]
    except Exception as error:
        raise DataError(f"{name}: the table in {keyword} cannot be read ({type(error).__name__}).") from error
    if len(entries) != count:
        raise DataError(f"{name}: the table in {keyword} has {len(entries)} entries, its descriptor says {count}.")
    return Table(first, entries, bits)


def _palette(dataset: Dataset, name: str) -> Table:
    """The palette (PS3.3 C.7.6.3.1.5) as 8-bit RGB entries (n, 3)."""
    try:
        count, first, _ = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
        count = count or 2**16
        entries = apply_color_lut(np.arange(first, first + count), dataset)[:, :3]
    except Exception as error:
        raise DataError(f"{name}: the colour palette cannot be read ({type(error).__name__}).") from error
    if entries.dtype == np.uint8 and count > 256:
        raise DataError(f"{name}: a palette of {count} entries of 8 bits is not supported.")
    return Table(first, entries if entries.dtype == np.uint8 else entries / 257.0, 8)
