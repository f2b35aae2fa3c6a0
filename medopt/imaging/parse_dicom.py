"""pydicom's parser, as medopt uses it: the one place where a DICOM header is parsed."""

from __future__ import annotations

import logging
import re
import warnings
from os import PathLike
from typing import Any, BinaryIO

from pydicom import Dataset, dcmread
from pydicom.config import IGNORE, settings

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


def parse_dicom(source: str | PathLike[str] | BinaryIO, **options: Any) -> Dataset:
    """`pydicom.dcmread`, quiet; raises what it raises."""
    quiet_pydicom()
    return dcmread(source, **options)
