"""multipart/related (RFC 2387) as a stream: parts are passed on in chunks and never held whole in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

_MAX_BOUNDARY = 70  # RFC 2046 5.1.1
DICOM = "application/dicom"


class MultipartError(Exception):
    """The body is not multipart/related. The text goes to the sender and quotes nothing of the body."""


class UnsupportedMediaType(MultipartError):
    """The Content-Type is not multipart/related; type="application/dicom"."""


class PartSink(Protocol):
    """Receives the parts."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; the names of its headers are in lower case."""

    def data(self, chunk: memoryview) -> None:
        """The next bytes of the part."""

    def end(self) -> None:
        """The part is complete."""


def boundary_of(content_type: str) -> bytes:
    """The boundary of multipart/related; type="application/dicom" (PS3.18 8.6.1.2); raises MultipartError."""
    media_type, options = parse_options_header(content_type)
    if media_type.lower() != b"multipart/related" or options.get(b"type", b"").lower().decode("latin-1") != DICOM:
        raise UnsupportedMediaType('Only multipart/related; type="application/dicom" is accepted here.')
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise MultipartError("The boundary is missing or longer than 70 characters.")
    return boundary


class RelatedParser:
    """Parses a body that is fed in chunks; exceptions of `parts` pass through."""

    def __init__(self, boundary: bytes, parts: PartSink) -> None:
        self._parts = parts
        self._headers: dict[str, str] = {}
        self._name, self._value = b"", b""
        self._complete = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_begin,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_end,
                "on_end": self._on_complete,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body; raises MultipartError."""
        if self._complete:
            return  # the epilogue has no meaning (RFC 2046 5.1.1)
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise MultipartError("The body does not have the form that its Content-Type says.") from None

    def close(self) -> None:
        """The body is over; raises MultipartError if it breaks off."""
        if not self._complete:
            raise MultipartError("The body breaks off before its last boundary.")

    def _on_begin(self) -> None:
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

    def _on_end(self) -> None:
        self._parts.end()

    def _on_complete(self) -> None:
        self._complete = True
