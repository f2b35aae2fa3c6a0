"""Results to their destinations: each tried by itself, ever more seldom, and never again once confirmed."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel as Push  # type: ignore[attr-defined]
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medopt.core.privacy import pseudonym
from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.association import associate
from medopt.pacs.commitment import AWAITED, ask
from medopt.pacs.destinations import Destination, WebDestination
from medopt.pacs.ledger import Ledger
from medopt.pacs.send_queue import Send, SendQueue
from medopt.pacs.settings import Node

log = logging.getLogger("medopt.pacs")
_WARNINGS = (0xB000, 0xB006, 0xB007)  # stored, though some elements were changed or dropped (PS3.4 B.2.3)


def wait_seconds(node: Node, attempts: int) -> float:
    """How long to wait after so many failed attempts: doubled each time, up to a bound."""
    sending = node.sending
    return float(min(sending.longest_seconds, sending.first_seconds * 2 ** min(attempts - 1, 30)))


class Sender:
    """Sends what the ledger owes. One object is used by one thread."""

    def __init__(self, node: Node, ledger: Ledger, told: Callable[..., None] = lambda *_, **__: None) -> None:
        self._node, self._queue, self._told = node, SendQueue(ledger), told
        self._known = {one.name: one for one in node.destinations}

    def send_due(self, now: Callable[[], float], stopping: Callable[[], bool] = lambda: False) -> int:
        """Try all that is due once; returns how many were confirmed."""
        owed: dict[str, list[Send]] = defaultdict(list)
        for one in self._queue.due(now()):
            owed[one.destination].append(one)
        done = 0
        for name, sends in owed.items():
            if name not in self._known:
                for one in sends:
                    self._failed(one, "the destination is no longer in the node file", now(), park=True)
                continue
            done += self._batch(self._known[name], sends, now, stopping)
        return done

    def _batch(
        self, place: Destination | WebDestination, sends: list[Send], now: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> int:  # fmt: skip
        """One connection for all of a destination."""
        if isinstance(place, WebDestination):
            from medopt.pacs.http.client import Client  # what it imports is not needed without one

            with Client(place, self._node.sending.timeout_seconds) as client:
                return self._each(
                    place, sends, lambda one: client.store(self._path(one), one.result.sop_uid), now, stopping
                )
        classes = sorted({one.result.sop_class for one in sends})
        wanted = [*classes, *([Push] if place.commit else [])]
        link = associate(self._node, place, wanted, [ExplicitVRLittleEndian])
        try:
            if not place.commit:
                return self._each(place, sends, lambda one: self._attempt(link, one), now, stopping)
            self._commit(place, sends, link, now, stopping)
            return 0
        finally:
            if link.is_established:
                link.release()

    def _commit(
        self, place: Destination, sends: list[Send], link: Association, now: Callable[[], float],
        stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        """Send, then ask whether all that was stored is kept; the report confirms it."""
        stored = []
        for one in sends:
            if stopping():
                break
            if reason := self._attempt(link, one):
                self._failed(one, reason, now())
            else:
                stored.append(one)
        if not stored:
            return
        reason = ask(link, place, stored)
        for one in stored:
            if reason:
                self._failed(one, reason, now())
                continue
            last = one.attempts + 1 >= self._node.sending.tries
            self._queue.unsent(one, AWAITED, None if last else now() + self._node.sending.commit_seconds)
            self._told("stored", study=pseudonym(one.result.study_uid), content=one.result.digest, to=place.name)

    def _each(
        self, place: Destination | WebDestination, sends: list[Send], attempt: Callable[[Send], str],
        now: Callable[[], float], stopping: Callable[[], bool],
    ) -> int:  # fmt: skip
        """Each instance succeeds or fails by itself."""
        done = 0
        for one in sends:
            if stopping():
                break
            reason = attempt(one)
            if reason:
                self._failed(one, reason, now())
            else:
                self._queue.confirmed(one, now())
                self._told("sent", study=pseudonym(one.result.study_uid), content=one.result.digest, to=place.name)
                done += 1
        return done

    def _attempt(self, link: Association, one: Send) -> str:
        """Send the stored bytes; why that failed, empty where the destination confirmed it."""
        if not link.is_established:
            return "the destination rejected the association" if link.is_rejected else "the destination is not reached"
        try:
            answer = link.send_c_store(parse_dicom(self._path(one)))
        except ValueError:  # no context was accepted
            return "the destination does not take this kind of object"
        except (OSError, RuntimeError):
            return "the connection broke off"
        status = answer.get("Status")
        if status is None:
            return "the destination did not answer in time, or the connection broke off"
        return "" if status == 0x0000 or status in _WARNINGS else f"the destination answered 0x{status:04X}"

    def _path(self, one: Send) -> Path:
        return self._node.spool / one.result.file

    def _failed(self, one: Send, reason: str, now: float, *, park: bool = False) -> None:
        attempts = one.attempts + 1
        again = None if park or attempts >= self._node.sending.tries else now + wait_seconds(self._node, attempts)
        self._queue.unsent(one, reason, again)
        study, more = pseudonym(one.result.study_uid), "parked" if again is None else "tried again later"
        log.warning("result of study %s not sent to %s (%s): %s", study, one.destination, more, reason)
        self._told("not sent", study=study, to=one.destination, reason=reason, parked=again is None)


def echo(node: Node, place: Destination | WebDestination) -> str:
    """C-ECHO to a destination, or a query that finds nothing: empty, or why it failed."""
    if isinstance(place, WebDestination):
        from medopt.pacs.http.client import Client

        with Client(place, node.sending.timeout_seconds) as client:
            return client.answers()
    link = associate(node, place, [Verification], [ExplicitVRLittleEndian])
    if not link.is_established:
        return "it rejected the association" if link.is_rejected else "it is not reached"
    answer = link.send_c_echo()
    link.release()
    status = answer.get("Status")
    return "" if status == 0x0000 else "it did not answer C-ECHO"
