"""The node: receiver, end of studies, worker and sender, each in a thread of its own around one ledger."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pydicom import dcmread

from medopt.errors import ConfigError
from medopt.pacs.audit import Audit
from medopt.pacs.ledger import Ending, Ledger, Result, Work
from medopt.pacs.made import Made
from medopt.pacs.receiver import Receiver
from medopt.pacs.sender import Sender
from medopt.pacs.settings import Node
from medopt.pacs.spool import AUDIT, LEDGER, RESULTS, Spool
from medopt.pacs.studies import Quiet
from medopt.pacs.web.counted import Counted
from medopt.pacs.worker import Interrupted, Worker, WorkerFailed
from medopt.provenance import pseudonym

log = logging.getLogger("medopt.pacs")
_TICK_SECONDS = 0.2
_GRACE_SECONDS = 20.0


class PacsNode:
    """A running node. `run` blocks until `stop` is called from a signal's handler or another thread."""

    def __init__(self, node: Node, clock: Callable[[], float] = time.time) -> None:
        self._node, self._clock = node, clock
        self._stop = threading.Event()
        self._until = 0.0
        self._fault: BaseException | None = None

    def stop(self) -> None:
        """End: no new associations; the study at work gets 20 seconds, then it is handed back."""
        self._until = time.monotonic() + _GRACE_SECONDS
        self._stop.set()

    def run(self, ready: Callable[[str], None] = lambda _: None) -> None:
        """Work until `stop`; `ready` is told where the node listens, once it does.

        Raises ConfigError, StorageError, BusyError, ReleaseError; what went wrong in a thread is raised again here.
        """
        spool = Spool(self._node.spool)
        with spool.owned():
            spool.clean()
            self._spool, self._ledger = spool, Ledger(spool.root / LEDGER)
            self._audit = Counted(Audit(spool.root / AUDIT, self._clock))
            try:
                self._run(ready)
            finally:
                self._audit("stopped")
                self._audit.close()
                self._ledger.close()

    def _run(self, ready: Callable[[str], None]) -> None:
        self._ledger.recover(self._clock())
        self._quiet = Quiet(self._node.quiet_seconds, time.monotonic)
        self._worker = Worker(self._node, lambda: self._stop.is_set() and time.monotonic() > self._until)
        self._sender = Sender(self._node, self._ledger, self._audit)
        receiver = Receiver(self._node, self._spool, self._ledger, self._quiet.heard, self._audit, self._clock)
        door, pull = self._door(receiver), self._pull(receiver)
        try:
            port = self._listening(receiver)
            self._audit("started")
            threads = [threading.Thread(target=self._guarded, args=(one,)) for one in (self._work, self._send)]
            for thread in threads:
                thread.start()
            ready(f"{self._node.aet} listens on {self._node.host}:{port}")
            if door is not None:
                ready(f"its page: {door.start()}")
            if pull is not None:
                pull.start()
            while not self._stop.wait(_TICK_SECONDS):
                self._end_studies()
            receiver.stop()
            for thread in [*threads, *([] if pull is None else [pull])]:
                thread.join()
        finally:
            self._stop.set()
            receiver.stop()
            self._worker.stop()
            if door is not None:
                door.stop()
        if self._fault is not None:
            raise self._fault

    def _door(self, receiver: Receiver) -> Any:
        """The HTTP side, where the node file has one."""
        if self._node.web is None:
            return None
        from medopt.pacs.web.door import Door  # what it imports is not needed without one
        from medopt.pacs.web.health import Vital
        from medopt.pacs.web.routes import Parts

        worker, receiving = self._worker, lambda: receiver.listening
        vital = Vital(receiving, lambda: bool(worker.pid and worker.model), self._stop.is_set)
        parts = Parts(self._node, self._spool, self._ledger, receiver.intake, self._audit, vital, self._clock)
        return Door(parts)

    def _pull(self, receiver: Receiver) -> Any:
        """What asks the source again and again, where the node file has one."""
        if self._node.pull is None or self._node.pull.every_minutes is None:
            return None
        from medopt.pacs.pull.periodic import Periodic

        return Periodic(self._node, self._spool, receiver.intake, self._audit, self._stop)

    def _listening(self, receiver: Receiver) -> int:
        try:
            return receiver.start()
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {self._node.host}:{self._node.port} ({error.strerror}). Choose another "
                "port, or end what listens there."
            ) from None

    def _guarded(self, step: Callable[[], bool]) -> None:
        """Repeat a step until the end. What it did not foresee ends the node, which its supervisor starts again."""
        try:
            while not self._stop.is_set():
                if not step():
                    self._stop.wait(_TICK_SECONDS)
        except BaseException as fault:
            self._fault = fault
            self.stop()

    def _end_studies(self) -> None:
        for study in self._ledger.receiving():
            if self._quiet.over(study):
                self._ledger.complete(study, self._clock())
                self._quiet.forget(study)
                self._audit("complete", study=pseudonym(study))

    def _send(self) -> bool:
        return self._sender.send_due(self._clock, self._stop.is_set) > 0

    def _work(self) -> bool:
        try:
            self._worker.start()  # receiving does not wait for it
        except Interrupted:
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

    def _failed(self, work: Work, reason: str) -> None:
        """A try that the study may have spoilt: again, or parked after the last."""
        log.warning("study %s: try %d failed: %s", pseudonym(work.study_uid), work.tries + 1, reason)
        if work.tries + 1 >= self._node.work.tries:
            self._finish(work, "parked", f"given up after {work.tries + 1} tries: {reason}", [])
        else:
            self._ledger.hand_back(work.study_uid, self._clock(), failed=reason)

    def _finish(self, work: Work, ending: Ending, reason: str, made: list[Made], **facts: Any) -> None:
        """Results to disk, then all of it to the ledger at once."""
        results = []
        for one in made:
            if self._ledger.is_result(one.sop_uid):  # its bytes stay as they are
                continue
            place = self._spool.place(RESULTS, work.study_uid, one.sop_uid)
            self._spool.write(place, [one.content])
            digest = hashlib.sha256(one.content).hexdigest()
            results.append(Result(one.sop_uid, work.study_uid, one.sop_class, one.kind, place, digest))
        names = [place.name for place in self._node.destinations]
        fresh = self._ledger.finish(work, ending, reason, results, names, self._clock())
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

    def _earlier(self, work: Work) -> dict[str, list[str]]:
        """The latest result of each kind that the study has, as SOP instance and series."""
        found = {}
        for one in self._ledger.results(work.study_uid):
            header = dcmread(self._spool.root / one.file, specific_tags=["SeriesInstanceUID"])
            found[one.kind] = [one.sop_uid, str(header.SeriesInstanceUID)]
        return found
