"""Multipart bodies (RFC 2046) as a stream: parts are passed on in chunks and never held whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.message import Message
from typing import Protocol

_MAX_BOUNDARY = 70  # RFC 2046 5.1.1
_MAX_HEADERS, _MAX_PADDING, _MAX_VALUE = 16 * 1024, 1024, 2048


class MultipartError(Exception):
    """The body is not the multipart that it says. The text goes to the sender and quotes nothing of the body."""


class PartSink(Protocol):
    """Receives the parts."""

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins; the names of its headers are in lower case."""

    def data(self, chunk: memoryview) -> None:
        """The next bytes of the part."""

    def end(self) -> None:
        """The part is complete."""


def header_values(name: str, text: str) -> tuple[str, dict[str, str]]:
    """A header's value in lower case and its parameters (RFC 2045 5.1): `form-data` with {"name": "scan"}.

    Raises MultipartError.
    """
    if len(text) > _MAX_VALUE:
        raise MultipartError("A header of the multipart body is too long.")
    header = Message()
    header[name] = " ".join(text.split())  # a line's end would be taken for another header
    try:
        (value, _), *parameters = header.get_params([("", "")], name)
    except (TypeError, ValueError):  # parts of one parameter that contradict each other
        raise MultipartError("A header of the multipart body is malformed.") from None
    return value.lower(), {
        key.lower(): parameter if isinstance(parameter, str) else str(parameter[2])  # RFC 2231: charset, language, text
        for key, parameter in parameters
    }


def boundary_in(parameters: Mapping[str, str]) -> bytes:
    """The boundary among a Content-Type's parameters; raises MultipartError."""
    boundary = parameters.get("boundary", "").encode("latin-1", "replace")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY:
        raise MultipartError("The boundary is missing or longer than 70 characters.")
    return boundary


class MultipartParser:
    """Parses a body that is fed in chunks; exceptions of `parts` pass through.

    A preamble and an epilogue are skipped, and a boundary may have spaces behind it (RFC 2046 5.1.1).
    """

    def __init__(self, boundary: bytes, parts: PartSink) -> None:
        self._parts, self._delimiter = parts, b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first boundary may be the body's first line
        self._step: Callable[[], bool] = self._skip_preamble

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body; raises MultipartError."""
        self._buffer += chunk
        while self._step():
            pass

    def close(self) -> None:
        """The body is over; raises MultipartError if it breaks off."""
        if self._step == self._skip_preamble:
            raise MultipartError("The body does not have the form that its Content-Type says: it has no boundary.")
        if self._step != self._skip_epilogue:
            raise MultipartError("The body breaks off before its last boundary.")

    # Each step returns whether the next one can go on with what is in the buffer.

    def _skip_preamble(self) -> bool:
        return self._until_boundary(lambda _: None, lambda: None)

    def _read_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")  # the boundary's own line end counts: a part may have no headers
        if end > _MAX_HEADERS or (end < 0 and len(self._buffer) > _MAX_HEADERS):
            raise MultipartError("The headers of a part are too long.")
        if end < 0:
            return False
        self._parts.begin(_parsed_headers(bytes(self._buffer[2:end])))
        del self._buffer[: end + 2]  # the empty line stays: data may be empty, and then it begins the next boundary
        self._step = self._skip_empty_line
        return True

    def _skip_empty_line(self) -> bool:
        if self._buffer.startswith(self._delimiter):
            self._step = self._read_data
            return True
        if len(self._buffer) < len(self._delimiter) and self._delimiter.startswith(self._buffer):
            return False
        del self._buffer[:2]
        self._step = self._read_data
        return True

    def _read_data(self) -> bool:
        return self._until_boundary(self._parts.data, self._parts.end)

    def _skip_epilogue(self) -> bool:
        self._buffer.clear()
        return False

    def _until_boundary(self, data: Callable[[memoryview], None], end: Callable[[], None]) -> bool:
        """Pass on what comes before the next boundary, then read that."""
        at, start = -1, 0
        while (at := self._buffer.find(self._delimiter, start)) >= 0:
            line = self._line_after(at + len(self._delimiter))
            if line is None:
                break
            is_last, length = line
            if length:
                self._pass_on(data, at)
                end()
                del self._buffer[: length - (0 if is_last else 2)]
                self._step = self._skip_epilogue if is_last else self._read_headers
                return True
            start = at + 1  # it only begins like the boundary
        self._pass_on(data, at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1))
        return False

    def _line_after(self, position: int) -> tuple[bool, int] | None:
        """Behind a boundary: whether it is the last one, and its length with its line; 0: it is none; None: more."""
        rest = bytes(self._buffer[position : position + _MAX_PADDING])
        is_last = rest.startswith(b"--")
        if is_last:
            return True, len(self._delimiter) + 2
        padded = rest.lstrip(b" \t")
        if len(rest) < _MAX_PADDING and (padded in (b"", b"\r") or rest == b"-"):
            return None
        if not padded.startswith(b"\r\n"):
            return False, 0
        return False, len(self._delimiter) + len(rest) - len(padded) + 2

    def _pass_on(self, data: Callable[[memoryview], None], count: int) -> None:
        if count:
            passed = bytes(self._buffer[:count])
            del self._buffer[:count]
            data(memoryview(passed))


def _parsed_headers(block: bytes) -> dict[str, str]:
    """The headers of a part by their names in lower case; a line that begins with a space goes on (RFC 5322 2.2.3)."""
    headers: dict[str, str] = {}
    name = ""
    for line in block.decode("latin-1").split("\r\n"):
        if line[:1] in (" ", "\t") and name:
            headers[name] += f" {line.strip()}"
        elif line:
            name, colon, value = line.partition(":")
            name = name.strip().lower()
            if not colon or not name:
                raise MultipartError("The body does not have the form that its Content-Type says.")
            headers[name] = value.strip()
    return headers
