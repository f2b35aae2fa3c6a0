"""Sends results to their destinations: each by itself, with growing waits, and never again after a confirmation."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel as Push  # type: ignore[attr-defined]
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medopt.core.privacy import pseudonym
from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.association import associate
from medopt.pacs.audit import AuditTrail, no_audit
from medopt.pacs.commitment import AWAITING_REPORT, CommitmentReceiver, request_commitment
from medopt.pacs.intake import SUCCESS
from medopt.pacs.ledger import Ledger
from medopt.pacs.peers import DimsePeer, WebPeer
from medopt.pacs.send_queue import PendingSend, SendQueue
from medopt.pacs.settings import NodeSettings, SendSettings

log = logging.getLogger("medopt.pacs")
_REPORT_SECONDS = 1.0
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, though some elements were changed or dropped (PS3.4 B.2.3)


def wait_seconds(sending: SendSettings, attempts: int) -> float:
    """Seconds to wait after this many failed attempts: doubled each time, up to `longest_seconds`."""
    return float(min(sending.longest_seconds, sending.first_seconds * 2 ** min(attempts - 1, 30)))


class Sender:
    """Sends what is due in the ledger. One object is used by one thread."""

    def __init__(
        self,
        settings: NodeSettings,
        ledger: Ledger,
        audit: AuditTrail = no_audit,
        *,
        clock: Callable[[], float],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._settings, self._queue, self._audit = settings, SendQueue(ledger), audit
        self._clock, self._stopping = clock, stopping
        self._commitments = CommitmentReceiver(settings, ledger, audit, clock)
        self._destinations = {peer.name: peer for peer in settings.destinations}

    def send_due(self) -> int:
        """Attempt each due send once; returns how many were confirmed."""
        due: dict[str, list[PendingSend]] = defaultdict(list)
        for send in self._queue.due(self._clock()):
            due[send.destination_name].append(send)
        confirmed = 0
        for name, sends in due.items():
            destination = self._destinations.get(name)
            if destination is None:
                for send in sends:
                    self._record_failure(send, "the destination is no longer in the node file", park=True)
            elif isinstance(destination, WebPeer):
                confirmed += self._send_web(destination, sends)
            else:
                confirmed += self._send_dimse(destination, sends)
        return confirmed

    def _send_web(self, destination: WebPeer, sends: Sequence[PendingSend]) -> int:
        from medopt.pacs.http.client import Client  # its imports are not needed without DICOMweb

        with Client(destination, self._settings.sending.timeout_seconds) as client:
            return self._send_each(sends, lambda send: client.store(self._path(send), send.result.sop_uid))

    def _send_dimse(self, destination: DimsePeer, sends: Sequence[PendingSend]) -> int:
        """All sends of a destination go over one association."""
        sop_classes = sorted({send.result.sop_class for send in sends})
        services = [*sop_classes, *([Push] if destination.commit else [])]
        reported = threading.Event()

        def on_report(event: evt.Event) -> tuple[int, None]:
            try:
                return self._commitments.take(destination.aet, event.event_information), None
            finally:
                reported.set()

        association = associate(
            self._settings, destination, services, [ExplicitVRLittleEndian],
            handlers=[(evt.EVT_N_EVENT_REPORT, on_report)],
        )  # fmt: skip
        try:
            if not destination.commit:
                return self._send_each(sends, lambda send: self._c_store(association, send))
            if self._send_and_commit(destination, sends, association):
                reported.wait(_REPORT_SECONDS)  # it may report at once, on this association
            return 0
        finally:
            if association.is_established:
                association.release()

    def _send_each(self, sends: Sequence[PendingSend], attempt: Callable[[PendingSend], str]) -> int:
        """Each instance succeeds or fails by itself. `attempt` returns why it failed, '' if it was confirmed."""
        confirmed = 0
        for send in sends:
            if self._stopping():
                break
            reason = attempt(send)
            if reason:
                self._record_failure(send, reason)
            else:
                self._queue.confirm(send, self._clock())
                self._record_stored("sent", send)
                confirmed += 1
        return confirmed

    def _send_and_commit(self, destination: DimsePeer, sends: Sequence[PendingSend], association: Association) -> bool:
        """Send, then ask whether everything stored is kept, which the destination reports. Whether a report will come.

        A report may come before the request is recorded here: what it confirmed is not scheduled again.
        """
        stored = []
        for send in sends:
            if self._stopping():
                break
            if reason := self._c_store(association, send):
                self._record_failure(send, reason)
            else:
                stored.append(send)
        if not stored:
            return False
        reason = request_commitment(association, destination, stored)
        for send in stored:
            if reason:
                self._record_failure(send, reason)
                continue
            last = send.attempts + 1 >= self._settings.sending.tries
            due = None if last else self._clock() + self._settings.sending.commit_seconds
            self._queue.reschedule(send, AWAITING_REPORT, due)
            self._record_stored("stored", send)
        return not reason

    def _c_store(self, association: Association, send: PendingSend) -> str:
        """Send the stored bytes; why that failed, '' if the destination confirmed it."""
        if not association.is_established:
            rejected = association.is_rejected
            return "the destination rejected the association" if rejected else "the destination is not reached"
        try:
            response = association.send_c_store(parse_dicom(self._path(send)))
        except ValueError:  # no presentation context was accepted
            return "the destination does not accept this SOP class"
        except (OSError, RuntimeError):
            return "the connection broke off"
        status = response.get("Status")
        if status is None:
            return "the destination did not respond in time, or the connection broke off"
        return "" if status == SUCCESS or status in _WARNINGS else f"the destination answered 0x{status:04X}"

    def _path(self, send: PendingSend) -> Path:
        return self._settings.spool / send.result.file

    def _record_stored(self, event: str, send: PendingSend) -> None:
        study = pseudonym(send.result.study_uid)
        self._audit(event, study=study, content=send.result.digest, to=send.destination_name)

    def _record_failure(self, send: PendingSend, reason: str, *, park: bool = False) -> None:
        attempts, sending = send.attempts + 1, self._settings.sending
        parked = park or attempts >= sending.tries
        self._queue.reschedule(send, reason, None if parked else self._clock() + wait_seconds(sending, attempts))
        study, what_next = pseudonym(send.result.study_uid), "parked" if parked else "tried again later"
        log.warning("result of study %s not sent to %s (%s): %s", study, send.destination_name, what_next, reason)
        self._audit("not sent", study=study, to=send.destination_name, reason=reason, parked=parked)


def echo(settings: NodeSettings, peer: DimsePeer | WebPeer) -> str:
    """Check a peer by C-ECHO, or by a query that matches nothing; returns why it failed, '' if it succeeded."""
    if isinstance(peer, WebPeer):
        from medopt.pacs.http.client import Client

        with Client(peer, settings.sending.timeout_seconds) as client:
            return client.check()
    association = associate(settings, peer, [Verification], [ExplicitVRLittleEndian])
    if not association.is_established:
        return "it rejected the association" if association.is_rejected else "it is not reached"
    response = association.send_c_echo()
    association.release()
    return "" if response.get("Status") == SUCCESS else "it did not answer C-ECHO"
