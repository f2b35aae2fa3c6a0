"""Whether two files are the same image in two transfer syntaxes: a sender may choose among them (PS3.5 10)."""

from __future__ import annotations

from pydicom import DataElement, Dataset
from pydicom.sequence import Sequence

# What an encoding may change: group lengths aside, how pixels are stored and compressed (PS3.3 C.7.6.3, C.7.6.1.1.5).
_OF_THE_ENCODING = {
    *(0x00280004, 0x00280006, 0x00281101, 0x00281102, 0x00281103),  # PhotometricInterpretation, PlanarConfiguration
    *(0x00282110, 0x00282112, 0x00282114),  # LossyImageCompression, its ratio and method
    *(0x00080005, 0xFFFCFFFC),  # SpecificCharacterSet, DataSetTrailingPadding
}
_PIXELS = 0x7FE0


def differing_keyword(first: Dataset, second: Dataset) -> str:
    """An attribute that differs between two headers without pixels, '' if there is none.

    Private attributes are not compared: implicit VR does not carry their types. Raises what pydicom raises for a
    damaged element.
    """
    tags = sorted({tag for tag in (*first.keys(), *second.keys()) if not _is_of_encoding(tag)})
    for tag in tags:
        if tag not in first or tag not in second or not _equal(first[tag], second[tag]):
            element = first[tag] if tag in first else second[tag]
            return element.keyword or f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return ""


def _is_of_encoding(tag: int) -> bool:
    group, element = tag >> 16, tag & 0xFFFF
    return tag in _OF_THE_ENCODING or group == _PIXELS or group % 2 == 1 or element == 0


def _equal(first: DataElement, second: DataElement) -> bool:
    if isinstance(first.value, Sequence) and isinstance(second.value, Sequence):
        items = zip(first.value, second.value, strict=False)
        return len(first.value) == len(second.value) and not any(differing_keyword(*pair) for pair in items)
    return str(first.value) == str(second.value)
