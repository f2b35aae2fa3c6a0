"""The reason why a scan is refused, as it may leave this machine: without anything that stands in the scan's headers.

A reason for a local user names files and may quote a description, so that the user finds the place. On every remote
surface (answers of a server, its log and traces, a node's ledger, audit and pages) it passes through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pydicom import DataElement, Dataset

from medopt.imaging.dicom_file import is_dicom
from medopt.imaging.parse_dicom import parse_dicom

HIDDEN = "(...)"
UNQUOTED = "It cannot be read; the reason would quote its headers. On its own machine, `medopt predict` says it."
_MAX_FILES = 1000
_NUMBERS = {"AT", "FD", "FL", "OB", "OD", "OF", "OL", "OV", "OW", "SL", "SS", "SV", "UL", "US", "UV"}
# Defined terms that a reason may need, and that say nothing about anybody.
_TERMS = {
    "ORIGINAL", "PRIMARY", "DERIVED", "SECONDARY", "AXIAL", "LOCALIZER", "MOSAIC", "MONOCHROME1", "MONOCHROME2",
    "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "CR", "CT", "DX", "MG", "MR", "NM", "PT", "US", "XA",
    "RF", "OT", "PX", "IO",
}  # fmt: skip
_MIN_TEXT, _MIN_WORD, _MIN_ANYWHERE, _PREFIX = 3, 4, 6, 8


def redacted(reason: str, place: Path) -> str:
    """A reason without the texts in the headers of a file, or of the files in a folder; `folder#series` is one, too."""
    place = place if place.exists() else Path(str(place).partition("#")[0])
    if not place.exists():
        return reason  # there is nothing that it could quote
    try:
        files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        if len(files) > _MAX_FILES:
            return UNQUOTED
        texts = {text for path in files for text in _texts_of(path)}
    except Exception:  # whatever a damaged file raises: what it holds is not known, so nothing of it is quoted
        return UNQUOTED
    return without(reason, texts)


def without(reason: str, texts: Iterable[str]) -> str:
    """A reason without these texts, their words, or the beginnings of long ones.

    >>> without("2 series: 'DOE^JANE chest', 'scout'", ["DOE^JANE chest", "CT", "scout"])
    "2 series: '(...)', '(...)'"
    """
    for text in sorted(set(texts), key=len, reverse=True):
        reason = _without_beginnings(reason, text)
        folded = reason.casefold()
        for part in _parts(text):
            if part.casefold() not in folded:  # by far most of them, and a search is cheap
                continue
            pattern = re.escape(part)
            if len(part) < _MIN_ANYWHERE:
                pattern = rf"(?<!\w){pattern}(?!\w)"
            flags = re.IGNORECASE if part == text and len(part) >= _MIN_ANYWHERE else 0
            reason = re.sub(pattern, HIDDEN, reason, flags=flags)
    return reason


def _without_beginnings(reason: str, text: str) -> str:
    """Without the beginnings of a text that was cut."""
    at = 0
    while len(text) > _PREFIX and (at := reason.find(text[:_PREFIX], at)) >= 0:
        end = _PREFIX
        while end < len(text) and reason[at + end : at + end + 1] == text[end]:
            end += 1
        reason = f"{reason[:at]}{HIDDEN}{reason[at + end :]}"
        at += len(HIDDEN)
    return reason


def _parts(text: str) -> Iterator[str]:
    if len(text) >= _MIN_TEXT and text not in _TERMS:
        yield text
    for word in re.split(r"[\s^=\\,;:/_|'\"]+", text):
        if len(word) >= _MIN_WORD and word != word.lower() and word not in _TERMS:
            yield word


def _texts_of(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        head = stream.read(4096)
    if is_dicom(head):
        yield from _texts(parse_dicom(path, stop_before_pixels=True, force=True))
    elif head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0":
        yield from (run.decode() for run in re.findall(rb"[ -~]{4,}", head[:544]))


def _texts(dataset: Dataset) -> Iterator[str]:
    for tag in list(dataset.keys()):
        raw = getattr(dataset.get_item(tag), "value", None)
        if isinstance(raw, bytes) and len(raw) <= 4096:
            yield from _stripped(raw.decode("latin-1").split("\\"))
        with suppress(Exception):  # pydicom parses an element on access; its bytes are among the texts already
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    yield from _texts(item)
            elif element.VR not in _NUMBERS:
                yield from _stripped(_values(element))


def _values(element: DataElement) -> list[str]:
    value = element.value
    return [str(each) for each in value] if isinstance(value, list | tuple) or element.VM > 1 else [str(value)]


def _stripped(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        text = value.strip("\0 ")
        if text.isprintable() and not _is_number(text):
            yield text


def _is_number(text: str) -> bool:
    """Whether it is one as a measurement is written; a number of five digits or more may be somebody's."""
    return (len(text) < 5 and re.fullmatch(r"[-+]?\d*\.?\d+", text) is not None) or (
        re.fullmatch(r"[-+]?\d+\.\d{1,9}([eE][-+]?\d+)?", text) is not None and len(text) < 12
    )
