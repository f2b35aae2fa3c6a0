"""Look-up tables of a DICOM file: modality LUT, VOI LUT and colour palette (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels import apply_color_lut

from medopt.core.errors import DataError

_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True)
class Table:
    """Stored value `first` maps to the first of the `entries`, (n,) or (3, n); values outside take the nearest."""

    first: int
    entries: NDArray[Any]
    bits: int

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Map values of any shape, rounded if they are not whole; colours add an axis in front."""
        whole = values if np.issubdtype(values.dtype, np.integer) else np.rint(values)
        return np.take(self.entries, whole.astype(np.intp) - self.first, axis=-1, mode="clip")


def lut(items: Any, dataset: Dataset, keyword: str, name: str) -> Table | None:
    """The first table of a LUT sequence, or None where there is none. Raises DataError where it cannot be read."""
    if not items:
        return None
    try:
        count, first, bits = (int(value) for value in items[0].LUTDescriptor)
        entries = _entries(items[0].LUTData, count or 2**16, dataset)
    except Exception as error:
        raise DataError(f"{name}: the table in {keyword} cannot be read ({type(error).__name__}: {error}).") from error
    return Table(first, entries, bits)


def palette(dataset: Dataset, name: str) -> Table:
    """The colour palette as RGB entries (3, n) from 0 to 255. Raises DataError where it cannot be read."""
    try:
        count, first, _ = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
        count = count or 2**16
        if "RedPaletteColorLookupTableData" in dataset:
            data = [dataset[f"{colour}PaletteColorLookupTableData"].value for colour in _COLOURS]
            entries = np.stack([_entries(values, count, dataset) for values in data])
        else:  # segmented (PS3.3 C.7.9.2): pydicom unrolls it, seen through a ramp of all stored values
            entries = apply_color_lut(np.arange(first, first + count), dataset)[:, :3].T
            if entries.dtype == np.uint8 and count > 256:
                raise ValueError("segmented, of 8 bits and more than 256 entries")
    except Exception as error:
        raise DataError(f"{name}: the colour palette cannot be read ({type(error).__name__}: {error}).") from error
    # 16-bit entries: the high byte is what an 8-bit display shows; some makers leave it empty.
    return Table(first, entries >> 8 if entries.max() > 255 else entries, 8)


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
