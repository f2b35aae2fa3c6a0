"""The files of a form, multipart/form-data (RFC 7578), as browsers and `curl -F` send them; file names are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medopt.serving.server.limits import Refused
from medopt.serving.server.multipart import MultipartError, MultipartParser, boundary_in, header_values

FORM = "multipart/form-data"
_MAX_FIELD = 4096
_PIECE = 1 << 20
_PLAIN = ("", "7bit", "8bit", "binary")


@dataclass(frozen=True, slots=True)
class Form:
    """Each file as (name of its field, content), in the form's order, and the other fields by name."""

    files: tuple[tuple[str, bytes], ...]
    fields: Mapping[str, str]


def is_form(content_type: str | None) -> bool:
    """Whether a body of this Content-Type is a form with files."""
    return (content_type or "").partition(";")[0].strip().lower() == FORM


def parse_form(body: bytes, content_type: str, max_parts: int) -> Form:
    """The form in a body; raises Refused."""
    parts = _Parts(max_parts)
    try:
        parser = MultipartParser(boundary_in(header_values("content-type", content_type)[1]), parts)
        for at in range(0, len(body), _PIECE):
            parser.feed(body[at : at + _PIECE])
        parser.close()
    except MultipartError as error:
        raise Refused("malformed", str(error)) from None
    return Form(tuple(parts.files), parts.fields)


class _Parts:
    """Takes the parts of a form (a `PartSink`). A part with a file name is a file; an empty field for one is none."""

    def __init__(self, max_parts: int) -> None:
        self._left = max_parts
        self.files: list[tuple[str, bytes]] = []
        self.fields: dict[str, str] = {}
        self._name, self._pieces = "", list[memoryview]()
        self._file_name: str | None = None

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""
        self._left -= 1
        if self._left < 0:
            raise MultipartError("The form has too many parts.")
        kind, parameters = header_values("content-disposition", headers.get("content-disposition", ""))
        if kind != "form-data" or "name" not in parameters:
            raise MultipartError('A part of the form has no Content-Disposition: form-data; name="...".')
        if headers.get("content-transfer-encoding", "").lower() not in _PLAIN:
            raise MultipartError("A part of the form is encoded: send files as they are.")
        self._name, self._file_name, self._pieces = parameters["name"], parameters.get("filename"), []

    def data(self, chunk: memoryview) -> None:
        """Bytes of the part."""
        self._pieces.append(chunk)
        if self._file_name is None and sum(map(len, self._pieces)) > _MAX_FIELD:
            raise MultipartError("A field of the form is too long; a file needs a file name in its part.")

    def end(self) -> None:
        """The part is complete."""
        content = b"".join(self._pieces)
        if self._file_name is None:
            self.fields[self._name] = content.decode("utf-8", "replace")
        elif content:
            self.files.append((self._name, content))
        elif self._file_name:
            raise MultipartError("A file of the form is empty.")
