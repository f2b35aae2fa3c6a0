"""What every door does with an instance: look at what it says of itself, write it to disk, record it, or refuse it."""

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

from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medopt.core.privacy import pseudonym
from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.ledger import Instance, Ledger, Outcome
from medopt.pacs.settings import Node
from medopt.pacs.spool import STUDIES, Spool, hashed_place

log = logging.getLogger("medopt.pacs")

# Status codes of C-STORE (PS3.4 B.2.3, PS3.7 C.5), which are STOW-RS's failure reasons, too (PS3.18 I.2.2).
STORED, OUT_OF_ROOM, DUPLICATE, NOT_AS_SAID, NOT_UNDERSTOOD, LATE, NO_LEDGER = (
    *(0x0000, 0xA700, 0x0111, 0xA900, 0xC000, 0x0124, 0x0110),
)
_LOCKS = 64
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_SEEN = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """An instance is not taken; the reason names no patient, whatever was sent."""

    status: int
    reason: str


class Intake:
    """Where instances come in, by whichever door. One object is used by many threads.

    `heard(study, is_open)` is called for each image, from its sender's thread; `is_open` tells later on whether the
    connection that brought it still lives. `told(event, ...)` is for the audit.
    """

    def __init__(
        self,
        node: Node,
        spool: Spool,
        ledger: Ledger,
        heard: Callable[[str, Callable[[], bool]], None],
        told: Callable[..., None] = lambda *_, **__: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node, self._spool, self._ledger, self._clock = node, spool, ledger, clock
        self._heard, self._told = heard, told
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def keep(self, one: Instance, write: Callable[[str], None], is_open: Callable[[], bool]) -> None:
        """Return once an instance is safe on disk and in the ledger; raises Refusal where it will not be.

        `write` puts its bytes to a place below the spool, whole or not at all, or raises OSError.
        """
        late = self._node.late_images == "new_result"
        with self._locks[hash(one.sop_uid) % _LOCKS]:
            if self._ledger.is_result(one.sop_uid):
                return  # our own result, routed back: it lies in the spool
            outcome = self._ledger.judge(one, late=late)
            if outcome == "new":
                outcome = self._written(one, write, late)
        if outcome == "other":
            raise Refusal(DUPLICATE, "another instance with this UID is here already")
        if outcome == "late":
            raise Refusal(LATE, "the study was answered; late images are refused here")
        if outcome == "gone":
            raise Refusal(LATE, "the study was answered and has left the spool")
        if one.image:
            self._heard(one.study_uid, is_open)
        if outcome == "new":
            self._told("received", study=pseudonym(one.study_uid), content=one.digest)

    def refused(self, refusal: Refusal) -> None:
        """Say that an instance was not taken, in the log and to the audit."""
        log.warning("instance refused (0x%04X): %s", refusal.status, refusal.reason)
        self._told("refused", reason=refusal.reason, status=f"0x{refusal.status:04X}")

    def room(self, size: int = 0) -> None:
        """Raises Refusal where the spool's disk has no room for so many bytes."""
        if self._spool.free_bytes() - size < self._node.limits.free_bytes:
            raise Refusal(OUT_OF_ROOM, "the spool's disk is nearly full")

    def _written(self, one: Instance, write: Callable[[str], None], late: bool) -> Outcome:
        """To disk, then to the ledger; nothing stays where either is full."""
        self.room(one.size)
        try:
            write(one.file)
        except OSError as error:
            raise Refusal(OUT_OF_ROOM, f"the spool cannot be written to ({error.strerror})") from None
        try:
            outcome = self._ledger.record(one, self._clock(), late=late)
        except sqlite3.Error as error:
            self._spool.remove(one.file)
            full = "full" in str(error)
            raise Refusal(OUT_OF_ROOM if full else NO_LEDGER, "the ledger cannot be written to") from None
        if outcome != "new":
            self._spool.remove(one.file)
        return outcome


def is_uid(text: str) -> bool:
    """Whether a text is a UID (PS3.5 9.1)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def content_digest(syntax: str, dataset: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of a data set's bytes, without a file header, and of their transfer syntax."""
    digest = hashlib.sha256()
    for piece in dataset:
        digest.update(piece)
    digest.update(syntax.encode())
    return digest.hexdigest()


def described(stream: BinaryIO, names: tuple[str, str], syntax: str, digest: str, size: int) -> Instance:
    """What an instance (a DICOM file) says of itself; raises Refusal where it does not say it, or says something else.

    `names` are the SOP instance and SOP class UIDs by which it was announced.
    """
    if syntax == DeflatedExplicitVRLittleEndian:  # it would be inflated whole to be read, to whatever size
        raise Refusal(NOT_UNDERSTOOD, "deflated data sets are not taken")
    try:
        header = parse_dicom(stream, stop_before_pixels=True, specific_tags=list(_SEEN))
        said = {name: str(header.get(name) or "").rstrip("\0 ") for name in _SEEN}
    except Exception as error:  # a decoder's exceptions are many; RecursionError is one
        raise Refusal(NOT_UNDERSTOOD, f"its header cannot be read ({type(error).__name__})") from None
    for name in _SEEN:
        if not said[name]:
            raise Refusal(NOT_AS_SAID, f"{name} is missing")
        if not is_uid(said[name]):
            raise Refusal(NOT_AS_SAID, f"{name} is not a UID")
    if (said["SOPInstanceUID"], said["SOPClassUID"]) != names:
        raise Refusal(NOT_AS_SAID, "command and data set name different instances")
    (sop_uid, sop_class), study = names, said["StudyInstanceUID"]
    image = "Image" in UID(sop_class).name
    return Instance(sop_uid, study, sop_class, syntax, digest, size, hashed_place(STUDIES, study, sop_uid), image)
