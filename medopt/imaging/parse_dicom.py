"""pydicom's parser, as medopt uses it: the one place where a DICOM header is parsed."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread
from pydicom.config import IGNORE, settings
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

_OF_PYDICOM = re.compile(r"pydicom\.")


def quiet_pydicom() -> None:
    """Let pydicom validate nothing that it reads, and say nothing, in this process from now on.

    Its remarks on odd headers may quote identifiers; what matters of them is refused by medopt, with a reason. Elements
    are parsed when they are asked for, so this cannot be undone after a file was opened.
    """
    settings.reading_validation_mode = IGNORE
    if ("ignore", None, Warning, _OF_PYDICOM, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_OF_PYDICOM.pattern)
    log = logging.getLogger("pydicom")
    log.setLevel(max(log.level, logging.ERROR))


_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def parse_header(stream: BinaryIO, keywords: Sequence[str], *, force: bool = False) -> tuple[Dataset, bool]:
    """Some elements of a file up to its pixels, and whether pixels follow; raises what pydicom raises."""
    quiet_pydicom()
    pixels_follow = False

    def at_pixels(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        nonlocal pixels_follow
        pixels_follow = pixels_follow or tag in _PIXELS
        return pixels_follow

    dataset = read_partial(stream, at_pixels, force=force, specific_tags=[Tag(keyword) for keyword in keywords])
    return dataset, pixels_follow


def parse_dicom(source: str | PathLike[str] | BinaryIO, **options: Any) -> Dataset:
    """`pydicom.dcmread`, quiet; raises what it raises."""
    quiet_pydicom()
    return dcmread(source, **options)
