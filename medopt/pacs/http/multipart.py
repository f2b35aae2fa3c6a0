"""multipart/related (RFC 2387) read as it comes: parts are handed over in pieces, nothing is gathered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

_LONGEST_BOUNDARY = 70  # RFC 2046 5.1.1
DICOM = "application/dicom"


class Malformed(Exception):
    """What came is not multipart/related; the text is for the sender and quotes nothing."""


class PartSink(Protocol):
    """Who takes the parts."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; its headers' names are in lower case."""

    def data(self, piece: memoryview) -> None:
        """The next bytes of the part."""

    def end(self) -> None:
        """The part has come whole."""


def boundary_of(content_type: str) -> bytes:
    """The boundary of multipart/related; type="application/dicom" (PS3.18 8.6.1.2); raises Malformed."""
    kind, options = parse_options_header(content_type)
    if kind.lower() != b"multipart/related" or options.get(b"type", b"").lower().decode("latin-1") != DICOM:
        raise Malformed('Only multipart/related; type="application/dicom" is taken here.')
    found = options.get(b"boundary", b"")
    if not 1 <= len(found) <= _LONGEST_BOUNDARY:
        raise Malformed("The boundary is missing or longer than 70 characters.")
    return found


class Related:
    """A parser that is fed; what `parts` raises comes through."""

    def __init__(self, boundary: bytes, parts: PartSink) -> None:
        self._parts = parts
        self._headers: dict[str, str] = {}
        self._name, self._value = b"", b""
        self.whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._finished,
            },
        )

    def feed(self, piece: bytes) -> None:
        """The next bytes of the body; raises Malformed."""
        if self.whole:
            return  # an epilogue, which says nothing (RFC 2046 5.1.1)
        try:
            self._parser.write(piece)
        except FormParserError:
            raise Malformed("The body is not of the form that its Content-Type says.") from None

    def close(self) -> None:
        """The body is over; raises Malformed where it breaks off."""
        if not self.whole:
            raise Malformed("The body breaks off before its last boundary.")

    def _begin(self) -> None:
        self._headers, self._name, self._value = {}, b"", b""

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name = self._value = b""

    def _on_headers(self) -> None:
        self._parts.begin(self._headers)

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._parts.data(memoryview(data)[start:end])

    def _end(self) -> None:
        self._parts.end()

    def _finished(self) -> None:
        self.whole = True
