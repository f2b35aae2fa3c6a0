"""The node: receiver, end of studies, worker and sender, each in a thread of its own around one ledger."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

from medopt.core.errors import ConfigError, ReleaseError
from medopt.core.privacy import pseudonym
from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.audit import Audit, CountingAudit
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.dicom_object import OutgoingObject
from medopt.pacs.intake import Intake
from medopt.pacs.ledger import DueStudy, Ending, Ledger, Result
from medopt.pacs.receiver import Receiver
from medopt.pacs.retention import Sweeper
from medopt.pacs.sender import Sender
from medopt.pacs.settings import Node
from medopt.pacs.spool import AUDIT, LEDGER, RESULTS, Spool
from medopt.pacs.study_completion import StudyCompletion
from medopt.pacs.worker import Interrupted, Worker, WorkerFailed

log = logging.getLogger("medopt.pacs")
_TICK_SECONDS = 0.2
_GRACE_SECONDS = 20.0
_SWEEP_SECONDS = 10.0
_SWITCH_SECONDS = 0.002
"""How long a thread may keep Python's lock from the others: with its 5 ms, who acknowledges waits for who sends."""
_PAUSE_SECONDS = 5.0
"""After a full disk, or a worker that does not start."""


class PacsNode:
    """A running node. `run` blocks until `stop` is called from a signal's handler or another thread."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.time) -> None:
        self._node, self._clock = node, clock
        self._stop = threading.Event()
        self._ready, self._owed = threading.Event(), threading.Event()
        self._swept = time.monotonic()
        self._unsettled = False
        self._until = 0.0
        self._fault: BaseException | None = None

    def stop(self) -> None:
        """End: no new associations; the study at work gets 20 seconds, then it is handed back."""
        self._until = time.monotonic() + _GRACE_SECONDS
        self._stop.set()
        self._ready.set()
        self._owed.set()

    def run(self, ready: Callable[[str], None] = lambda _: None) -> None:
        """Work until `stop`; `ready` is told where the node listens, once it does.

        Raises ConfigError, StorageError, BusyError, ReleaseError; what went wrong in a thread is raised again here.
        """
        sys.setswitchinterval(_SWITCH_SECONDS)
        spool = Spool(self._node.spool)
        with spool.owned():
            spool.clean()
            self._spool, self._ledger = spool, Ledger(spool.root / LEDGER)
            self._audit = CountingAudit(Audit(spool.root / AUDIT, self._clock))
            try:
                self._run(ready)
            finally:
                self._audit("stopped")
                self._audit.close()
                self._ledger.close()

    def _run(self, ready: Callable[[str], None]) -> None:
        self._ledger.recover(self._clock())
        self._quiet = StudyCompletion(self._node.quiet_seconds, time.monotonic)
        self._worker = Worker(
            self._node, self._stop.is_set, lambda: self._stop.is_set() and time.monotonic() > self._until
        )
        self._sweeper = Sweeper(self._node.retention, self._spool, self._ledger, self._audit)
        self._sender = Sender(self._node, self._ledger, self._audit)
        intake = Intake(self._node, self._spool, self._ledger, self._quiet.heard, self._audit, self._clock)
        reports = CommitmentReceiver(self._node, self._ledger, self._audit, self._clock)
        receiver = Receiver(self._node, self._spool, intake, reports, self._audit)
        door, pull = self._door(receiver, intake), self._pull(intake)
        try:
            if not self._opened():
                return
            port = self._listening(receiver)
            page = "" if door is None else door.start()
            self._audit("started")
            steps = ((self._work, self._ready), (self._send, self._owed))
            threads = [threading.Thread(target=self._guarded, args=one) for one in steps]
            for thread in threads:
                thread.start()
            ready(f"{self._node.aet} listens on {self._node.host}:{port}")
            if page:
                ready(f"its page: {page}")
            if pull is not None:
                pull.start()
            while not self._stop.wait(_TICK_SECONDS):
                self._safely(self._tick)
            receiver.stop()
            if door is not None:
                door.close()
            for thread in [*threads, *([] if pull is None else [pull])]:
                thread.join()
        finally:
            self.stop()
            receiver.stop()
            self._worker.stop()
            if door is not None:
                door.stop()
        if self._fault is not None:
            raise self._fault

    def _door(self, receiver: Receiver, intake: Intake) -> Any:
        """The HTTP side, where the node file has one."""
        if self._node.web is None:
            return None
        from medopt.pacs.http.health import NodeHealth
        from medopt.pacs.http.http_server import Door  # what it imports is not needed without one
        from medopt.pacs.http.routes import NodeParts

        worker, receiving = self._worker, lambda: receiver.listening
        vital = NodeHealth(receiving, lambda: bool(worker.pid and worker.model), self._stop.is_set)
        parts = NodeParts(self._node, self._spool, self._ledger, intake, self._audit, vital, self._clock)
        return Door(parts)

    def _pull(self, intake: Intake) -> Any:
        """What asks the source again and again, where the node file has one."""
        if self._node.pull is None or self._node.pull.every_minutes is None:
            return None
        from medopt.pacs.query_retrieve.periodic import Periodic

        return Periodic(self._node, self._spool, intake, self._audit, self._stop)

    def _opened(self) -> bool:
        """The worker runs and has opened the release, or the node was asked to end; raises ReleaseError."""
        try:
            self._worker.start()
        except Interrupted:
            return False
        except WorkerFailed as failure:
            raise ReleaseError(f"The release {self._node.release} could not be opened: {failure}.") from None
        return True

    def _listening(self, receiver: Receiver) -> int:
        try:
            return receiver.start()
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {self._node.host}:{self._node.port} ({error.strerror}). Choose another "
                "port, or end what listens there."
            ) from None

    def _guarded(self, step: Callable[[], bool], news: threading.Event) -> None:
        """Repeat a step until the end. What it did not foresee ends the node, which its supervisor starts again."""
        try:
            while not self._stop.is_set():
                if not self._safely(step):
                    news.wait(_TICK_SECONDS)
                    news.clear()
        except BaseException as fault:
            self._fault = fault
            self.stop()

    def _safely(self, step: Callable[[], bool]) -> bool:
        """One step. A disk that cannot be written to is waited for: nothing is lost, and it is tried again."""
        try:
            return step()
        except (OSError, sqlite3.OperationalError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            log.warning("the spool cannot be written to (%s); tried again in %g s", why, _PAUSE_SECONDS)
            self._stop.wait(_PAUSE_SECONDS)
            return True

    def _tick(self) -> bool:
        """End the studies that have become quiet; now and then, remove what the spool keeps no longer."""
        for study in self._ledger.receiving():
            if self._quiet.over(study):
                self._ledger.complete(study, self._clock())
                self._quiet.forget(study)
                self._audit("complete", study=pseudonym(study))
                self._ready.set()
        if time.monotonic() - self._swept >= _SWEEP_SECONDS:
            self._swept = time.monotonic()
            if self._sweeper.sweep(self._clock()):  # there may be more
                self._swept -= _SWEEP_SECONDS
        self._audit.sync()
        return True

    def _send(self) -> bool:
        return self._sender.send_due(self._clock, self._stop.is_set) > 0

    def _work(self) -> bool:
        if self._unsettled:  # a full disk kept the last study from being finished, or handed back
            self._ledger.recover(self._clock())
        self._unsettled = True
        done = self._work_on_one()
        self._unsettled = False
        return done

    def _work_on_one(self) -> bool:
        if not self._worker_runs():
            return False
        work = self._ledger.take(self._clock())
        if work is None:
            return False
        name = pseudonym(work.study_uid)
        try:
            with self._spool.gathered(one.file for one in work.images) as folder:
                digests = {one.file.rpartition("/")[2]: one.digest for one in work.images}
                now = datetime.fromtimestamp(self._clock(), UTC)
                found, made = self._worker.study(folder, digests, self._earlier(work), now)
        except Interrupted:
            self._ledger.hand_back(work.study_uid, self._clock())
            return False
        except WorkerFailed as failure:
            self._failed(work, str(failure))
            return True
        except FileNotFoundError:
            self._finish(work, "parked", "an image of the study is no longer in the spool", [])
            return True
        log.info("study %s: %s", name, found["ending"])
        self._finish(work, found["ending"], found["reason"], made, decisions=found["decisions"])
        return True

    def _worker_runs(self) -> bool:
        """One that was ended begins again. Where it cannot, receiving and sending go on all the same."""
        try:
            self._worker.start()
        except Interrupted:
            return False
        except (ReleaseError, WorkerFailed) as failure:
            log.warning("the worker process does not start; studies wait: %s", failure)
            self._audit("worker not started", reason=str(failure))
            self._stop.wait(_PAUSE_SECONDS)
            return False
        return True

    def _failed(self, work: DueStudy, reason: str) -> None:
        """A try that the study may have spoilt: again, or parked after the last."""
        log.warning("study %s: try %d failed: %s", pseudonym(work.study_uid), work.tries + 1, reason)
        if work.tries + 1 >= self._node.work.tries:
            self._finish(work, "parked", f"given up after {work.tries + 1} tries: {reason}", [])
        else:
            self._ledger.hand_back(work.study_uid, self._clock(), failed=reason)

    def _finish(self, work: DueStudy, ending: Ending, reason: str, made: list[OutgoingObject], **facts: Any) -> None:
        """Results to disk, then all of it to the ledger at once."""
        results = []
        for one in made:
            if self._ledger.is_result(one.sop_uid):  # its bytes stay as they are
                continue
            place = self._spool.place(RESULTS, work.study_uid, one.sop_uid)
            self._spool.write(place, [one.content])
            digest = hashlib.sha256(one.content).hexdigest()
            header = parse_dicom(BytesIO(one.content), specific_tags=["SeriesInstanceUID"])
            series, size = str(header.SeriesInstanceUID), len(one.content)
            results.append(Result(one.sop_uid, work.study_uid, one.sop_class, one.kind, place, digest, series, size))
        names = [place.name for place in self._node.destinations]
        fresh = self._ledger.finish(work, ending, reason, results, names, self._clock())
        self._owed.set()
        self._audit(
            "answered",
            study=pseudonym(work.study_uid),
            images=sorted(one.digest for one in work.images),
            model=self._worker.model,
            ending=ending,
            reason=reason,
            results=[one.digest for one in fresh],
            **facts,
        )

    def _earlier(self, work: DueStudy) -> dict[str, list[str]]:
        """The latest result of each kind that the study has, as SOP instance and series."""
        found = {}
        for one in self._ledger.results(work.study_uid):
            series = one.series_uid
            if not series:  # of a ledger before its third version
                header = parse_dicom(self._spool.root / one.file, specific_tags=["SeriesInstanceUID"])
                series = str(header.SeriesInstanceUID)
            found[one.kind] = [one.sop_uid, series]
        return found
