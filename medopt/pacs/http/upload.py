"""DICOM files out of a request's parts into the spool, each kept or refused by itself, never whole in memory."""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.http.multipart import DICOM
from medopt.pacs.intake import NOT_AS_SAID, NOT_UNDERSTOOD, OUT_OF_ROOM, Intake, Refusal, described
from medopt.pacs.spool import AT_WORK, Spool

_PREAMBLE = 128
_GROUP_LENGTH = _PREAMBLE + 4 + 12
_LONGEST_HEADER = 64 * 1024
_ROOM_EVERY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kept:
    """An instance that is safe here."""

    sop_uid: str
    sop_class: str


@dataclass(frozen=True, slots=True)
class Failed:
    """An instance that is not; its UIDs are empty where it does not say them."""

    sop_uid: str
    sop_class: str
    refusal: Refusal


class Upload:
    """The parts of one request or answer. One object is used by one thread at a time.

    `study` is the one study that is meant, '' for any.
    """

    def __init__(self, intake: Intake, spool: Spool, most_bytes: int, study: str = "") -> None:
        self._intake, self._spool, self._most, self._study = intake, spool, most_bytes, study
        self._open = True
        self.kept: list[Kept] = []
        self.failed: list[Failed] = []
        self._part: _Part | None = None
        self._refusal: Refusal | None = None

    def is_open(self) -> bool:
        """Whether more may come."""
        return self._open

    def close(self) -> None:
        """Nothing more comes; a part that has not come whole is forgotten."""
        self._open = False
        if self._part is not None:
            self._part.drop()
            self._part = None

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""
        self._part = self._refusal = None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != DICOM:
            self._refusal = Refusal(NOT_UNDERSTOOD, "a part is not application/dicom")
            return
        self._guarded(self._intake.room)
        if self._refusal is None:
            self._part = _Part(self._spool, self._most, self._intake.room)

    def data(self, piece: memoryview) -> None:
        """Bytes of the part."""
        part = self._part
        if part is not None and self._refusal is None:
            self._guarded(lambda: part.add(piece))
            if self._refusal is not None:
                part.drop()

    def end(self) -> None:
        """The part has come whole: it is kept when this returns, or among the failed."""
        part, self._part = self._part, None
        if part is not None and self._refusal is None:
            try:
                self._guarded(lambda: self._keep(part))
            finally:
                part.drop()
        names = part.names if part is not None else ("", "")
        if self._refusal is None:
            self.kept.append(Kept(*names))
        else:
            self._intake.refused(self._refusal)
            self.failed.append(Failed(*names, self._refusal))

    def _keep(self, part: _Part) -> None:
        part.finish()
        with part.path.open("rb") as stream:
            one = described(stream, part.names, part.syntax, part.digest, part.size)
        if self._study and one.study_uid != self._study:
            raise Refusal(NOT_AS_SAID, "it is of another study than the request says")
        self._intake.keep(one, lambda place: self._spool.adopt(part.path, place), self.is_open)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Refusal as refusal:
            self._refusal = refusal
        except OSError as error:
            self._refusal = Refusal(OUT_OF_ROOM, f"the spool cannot be written to ({error.strerror})")


class _Part:
    """One DICOM file (PS3.10 7.1) on its way to the disk, under a header of our own: a sender's may hold anything."""

    def __init__(self, spool: Spool, most: int, room: Callable[[int], None]) -> None:
        self.path = spool.root / AT_WORK / f"{uuid.uuid4().hex}.part"
        self._most, self._room = most, room
        self._head = bytearray()
        self._stream: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self.size = self._seen = 0
        self.names = ("", "")
        self.syntax = ""

    @property
    def digest(self) -> str:
        """As `intake.content_digest`."""
        found = self._hash.copy()
        found.update(self.syntax.encode())
        return found.hexdigest()

    def add(self, piece: memoryview) -> None:
        """Raises Refusal, OSError."""
        self._seen += len(piece)
        if self._seen > self._most:
            raise Refusal(OUT_OF_ROOM, "an instance is larger than this node takes")
        if self._stream is not None:
            self._write(piece)
            return
        self._head += piece
        length = self._header_length()
        if length is not None and len(self._head) >= length:
            rest = bytes(self._head[length:])
            self._begin(bytes(self._head[:length]))
            self._head.clear()
            self._write(memoryview(rest))

    def finish(self) -> None:
        """See the file to the disk."""
        if self._stream is None:
            raise Refusal(NOT_UNDERSTOOD, "it is no DICOM file, or breaks off in its header")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def drop(self) -> None:
        """Close, and remove what was not taken over."""
        if self._stream is not None:
            self._stream.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _header_length(self) -> int | None:
        """Bytes before the data set, once they are known."""
        head = self._head
        if len(head) >= _PREAMBLE + 4 and head[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
            raise Refusal(NOT_UNDERSTOOD, "it is no DICOM file")
        if len(head) < _GROUP_LENGTH:
            return None
        element = head[_PREAMBLE + 4 : _GROUP_LENGTH]
        if bytes(element[:8]) != b"\x02\x00\x00\x00UL\x04\x00":
            raise Refusal(NOT_UNDERSTOOD, "its file header does not begin with its length")
        length = int.from_bytes(element[8:], "little")
        if length > _LONGEST_HEADER:
            raise Refusal(NOT_UNDERSTOOD, "its file header is too long")
        return _GROUP_LENGTH + length

    def _begin(self, head: bytes) -> None:
        try:
            said = parse_dicom(io.BytesIO(head), force=False).file_meta
            names = str(said.get("MediaStorageSOPInstanceUID") or ""), str(said.get("MediaStorageSOPClassUID") or "")
            syntax = str(said.get("TransferSyntaxUID") or "")
        except Exception as error:  # a decoder's exceptions are many
            raise Refusal(NOT_UNDERSTOOD, f"its file header cannot be read ({type(error).__name__})") from None
        if not (all(names) and syntax):
            raise Refusal(NOT_AS_SAID, "its file header names no instance, class or transfer syntax")
        meta = FileMetaDataset()
        meta.MediaStorageSOPInstanceUID, meta.MediaStorageSOPClassUID = UID(names[0]), UID(names[1])
        meta.TransferSyntaxUID = UID(syntax)
        meta.ImplementationClassUID = PYNETDICOM_IMPLEMENTATION_UID
        meta.ImplementationVersionName = PYNETDICOM_IMPLEMENTATION_VERSION
        written = DicomBytesIO()
        try:
            write_file_meta_info(written, meta)
        except Exception as error:  # a value that cannot be encoded
            raise Refusal(NOT_AS_SAID, f"its file header holds no UIDs ({type(error).__name__})") from None
        self.names, self.syntax = names, syntax
        self._stream = self.path.open("xb")
        own = b"\0" * _PREAMBLE + b"DICM" + written.getvalue()
        self._stream.write(own)
        self.size = len(own)

    def _write(self, piece: memoryview) -> None:
        assert self._stream is not None
        before = self.size // _ROOM_EVERY
        self._stream.write(piece)
        self._hash.update(piece)
        self.size += len(piece)
        if self.size // _ROOM_EVERY > before:
            self._room(0)
