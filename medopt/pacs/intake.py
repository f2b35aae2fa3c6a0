"""What happens to an instance, whichever protocol brought it: parse its header, write it to disk, record it; or refuse.

C-STORE, STOW-RS and the answers of WADO-RS all end here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medopt.core.privacy import pseudonym
from medopt.imaging.dicom_file import not_an_image_reason
from medopt.imaging.parse_dicom import parse_dicom, parse_header
from medopt.pacs.audit import AuditTrail, no_audit
from medopt.pacs.ledger import Instance, InstanceStatus, Ledger
from medopt.pacs.same_image import differing_keyword
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import STUDIES, Spool, spool_file

log = logging.getLogger("medopt.pacs")

# Status codes of C-STORE (PS3.4 B.2.3, PS3.7 C.5), which are also the failure reasons of STOW-RS (PS3.18 I.2.2).
SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_INSTANCE = 0x0111
NOT_AUTHORIZED = 0x0124
OUT_OF_RESOURCES = 0xA700
DATA_SET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000

_LOCKS = 64
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_HEADER = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]

ImageListener = Callable[[str, Callable[[], bool]], None]
"""Called with a study's UID, and with a function that says whether the connection that brought the image is open."""


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """An instance is not accepted. The reason, at most 64 characters, quotes nothing that the sender wrote."""

    status: int
    reason: str


class Intake:
    """Stores instances. One object is used by many threads.

    `image_received` is called for each image, from its sender's thread.
    """

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        ledger: Ledger,
        image_received: ImageListener,
        audit: AuditTrail = no_audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._spool, self._ledger, self._clock = settings, spool, ledger, clock
        self._image_received, self._audit = image_received, audit
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def store(
        self, instance: Instance, write: Callable[[str], None], is_open: Callable[[], bool],
        header: Callable[[], Dataset] = Dataset,
    ) -> None:  # fmt: skip
        """Return when an instance is safe on disk and in the ledger; raises Refusal if it is not stored.

        `write` puts its bytes to a path below the spool, whole or not at all, or raises OSError. `header` parses its
        header without pixels, for the comparison with an instance of the same UIDs in another transfer syntax.
        """
        late = self._settings.late_images == "new_result"
        with self._locks[hash(instance.sop_uid) % _LOCKS]:
            if self._ledger.is_result(instance.sop_uid):
                return  # our own result, routed back: it is in the spool
            status = self._ledger.classify(instance, late=late)
            if status == "new":
                status = self._write(instance, write, late)
        if status == "conflict" and (difference := self._difference(instance, header)):
            raise Refusal(DUPLICATE_INSTANCE, difference)
        if status == "late":
            raise Refusal(NOT_AUTHORIZED, "the study was answered; late images are refused here")
        if status == "removed":
            raise Refusal(NOT_AUTHORIZED, "the study was answered and has left the spool")
        if instance.image or self._ledger.state(instance.study_uid) == "receiving":
            self._image_received(instance.study_uid, is_open)
        if status == "new":
            self._audit("received", study=pseudonym(instance.study_uid), content=instance.digest)

    def _difference(self, instance: Instance, header: Callable[[], Dataset]) -> str:
        """Why an instance is another one than that with its UID, whose bytes differ; '' for the same image.

        The same image may come in another transfer syntax: the first that came is kept.
        """
        known = self._ledger.instance(instance.sop_uid)
        if known is None or known.transfer_syntax == instance.transfer_syntax:
            return "another instance with this UID is here already"
        if (known.study_uid, known.sop_class) != (instance.study_uid, instance.sop_class):
            return "another instance with this UID is here already"
        try:
            keyword = differing_keyword(parse_dicom(self._spool.root / known.file, stop_before_pixels=True), header())
        except FileNotFoundError:
            return "it was here in another encoding and has left the spool"
        except Exception:  # pydicom raises many kinds of exceptions
            return "another instance with this UID is here already"
        return f"one with this UID is here, with another {keyword}"[:64] if keyword else ""

    def record_refusal(self, refusal: Refusal) -> None:
        """Write a refusal to the log and to the audit."""
        log.warning("instance refused (0x%04X): %s", refusal.status, refusal.reason)
        self._audit("refused", reason=refusal.reason, status=f"0x{refusal.status:04X}")

    def require_space(self, size: int = 0) -> None:
        """Raises Refusal if the spool's disk has no space for this many bytes."""
        if self._spool.free_bytes() - size < self._settings.limits.free_bytes:
            raise Refusal(OUT_OF_RESOURCES, "the spool's disk is nearly full")

    def _write(self, instance: Instance, write: Callable[[str], None], late: bool) -> InstanceStatus:
        """First to the disk, then to the ledger; the file is removed again if it is not recorded."""
        self.require_space(instance.size)
        try:
            write(instance.file)
        except OSError as error:
            self._spool.remove(instance.file)  # where the rename succeeded and the flush of its folder did not
            raise Refusal(OUT_OF_RESOURCES, f"the spool cannot be written to ({error.strerror})") from None
        try:
            status = self._ledger.record(instance, self._clock(), late=late)
        except sqlite3.Error as error:
            self._spool.remove(instance.file)
            code = OUT_OF_RESOURCES if "full" in str(error) else PROCESSING_FAILURE
            raise Refusal(code, "the ledger cannot be written to") from None
        if status != "new":
            self._spool.remove(instance.file)
        return status


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5 9.1).

    >>> is_uid("1.2.840.10008.1.1"), is_uid("1.02"), is_uid("../etc")
    (True, False, False)
    """
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def content_digest(transfer_syntax: str, dataset: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of a data set's bytes, without a file header, followed by its transfer syntax."""
    digest = hashlib.sha256()
    for chunk in dataset:
        digest.update(chunk)
    digest.update(transfer_syntax.encode())
    return digest.hexdigest()


def parse_instance(
    stream: BinaryIO, sop_uid: str, sop_class: str, transfer_syntax: str, digest: str, size: int
) -> Instance:
    """Read the header of a DICOM file; raises Refusal if UIDs are missing or differ from the announced ones.

    The SOP instance and class UIDs and the transfer syntax are those of the C-STORE request or of the file header.
    """
    if transfer_syntax == DeflatedExplicitVRLittleEndian:  # pydicom would inflate it whole, to whatever size
        raise Refusal(CANNOT_UNDERSTAND, "deflated data sets are not accepted")
    try:
        dataset, pixels_follow = parse_header(stream, _HEADER)
        header = {name: str(dataset.get(name) or "").rstrip("\0 ") for name in _HEADER}
    except Exception as error:  # pydicom raises many kinds of exceptions, RecursionError among them
        raise Refusal(CANNOT_UNDERSTAND, f"its header cannot be read ({type(error).__name__})") from None
    for name in _HEADER:
        if not header[name]:
            raise Refusal(DATA_SET_MISMATCH, f"{name} is missing")
        if not is_uid(header[name]):
            raise Refusal(DATA_SET_MISMATCH, f"{name} is not a UID")
    if (header["SOPInstanceUID"], header["SOPClassUID"]) != (sop_uid, sop_class):
        raise Refusal(DATA_SET_MISMATCH, "command and data set name different instances")
    study_uid = header["StudyInstanceUID"]
    is_image = not_an_image_reason(dataset, pixels_follow=pixels_follow) is None
    file = spool_file(STUDIES, study_uid, sop_uid)
    return Instance(sop_uid, study_uid, sop_class, transfer_syntax, digest, size, file, is_image)
