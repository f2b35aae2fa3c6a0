"""The text of a CSV as spreadsheets write it: its header and its rows, or what the file is instead."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from medopt.core.errors import DataError

_SAVE = "save it as 'CSV UTF-8 (comma delimited)', not as a spreadsheet"
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[ ,;\t]*\r?\n', re.IGNORECASE)  # Excel reads and hides such a first line


def read_csv(path: Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """(number, stripped cells) of each row of a UTF-8 CSV, the header first, as number 1; blank rows are left out.

    Cells are separated by commas, semicolons or tabs. Empty cells beyond the header (trailing commas) are dropped.
    `what` names the file in errors. Raises DataError saying what the file is instead, or naming the row.
    """
    # Not as one text, which takes four bytes a character here.
    lines = io.TextIOWrapper(io.BytesIO(_content(path, what)), "utf-8-sig", newline="")
    head = lines.readline()
    separator = _SEPARATOR_LINE.fullmatch(head)
    reader = csv.reader(
        (line.replace("\v", " ") for line in (lines if separator else chain([head], lines))),
        delimiter=separator[1] if separator else max(",;\t", key=head.count),
        strict=True,
    )
    width = 0
    try:
        for number, raw in enumerate(reader, start=1):
            cells = list(map(str.strip, raw))
            if number == 1:
                width = len(_without_empty_end(cells))
            if number == 1 or any(cells):
                yield number, cells if len(cells) <= width else cells[:width] + _without_empty_end(cells[width:])
    except csv.Error as error:
        raise DataError(f"{what} {path} is not a CSV: {error} (line {reader.line_num}).") from None


def _without_empty_end(cells: list[str]) -> list[str]:
    """The cells up to the last that is not empty."""
    return cells[: max((at + 1 for at, cell in enumerate(cells) if cell), default=0)]


def _content(path: Path, what: str) -> bytes:
    """The bytes of a file that are UTF-8 text."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}.") from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{what} {path} is a spreadsheet (.xlsx, .xls), not UTF-8 text: in the spreadsheet, {_SAVE}.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4096]:
        raise DataError(f"{what} {path} is UTF-16 ('Unicode Text') and not UTF-8 text: in the spreadsheet, {_SAVE}.")
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{what} {path} is not UTF-8 text: save it as CSV in UTF-8 ({_SAVE}). Line {line} is probably in the "
            "encoding of Windows (1252)."
        ) from None
    return content
