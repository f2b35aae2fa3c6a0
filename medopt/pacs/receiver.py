"""C-STORE and C-ECHO: an instance is acknowledged when it is safe on disk and in the ledger, and not before."""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medopt.pacs.bounded import BoundedServer, Bounds
from medopt.pacs.ledger import Instance, Ledger, Outcome
from medopt.pacs.settings import Node
from medopt.pacs.spool import STUDIES, Spool
from medopt.pacs.tls import server_context
from medopt.provenance import pseudonym

log = logging.getLogger("medopt.pacs")
for _name in ("pydicom", "pynetdicom", "highdicom"):  # what they say may quote a header
    logging.getLogger(_name).setLevel(logging.CRITICAL)

# Status codes of C-STORE (PS3.4 B.2.3, PS3.7 C.5).
STORED, OUT_OF_ROOM, DUPLICATE, NOT_AS_SAID, NOT_UNDERSTOOD, LATE, NO_LEDGER = (
    *(0x0000, 0xA700, 0x0111, 0xA900, 0xC000, 0x0124, 0x0110),
)
_MEGABYTE = 1_000_000
_LOCKS = 64
_PDU_BYTES = 256 * 1024
"""What a sender may put into one PDU: pynetdicom's 16 kB make 250 rounds of an image of 2 megapixels."""
# A data set that is deflated as a whole could become a thousand times as large while its header is read.
_SYNTAXES = [one for one in ALL_TRANSFER_SYNTAXES if not UID(one).is_deflated and "Deflate" not in UID(one).name]
_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_SEEN = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):
    status: int
    reason: str


class Receiver:
    """The listening side of a node.

    `heard(study, is_open)` is called for each image, from a thread of its own; `is_open` tells later on whether the
    association that brought it still lives. `told(event, ...)` is for the audit.
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
        self._server: Any = None

    def start(self) -> int:
        """Listen; returns the port. Raises OSError where that is taken."""
        limits = self._node.limits
        ae = AE(self._node.aet)
        ae.require_called_aet = True
        ae.maximum_associations = limits.associations
        ae.maximum_pdu_size = _PDU_BYTES
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 5, limits.idle_seconds, limits.idle_seconds
        for context in AllStoragePresentationContexts:
            ae.add_supported_context(context.abstract_syntax or "", _SYNTAXES)
        ae.add_supported_context(Verification)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._asked),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
        ]
        self._server = ae.make_server(
            (self._node.host, self._node.port),
            ae_title=self._node.aet,
            ssl_context=server_context(self._node.tls),
            evt_handlers=handlers,
            server_class=BoundedServer,
            bounds=Bounds(
                int(limits.instance_mb * _MEGABYTE), int(limits.memory_mb * _MEGABYTE), 2 * limits.associations
            ),
        )
        ae._servers.append(self._server)  # its shutdown takes it out again
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="pacs-listen", daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """No new associations; those open are aborted. What they had sent was acknowledged only if it is safe."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            for association in server.active_associations:
                association.abort()

    def _asked(self, event: evt.Event) -> None:
        """Turn away whom the node does not know (PS3.8 9.3.4: permanent, by the service user, calling title)."""
        association: Association = event.assoc
        asked: Any = association.requestor.primitive
        title, address = asked.calling_ae_title.strip(), str(association.requestor.address)
        known = [peer for peer in self._node.accept if peer.aet == title]
        if any(peer.comes_from(address) for peer in known):
            return
        why = "from an address that is not its own" if known else "an AE title that is not in `accept`"
        log.warning("association rejected: %s", why)
        self._told("rejected", reason=why)
        association.acse.send_reject(0x01, 0x01, 0x03)
        association.kill()

    def _echo(self, event: evt.Event) -> int:
        wire: Any = event.assoc.dul.socket
        wire.begin_message()
        return STORED

    def _store(self, event: evt.Event) -> Dataset | int:
        wire: Any = event.assoc.dul.socket
        try:
            return self._kept(event)
        except _Refusal as refusal:
            log.warning("instance refused (0x%04X): %s", refusal.status, refusal.reason)
            self._told("refused", reason=refusal.reason, status=f"0x{refusal.status:04X}")
            answer = Dataset()
            answer.Status, answer.ErrorComment = refusal.status, refusal.reason[:64]
            return answer
        finally:
            wire.begin_message()

    def _kept(self, event: evt.Event) -> int:
        content = event.encoded_dataset()
        request: Any = event.request
        with request.DataSet.getbuffer() as body:  # without the file header, which is the library's
            digest = hashlib.sha256(body)
        digest.update(str(event.context.transfer_syntax).encode())
        one = self._described(event, content, digest.hexdigest())
        late = self._node.late_images == "new_result"
        with self._locks[hash(one.sop_uid) % _LOCKS]:
            if self._ledger.is_result(one.sop_uid):
                return STORED  # our own result, routed back: it lies in the spool
            outcome = self._ledger.judge(one, late=late)
            if outcome == "new":
                outcome = self._written(one, content, late)
        if outcome == "other":
            raise _Refusal(DUPLICATE, "another instance with this UID is here already")
        if outcome == "late":
            raise _Refusal(LATE, "the study was answered; late images are refused here")
        if outcome == "gone":
            raise _Refusal(LATE, "the study was answered and has left the spool")
        if one.image:
            self._heard(one.study_uid, event.assoc.is_alive)
        if outcome == "new":
            self._told("received", study=pseudonym(one.study_uid), content=one.digest)
        return STORED

    def _written(self, one: Instance, content: bytes, late: bool) -> Outcome:
        """To disk, then to the ledger; nothing stays where either is full."""
        room = self._spool.free_bytes() - one.size
        if room < self._node.limits.free_mb * _MEGABYTE:
            raise _Refusal(OUT_OF_ROOM, "the spool's disk is nearly full")
        try:
            self._spool.write(one.file, [content])
        except OSError as error:
            raise _Refusal(OUT_OF_ROOM, f"the spool cannot be written to ({error.strerror})") from None
        try:
            outcome = self._ledger.record(one, self._clock(), late=late)
        except sqlite3.Error as error:
            self._spool.remove(one.file)
            full = "full" in str(error)
            raise _Refusal(OUT_OF_ROOM if full else NO_LEDGER, "the ledger cannot be written to") from None
        if outcome != "new":
            self._spool.remove(one.file)
        return outcome

    def _described(self, event: evt.Event, content: bytes, digest: str) -> Instance:
        """What an instance says of itself; raises _Refusal where it does not say it, or says something else."""
        request: Any = event.request
        sop_uid, sop_class = str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
        try:
            header = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(_SEEN))
            said = {name: str(header.get(name) or "").rstrip("\0 ") for name in _SEEN}
        except Exception as error:  # a decoder's exceptions are many; RecursionError is one
            raise _Refusal(NOT_UNDERSTOOD, f"its header cannot be read ({type(error).__name__})") from None
        for name in _SEEN:
            if not said[name]:
                raise _Refusal(NOT_AS_SAID, f"{name} is missing")
            if len(said[name]) > 64 or _UID.fullmatch(said[name]) is None:
                raise _Refusal(NOT_AS_SAID, f"{name} is not a UID")
        if (said["SOPInstanceUID"], said["SOPClassUID"]) != (sop_uid, sop_class):
            raise _Refusal(NOT_AS_SAID, "command and data set name different instances")
        study = said["StudyInstanceUID"]
        image, syntax = "Image" in UID(sop_class).name, str(event.context.transfer_syntax)
        place = self._spool.place(STUDIES, study, sop_uid)
        return Instance(sop_uid, study, sop_class, syntax, digest, len(content), place, image)
