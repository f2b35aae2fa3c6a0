"""Storage commitment (PS3.4 J, push model): ask a destination whether it keeps a result; it reports later.

The request goes over the association of C-STORE; the report comes over the same one, or by an association that the
destination opens to the node. Requests are not stored: a report is recognized by its transaction UID. A result that is
not reported in time is sent and asked for again.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel as Push,
)
from pynetdicom.sop_class import (
    StorageCommitmentPushModelInstance as PushInstance,
)

from medopt.core.privacy import pseudonym
from medopt.pacs.audit import AuditTrail
from medopt.pacs.intake import PROCESSING_FAILURE, SUCCESS
from medopt.pacs.ledger import Ledger
from medopt.pacs.peers import DimsePeer
from medopt.pacs.send_queue import PendingSend, SendQueue
from medopt.pacs.settings import NodeSettings

log = logging.getLogger("medopt.pacs")
AWAITING_REPORT = "stored there; the destination has not yet reported that it keeps it"
_MAX_INSTANCES = 1000
_NAMESPACE = "medopt storage commitment"


def transaction_uid(destination_name: str, sop_uids: Sequence[str], nonce: int | None = None) -> str:
    """A new transaction UID for these results and this destination; one is never used twice (PS3.4 J.3.2.1.2).

    It is a UUID of version 8 (RFC 9562 5.8): 48 random bits, and 74 bits of a digest of them, the results and the
    destination. So a report is recognized without a record of the request, after a restart, too.
    """
    nonce = secrets.randbits(48) if nonce is None else nonce
    content = "/".join([_NAMESPACE, str(nonce), destination_name, *sorted(sop_uids)])
    digest = int.from_bytes(hashlib.sha256(content.encode()).digest()[:10], "big") >> 6
    high, low = digest >> 62, digest & (1 << 62) - 1
    return f"2.25.{nonce << 80 | 8 << 76 | high << 64 | 2 << 62 | low}"


def is_transaction(uid: str, destination_name: str, sop_uids: Sequence[str]) -> bool:
    """Whether a transaction UID is one that was made for these results and this destination."""
    number = uid.removeprefix("2.25.")
    return number.isdecimal() and uid == transaction_uid(destination_name, sop_uids, int(number) >> 80)


def request_commitment(association: Association, destination: DimsePeer, sends: Sequence[PendingSend]) -> str:
    """Ask by N-ACTION (PS3.4 J.3.2) whether results are kept; returns why that failed, '' if a report will come."""
    if not any(context.abstract_syntax == Push for context in association.accepted_contexts):
        return "the destination offers no storage commitment (commit)"
    request = Dataset()
    request.TransactionUID = transaction_uid(destination.name, [send.result.sop_uid for send in sends])
    request.ReferencedSOPSequence = []
    for send in sends:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = send.result.sop_class, send.result.sop_uid
        request.ReferencedSOPSequence.append(item)
    try:
        response, _ = association.send_n_action(request, 1, Push, PushInstance)
    except (ValueError, RuntimeError):
        return "the connection broke off"
    status = response.get("Status")
    if status is None:
        return "the destination did not respond in time, or the connection broke off"
    return "" if status == SUCCESS else f"the destination answered the request for commitment with 0x{status:04X}"


class CommitmentReceiver:
    """Takes the destinations' reports. One object may be used by several threads."""

    def __init__(self, settings: NodeSettings, ledger: Ledger, audit: AuditTrail, clock: Callable[[], float]) -> None:
        self._destinations = [peer for peer in settings.destinations if isinstance(peer, DimsePeer) and peer.commit]
        self._queue, self._audit, self._clock = SendQueue(ledger), audit, clock

    def take(self, title: str, report: Dataset) -> int:
        """Record the report of an AE title (PS3.4 J.3.3); returns the status to respond with."""
        try:
            committed = [str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or []]
            failed = {
                str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or 0)
                for item in report.get("FailedSOPSequence") or []
            }
            transaction = str(report.TransactionUID)
        except Exception:  # pydicom parses an element on access; each kind of damage raises its own exception
            return self._reject()
        for destination in self._destinations:
            if destination.aet == title and is_transaction(transaction, destination.name, [*committed, *failed]):
                self._record(destination, committed[:_MAX_INSTANCES], failed)
                return SUCCESS
        return self._reject()

    def _reject(self) -> int:
        log.warning("a report of storage commitment without a request of this node is not accepted")
        return PROCESSING_FAILURE

    def _record(self, destination: DimsePeer, committed: Sequence[str], failed: Mapping[str, int]) -> None:
        now = self._clock()
        for sop_uid in committed:
            send = self._queue.pending(sop_uid, destination.name)
            if send is not None:
                self._queue.confirm(send, now)
                study = pseudonym(send.result.study_uid)
                self._audit("sent", study=study, content=send.result.digest, to=destination.name, committed=True)
        for sop_uid, status in failed.items():
            send = self._queue.pending(sop_uid, destination.name)
            if send is not None:
                reason = f"the destination does not keep it (0x{status:04X})"
                self._queue.record_reason(send, reason)
                self._audit("not sent", study=pseudonym(send.result.study_uid), to=destination.name, reason=reason)
