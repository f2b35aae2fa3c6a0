"""Writes the DICOM files of a body's parts to the spool, each stored or refused by itself, never whole in memory."""

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
from medopt.pacs.intake import (
    CANNOT_UNDERSTAND,
    DATA_SET_MISMATCH,
    OUT_OF_RESOURCES,
    Intake,
    Refusal,
    parse_instance,
)
from medopt.pacs.spool import PART, WORK, Spool
from medopt.serving.server.multipart import MultipartError, boundary_in, header_values

DICOM = "application/dicom"
_PREAMBLE = 128
_GROUP_LENGTH_END = _PREAMBLE + 4 + 12
_MAX_HEADER_BYTES = 64 * 1024
_SPACE_CHECK_BYTES = 64 * 1024 * 1024


class UnsupportedMediaType(MultipartError):
    """The Content-Type is not multipart/related; type="application/dicom"."""


def dicom_boundary(content_type: str) -> bytes:
    """The boundary of multipart/related; type="application/dicom" (PS3.18 8.6.1.2); raises MultipartError."""
    media_type, parameters = header_values("content-type", content_type)
    if media_type != "multipart/related" or parameters.get("type", "").lower() != DICOM:
        raise UnsupportedMediaType('Only multipart/related; type="application/dicom" is accepted here.')
    return boundary_in(parameters)


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance that is safe here."""

    sop_uid: str
    sop_class: str


@dataclass(frozen=True, slots=True)
class FailedInstance:
    """An instance that is not stored; its UIDs are empty if its file header has none."""

    sop_uid: str
    sop_class: str
    refusal: Refusal


class Upload:
    """The parts of one request or response (a `PartSink`). One object is used by one thread at a time.

    `study_uid` is the only study that is accepted, '' for any.
    """

    def __init__(self, intake: Intake, spool: Spool, max_bytes: int, study_uid: str = "") -> None:
        self._intake, self._spool, self._max_bytes, self._study_uid = intake, spool, max_bytes, study_uid
        self._open = True
        self.stored: list[StoredInstance] = []
        self.failed: list[FailedInstance] = []
        self._part: _PartFile | None = None
        self._refusal: Refusal | None = None

    def is_open(self) -> bool:
        """Whether more parts may come."""
        return self._open

    def close(self) -> None:
        """No more parts come; an incomplete part is dropped."""
        self._open = False
        if self._part is not None:
            self._part.drop()
            self._part = None

    def begin(self, headers: Mapping[str, str]) -> None:
        """A part begins."""
        self._part = self._refusal = None
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != DICOM:
            self._refusal = Refusal(CANNOT_UNDERSTAND, "a part is not application/dicom")
            return
        self._catch_refusal(self._intake.require_space)
        if self._refusal is None:
            self._part = _PartFile(self._spool, self._max_bytes, self._intake.require_space)

    def data(self, chunk: memoryview) -> None:
        """Bytes of the part."""
        part = self._part
        if part is not None and self._refusal is None:
            self._catch_refusal(lambda: part.add(chunk))
            if self._refusal is not None:
                part.drop()

    def end(self) -> None:
        """The part is complete: when this returns its instance is among `stored` or `failed`."""
        part, self._part = self._part, None
        if part is not None and self._refusal is None:
            try:
                self._catch_refusal(lambda: self._store(part))
            finally:
                part.drop()
        sop_uid, sop_class = (part.sop_uid, part.sop_class) if part is not None else ("", "")
        if self._refusal is None:
            self.stored.append(StoredInstance(sop_uid, sop_class))
        else:
            self._intake.record_refusal(self._refusal)
            self.failed.append(FailedInstance(sop_uid, sop_class, self._refusal))

    def _store(self, part: _PartFile) -> None:
        part.finish()
        with part.path.open("rb") as stream:
            instance = parse_instance(
                stream, part.sop_uid, part.sop_class, part.transfer_syntax, part.digest, part.size
            )
        if self._study_uid and instance.study_uid != self._study_uid:
            raise Refusal(DATA_SET_MISMATCH, "it is of another study than the request says")
        self._intake.store(
            instance,
            lambda name: self._spool.move_in(part.path, name),
            self.is_open,
            lambda: parse_dicom(part.path, stop_before_pixels=True),
        )

    def _catch_refusal(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Refusal as refusal:
            self._refusal = refusal
        except OSError as error:
            self._refusal = Refusal(OUT_OF_RESOURCES, f"the spool cannot be written to ({error.strerror})")


class _PartFile:
    """One DICOM file (PS3.10 7.1) while it is written, under a new file header: the sender's may hold anything."""

    def __init__(self, spool: Spool, max_bytes: int, require_space: Callable[[int], None]) -> None:
        self.path = spool.root / WORK / f"{uuid.uuid4().hex}{PART}"
        self._max_bytes, self._require_space = max_bytes, require_space
        self._header = bytearray()
        self._stream: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self.size = self._received = 0
        self.sop_uid = self.sop_class = self.transfer_syntax = ""

    @property
    def digest(self) -> str:
        """As `intake.content_digest`."""
        digest = self._hash.copy()
        digest.update(self.transfer_syntax.encode())
        return digest.hexdigest()

    def add(self, chunk: memoryview) -> None:
        """Write the next bytes; raises Refusal, OSError."""
        self._received += len(chunk)
        if self._received > self._max_bytes:
            raise Refusal(OUT_OF_RESOURCES, "an instance is larger than this node accepts")
        if self._stream is not None:
            self._write(chunk)
            return
        self._header += chunk
        length = self._header_length()
        if length is not None and len(self._header) >= length:
            rest = bytes(self._header[length:])
            self._begin(bytes(self._header[:length]))
            self._header.clear()
            self._write(memoryview(rest))

    def finish(self) -> None:
        """Flush the file to the disk (fsync)."""
        if self._stream is None:
            raise Refusal(CANNOT_UNDERSTAND, "it is not a DICOM file, or it ends within its header")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def drop(self) -> None:
        """Close the file, and remove it if it was not moved into the spool."""
        if self._stream is not None:
            self._stream.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _header_length(self) -> int | None:
        """Bytes before the data set, None as long as they are not known."""
        header = self._header
        if len(header) >= _PREAMBLE + 4 and header[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
            raise Refusal(CANNOT_UNDERSTAND, "it is no DICOM file")
        if len(header) < _GROUP_LENGTH_END:
            return None
        element = header[_PREAMBLE + 4 : _GROUP_LENGTH_END]
        if bytes(element[:8]) != b"\x02\x00\x00\x00UL\x04\x00":
            raise Refusal(CANNOT_UNDERSTAND, "its file header does not begin with its length")
        length = int.from_bytes(element[8:], "little")
        if length > _MAX_HEADER_BYTES:
            raise Refusal(CANNOT_UNDERSTAND, "its file header is too long")
        return _GROUP_LENGTH_END + length

    def _begin(self, header: bytes) -> None:
        """Parse the sender's file header, and begin the file with one of our own."""
        try:
            meta = parse_dicom(io.BytesIO(header), force=False).file_meta
            sop_uid = str(meta.get("MediaStorageSOPInstanceUID") or "")
            sop_class = str(meta.get("MediaStorageSOPClassUID") or "")
            transfer_syntax = str(meta.get("TransferSyntaxUID") or "")
        except Exception as error:  # pydicom raises many kinds of exceptions
            raise Refusal(CANNOT_UNDERSTAND, f"its file header cannot be read ({type(error).__name__})") from None
        if not (sop_uid and sop_class and transfer_syntax):
            raise Refusal(DATA_SET_MISMATCH, "its file header names no instance, class or transfer syntax")
        own_header = _file_header(sop_uid, sop_class, transfer_syntax)
        self.sop_uid, self.sop_class, self.transfer_syntax = sop_uid, sop_class, transfer_syntax
        self._stream = self.path.open("xb")
        self._stream.write(own_header)
        self.size = len(own_header)

    def _write(self, chunk: memoryview) -> None:
        assert self._stream is not None
        checks = self.size // _SPACE_CHECK_BYTES
        self._stream.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)
        if self.size // _SPACE_CHECK_BYTES > checks:
            self._require_space(0)


def _file_header(sop_uid: str, sop_class: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1); raises Refusal if a value cannot be encoded."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPInstanceUID, meta.MediaStorageSOPClassUID = UID(sop_uid), UID(sop_class)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = PYNETDICOM_IMPLEMENTATION_UID
    meta.ImplementationVersionName = PYNETDICOM_IMPLEMENTATION_VERSION
    encoded = DicomBytesIO()
    try:
        write_file_meta_info(encoded, meta)
    except Exception as error:  # pydicom raises many kinds of exceptions
        raise Refusal(DATA_SET_MISMATCH, f"its file header holds no UIDs ({type(error).__name__})") from None
    return b"\0" * _PREAMBLE + b"DICM" + encoded.getvalue()
