"""What stored pixels mean: modality LUT or rescale, palette, polarity, and the window that the scan names.

The order is the standard's grey-scale pipeline (PS3.4 N.2.1): modality transformation, VOI, presentation polarity.
The VOI *window* is reported, not applied: whether to use it is the study's choice. A VOI *LUT* cannot be reported as
two numbers. It is applied to projection X-ray images that name no window, because their values before it are in the
manufacturer's own units (PS3.3 C.11.2, C.8.11.3); elsewhere (CT, MR, PET) it would destroy the rescaled unit and is
ignored. MONOCHROME1 (low is bright) is inverted within the range of its stored bits, so that high is always bright.
Colour has no unit: it becomes RGB from 0 to 255 whatever its number of bits. Pixels of PixelPaddingValue (and up to
PixelPaddingRangeLimit) show nothing: they are marked as background, and become as dark as the darkest of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
)

from medopt.core.errors import DataError
from medopt.core.records import FloatArray, WindowFunction
from medopt.imaging.dicom_file import finite_numbers, unused_bits
from medopt.imaging.dicom_frames import FrameHeader

_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True)
class LookupTable:
    """Maps stored value `first` to the first of the `entries`, (n,) or (3, n); values outside take the nearest."""

    first: int
    entries: NDArray[Any]
    bits: int

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Map values of any shape, rounded to whole numbers; a colour table adds an axis of 3 in front."""
        whole = values if np.issubdtype(values.dtype, np.integer) else np.rint(values)
        return np.take(self.entries, whole.astype(np.intp) - self.first, axis=-1, mode="clip")


def read_lut(items: Any, dataset: Dataset, keyword: str, name: str) -> LookupTable | None:
    """The first table of a LUT sequence (PS3.3 C.11.1), or None where there is none. Raises DataError if damaged."""
    if not items:
        return None
    try:
        count, first, bits = (int(value) for value in items[0].LUTDescriptor)
        entries = _entries(items[0].LUTData, count or 2**16, dataset)
    except Exception as error:
        raise DataError(f"{name}: the table in {keyword} cannot be read ({type(error).__name__}: {error}).") from error
    return LookupTable(first, entries, bits)


def read_palette(dataset: Dataset, name: str) -> LookupTable:
    """The colour palette (PS3.3 C.7.9) as RGB entries (3, n) from 0 to 255. Raises DataError where it is damaged."""
    try:
        count, first, _ = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
        count = count or 2**16
        if "RedPaletteColorLookupTableData" in dataset:
            data = [dataset[f"{colour}PaletteColorLookupTableData"].value for colour in _COLOURS]
            entries = np.stack([_entries(values, count, dataset) for values in data])
        else:  # segmented (PS3.3 C.7.9.2): pydicom expands it, applied here to a ramp of all stored values
            entries = apply_color_lut(np.arange(first, first + count), dataset)[:, :3].T
            if entries.dtype == np.uint8 and count > 256:
                raise ValueError("segmented, of 8 bits and more than 256 entries")
    except Exception as error:
        raise DataError(f"{name}: the colour palette cannot be read ({type(error).__name__}: {error}).") from error
    # 16-bit entries: the high byte is what an 8-bit display shows; some makers leave it empty.
    return LookupTable(first, entries >> 8 if entries.max() > 255 else entries, 8)


def _entries(data: Any, count: int, dataset: Dataset) -> NDArray[Any]:
    """`count` entries from bytes (one or two each) or from a list of numbers."""
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        if len(data) <= count + 1 and not little:
            raise ValueError("8-bit entries in big endian")
        data = np.frombuffer(data, dtype="u1" if len(data) <= count + 1 else ("<u2" if little else ">u2"))
    entries = np.asarray(data)[:count]
    if len(entries) != count:
        raise ValueError(f"{len(entries)} entries where its descriptor says {count}")
    return entries.astype(np.int32)


_BLOCK = 2**16  # pixels
_FUNCTIONS: tuple[WindowFunction, ...] = get_args(WindowFunction)
_RESCALED = {
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    PositronEmissionTomographyImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
}
_PROJECTION = {"CR", "DX", "MG", "IO", "PX", "RG"}


