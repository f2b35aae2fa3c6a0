"""Storage commitment (PS3.4 J, push model): a destination is asked whether it keeps what it got, and says so later.

The request goes over the association of C-STORE; the report comes by one that the destination opens to the node. No
request is written down: its transaction UID follows from what it names, so a report is known after a restart, too. What
is not reported in time is sent and asked for again.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence

from pydicom import Dataset
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel as Push,
)
from pynetdicom.sop_class import (
    StorageCommitmentPushModelInstance as Instance,
)

from medopt.core.privacy import pseudonym
from medopt.pacs.destinations import Destination
from medopt.pacs.ledger import Ledger
from medopt.pacs.send_queue import Send, SendQueue
from medopt.pacs.settings import Node

log = logging.getLogger("medopt.pacs")
AWAITED = "stored there; the destination has not yet said that it keeps it"
_TAKEN, _NOT_UNDERSTOOD = 0x0000, 0x0110
_MOST = 1000
_NAMESPACE = uuid.UUID("2f0f0c52-5c53-5d0e-8b2e-6a3a4e1b7d90")


def transaction(place: str, sop_uids: Sequence[str]) -> str:
    """The UID of a request: the same results asked of the same destination give the same one."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, '/'.join([place, *sorted(sop_uids)])).int}"  # PS3.5 B.2


def ask(link: Association, place: Destination, sends: Sequence[Send]) -> str:
    """Ask whether these are kept; why that cannot be, empty where the destination will report."""
    if not any(context.abstract_syntax == Push for context in link.accepted_contexts):
        return "the destination offers no storage commitment (commit)"
    query = Dataset()
    query.TransactionUID = transaction(place.name, [one.result.sop_uid for one in sends])
    query.ReferencedSOPSequence = []
    for one in sends:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.result.sop_class, one.result.sop_uid
        query.ReferencedSOPSequence.append(item)
    try:
        answer, _ = link.send_n_action(query, 1, Push, Instance)
    except (ValueError, RuntimeError):
        return "the connection broke off"
    status = answer.get("Status")
    if status is None:
        return "the destination did not answer in time, or the connection broke off"
    return "" if status == 0x0000 else f"the destination answered the request for commitment with 0x{status:04X}"


class CommitmentReceiver:
    """Takes the destinations' reports, in whichever thread."""

    def __init__(self, node: Node, ledger: Ledger, told: Callable[..., None], clock: Callable[[], float]) -> None:
        self._places = [one for one in node.destinations if isinstance(one, Destination) and one.commit]
        self._queue, self._told, self._clock = SendQueue(ledger), told, clock

    def take(self, title: str, report: Dataset) -> int:
        """A report of an AE title (PS3.4 J.3.3): write it down; returns the status to answer with."""
        try:
            kept = [str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence") or []]
            failed = {
                str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason") or 0)
                for item in report.get("FailedSOPSequence") or []
            }
            asked = str(report.TransactionUID)
        except Exception:  # an element is parsed when it is asked for, and each kind of damage has its own exception
            return self._foreign()
        for place in self._places:
            if place.aet == title and asked == transaction(place.name, [*kept, *failed]):
                self._write(place, kept[:_MOST], failed)
                return _TAKEN
        return self._foreign()

    def _foreign(self) -> int:
        log.warning("a report of storage commitment that was not asked for is not taken")
        return _NOT_UNDERSTOOD

    def _write(self, place: Destination, kept: Sequence[str], failed: dict[str, int]) -> None:
        now = self._clock()
        for uid in kept:
            send = self._queue.owed(uid, place.name)
            if send is not None:
                self._queue.confirmed(send, now)
                study = pseudonym(send.result.study_uid)
                self._told("sent", study=study, content=send.result.digest, to=place.name, committed=True)
        for uid, status in failed.items():
            send = self._queue.owed(uid, place.name)
            if send is not None:
                reason = f"the destination does not keep it (0x{status:04X})"
                self._queue.unkept(send, reason)
                self._told("not sent", study=pseudonym(send.result.study_uid), to=place.name, reason=reason)