@dataclass(frozen=True, slots=True)
class ValueMapping:
    """How the stored values of one frame become values of the volume: tables, then `slope * value + intercept`.

    `window` is (centre, width) in the volume's units, which `window_function` explains. `unused_bits` counts the (high,
    low) bits of a stored value that do not belong to it (PS3.5 8.1.1) and have to be cleared. `padding` is the range of
    stored values, after that, which show nothing (PS3.3 C.7.5.1.1.2). `unit` says which rescaling the file asks for.
    """

    colour: LookupTable | None = None
    modality: LookupTable | None = None
    voi: LookupTable | None = None
    slope: float = 1.0
    intercept: float = 0.0
    window: tuple[float, float] | None = None
    window_function: WindowFunction = "LINEAR_EXACT"
    unused_bits: tuple[int, int] = (0, 0)
    padding: tuple[float, float] | None = None
    unit: str = ""

    def write(self, stored: NDArray[Any], out: FloatArray, background: NDArray[np.bool_] | None = None) -> None:
        """Write a frame (rows, columns[, 3]) into `out` (C, rows, columns), and its padding into `background`.

        A block of rows at a time, so that the passes over it stay within the processor's cache.
        """
        stored = np.moveaxis(stored, -1, 0)[:3] if stored.ndim == 3 else stored
        rows = max(1, _BLOCK // stored.shape[-1])
        for start in range(0, stored.shape[-2], rows):
            block = slice(start, start + rows)
            values = self._used_bits(stored[..., block, :])
            if self.padding is not None and background is not None:
                low, high = self.padding
                background[block] = values == low if low == high else (values >= low) & (values <= high)
            self._write(values, out[:, block])

    def _used_bits(self, values: NDArray[Any]) -> NDArray[Any]:
        high, low = self.unused_bits
        if not high and not low:
            return values
        if values.dtype.kind != "u":  # the sign is the highest bit that is used
            return (values << high) >> (high + low)
        values = values & values.dtype.type(np.iinfo(values.dtype).max >> high)
        return values >> low if low else values

    def _write(self, values: NDArray[Any], out: FloatArray) -> None:
        for table in (self.colour, self.modality):
            values = table(values) if table is not None else values
        slope, intercept = np.float32(self.slope), np.float32(self.intercept)
        if values.dtype.itemsize > 2:  # more digits than float32 holds: round once, at the end
            values, slope, intercept = values * self.slope + self.intercept, np.float32(1), np.float32(0)
        out[...] = values
        if slope == -1:  # MONOCHROME1, in one pass
            np.subtract(intercept, out, out=out)
        else:
            if slope != 1:
                out *= slope
            if intercept != 0:
                out += intercept
        if self.voi is not None:
            out[...] = self.voi(out)


def channel_count(dataset: Dataset) -> int:
    """3 for colour (also by palette), else 1."""
    colour = dataset.get("PhotometricInterpretation") == "PALETTE COLOR" or dataset.get("SamplesPerPixel", 1) == 3
    return 3 if colour else 1


def value_mapping(dataset: Dataset, frame: FrameHeader, name: str) -> ValueMapping:
    """The mapping of one frame's values. `frame` reads the frame's own functional groups before the file's header.

    Raises DataError naming the element that cannot be used.
    """
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    unused = unused_bits(dataset)
    if photometric == "PALETTE COLOR":
        return ValueMapping(colour=read_palette(dataset, name), unused_bits=unused)
    if channel_count(dataset) == 3:
        return ValueMapping(slope=255.0 / (2.0 ** int(dataset.BitsStored) - 1))
    modality = read_lut(frame.get("ModalityLUTSequence"), dataset, "ModalityLUTSequence", name)
    slope, intercept = (1.0, 0.0) if modality else _rescale(frame, name, _rescale_required(dataset))
    window, function = _window(frame)
    voi = None
    if window is None and dataset.get("Modality") in _PROJECTION:
        voi = read_lut(frame.get("VOILUTSequence"), dataset, "VOILUTSequence", name)
    if voi is not None:
        window, function = (2.0 ** (voi.bits - 1), 2.0**voi.bits), "LINEAR"
    padding, unit = _padding(dataset, unused), _unit(frame)
    mapping = ValueMapping(None, modality, voi, slope, intercept, window, function, unused, padding, unit)
    return _inverted(dataset, mapping, name) if photometric == "MONOCHROME1" else mapping


def _inverted(dataset: Dataset, mapping: ValueMapping, name: str) -> ValueMapping:
    """MONOCHROME1 (PS3.3 C.7.6.3.1.2): x becomes (lowest + highest) - x of the range of the stored bits."""
    if "PixelData" not in dataset:
        raise DataError(f"{name}: MONOCHROME1 with floating-point pixels, which PS3.3 C.7.6.24 does not allow.")
    if mapping.voi is not None:
        return replace(mapping, voi=replace(mapping.voi, entries=2**mapping.voi.bits - 1 - mapping.voi.entries))
    if mapping.modality is not None:
        total = 2.0**mapping.modality.bits - 1
    else:
        signed = dataset.get("PixelRepresentation", 0) == 1
        total = -1.0 if signed else 2.0 ** int(dataset.BitsStored) - 1
    # slope * (total - value) + intercept; the window is mirrored in the same way
    offset = mapping.slope * total
    window, function = mapping.window, mapping.window_function
    if window and function == "LINEAR":  # it runs from centre - 0.5 over width - 1
        window, function = (window[0] - 0.5, window[1] - 1), "LINEAR_EXACT"
    if window:
        window = (offset + 2 * mapping.intercept - window[0], window[1])
    mirrored = replace(mapping, slope=-mapping.slope, intercept=offset + mapping.intercept)
    return replace(mirrored, window=window, window_function=function)


def _rescale_required(dataset: Dataset) -> bool:
    """Whether values mean nothing without Rescale Slope and Intercept: Type 1 in PS3.3 C.8.2.1 (CT), C.8.9.4 (PET).

    Also in the functional groups of their enhanced objects (C.7.6.16.2.9), but not in captured screens.
    """
    sop_class = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
    modality = str(dataset.get("Modality") or "").strip()
    if modality == "CT":
        return not f"{sop_class}.".startswith(f"{SecondaryCaptureImageStorage}.")
    return modality in ("", "PT") and sop_class in _RESCALED


def _rescale(frame: FrameHeader, name: str, required: bool) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept (PS3.3 C.11.1.1.2): both, or neither where they are not required."""
    given = {word: frame.get(word) for word in ("RescaleSlope", "RescaleIntercept")}
    missing = [word for word, value in given.items() if value in (None, "")]
    if missing and (required or len(missing) == 1):
        raise DataError(
            f"{name}: its header lacks {' and '.join(missing)} (0028,1053 and 1052), so the unit of its values is not "
            "known: a CT would be off by some 1024 HU. Export it again with its header complete."
        )
    if missing:
        return 1.0, 0.0
    numbers = []
    for word, value in given.items():
        try:
            numbers.append(float(value))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: {word} is not a number.") from error
    slope, intercept = numbers
    if not np.isfinite(numbers).all() or slope == 0:
        raise DataError(f"{name}: RescaleSlope {slope} and RescaleIntercept {intercept} give no values.")
    return slope, intercept


def _unit(frame: FrameHeader) -> str:
    """What the slices of one volume must have in common beside slope and intercept, which may differ (PET)."""
    if frame.get("ModalityLUTSequence"):
        return "a Modality LUT"
    if frame.get("RescaleSlope") in (None, ""):
        return "no rescaling"
    kind = str(frame.get("RescaleType") or "").strip()
    return f"rescaling to {kind}" if kind not in ("", "US", "HU") else "rescaling"


def _padding(dataset: Dataset, unused: tuple[int, int]) -> tuple[float, float] | None:
    """The range of padding (PS3.3 C.7.5.1.1.2) as stored values are compared; None without PixelPaddingValue."""
    kind = next((word for word in ("Float", "DoubleFloat") if f"{word}PixelData" in dataset), "")
    value = dataset.get(f"{kind}PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = dataset.get(f"{kind}PixelPaddingRangeLimit")
    edges = [float(edge) for edge in (value, value if limit in (None, "") else limit)]
    if not kind:
        edges = [_as_stored(int(edge), dataset, sum(unused)) for edge in edges]
    return min(edges), max(edges)


def _as_stored(value: int, dataset: Dataset, unused: int) -> int:
    """A value of the header as the pixels hold it: some writers give a signed value as unsigned, or the reverse."""
    bits = int(dataset.BitsAllocated) - unused
    value %= 2**bits
    return value - 2**bits if dataset.get("PixelRepresentation", 0) == 1 and value >= 2 ** (bits - 1) else value


def _window(frame: FrameHeader) -> tuple[tuple[float, float] | None, WindowFunction]:
    """The first (centre, width) of the VOI LUT module (PS3.3 C.11.2.1.2) and its VOILUTFunction.

    None without a window, or with one that its function does not take.
    """
    values = (frame.get("WindowCenter"), frame.get("WindowWidth"))
    window = finite_numbers([value[0] if isinstance(value, MultiValue) and value else value for value in values], 2)
    given = str(frame.get("VOILUTFunction") or "LINEAR").strip().upper()
    function: WindowFunction | None = next((known for known in _FUNCTIONS if known == given), None)
    if function is None or window is None or window[1] <= 0 or (function == "LINEAR" and window[1] < 1):
        return None, "LINEAR"
    return (float(window[0]), float(window[1])), function
