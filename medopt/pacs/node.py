"""The node: receiver, study processing, sender and retention around one ledger, each in a thread of its own."""

from __future__ import annotations

import logging
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from medopt.core.errors import ConfigError, ReleaseError
from medopt.core.privacy import pseudonym
from medopt.pacs.answers import AnswerLog, TrialQueue
from medopt.pacs.audit import AuditFile, CountingAudit
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.intake import Intake
from medopt.pacs.ledger import Ledger
from medopt.pacs.receiver import Receiver
from medopt.pacs.retention import Sweeper
from medopt.pacs.sender import Sender
from medopt.pacs.service_view import service_view
from medopt.pacs.settings import NodeSettings
from medopt.pacs.shadow import ShadowTrial
from medopt.pacs.spool import AUDIT, LEDGER, Spool
from medopt.pacs.status import LedgerReader
from medopt.pacs.study_processing import StudyCompletion, StudyProcessor
from medopt.pacs.worker import Interrupted, Worker, WorkerFailed
from medopt.release.sbom import runtime_differences

if TYPE_CHECKING:  # imported by a node whose file has these sections
    from medopt.pacs.http.http_server import HttpServer
    from medopt.pacs.query_retrieve.periodic import PeriodicPull
    from medopt.pacs.service_monitor import ServiceMonitor

log = logging.getLogger("medopt.pacs")
_TICK_SECONDS = 0.2
_GRACE_SECONDS = 20.0
_SWEEP_SECONDS = 10.0
_SWITCH_SECONDS = 0.002
"""Python's thread switch interval: at its default of 5 ms the sender thread delays the receiver's acknowledgements."""
_PAUSE_SECONDS = 5.0
"""The wait after a full disk, or after a worker that does not start."""


class PacsNode:
    """A running node. `run` blocks until `stop` is called from a signal's handler or another thread."""

    def __init__(self, settings: NodeSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._clock = settings, clock
        self._stop = threading.Event()
        self._study_ready, self._send_due = threading.Event(), threading.Event()
        self._last_sweep = time.monotonic()
        self._deadline = 0.0
        self._fault: BaseException | None = None

    def stop(self) -> None:
        """End: no new associations; the study that is being answered gets 20 seconds, then it is handed back."""
        self._deadline = time.monotonic() + _GRACE_SECONDS
        self._stop.set()
        self._study_ready.set()
        self._send_due.set()

    def run(self, ready: Callable[[str], None] = lambda _: None) -> None:
        """Work until `stop`; `ready` is called with the addresses that the node listens on, once it does.

        Raises ConfigError, StorageError, BusyError, ReleaseError; an unexpected error of a thread is raised here.
        """
        sys.setswitchinterval(_SWITCH_SECONDS)
        spool = Spool(self._settings.spool)
        with spool.locked():
            spool.clean_up()
            self._spool, self._ledger = spool, Ledger(spool.root / LEDGER)
            self._audit = CountingAudit(AuditFile(spool.root / AUDIT, self._clock))
            try:
                self._ledger.recover(self._clock())
                self._run(ready)
            finally:
                self._audit("stopped")
                self._audit.close()
                self._ledger.close()

    def _run(self, ready: Callable[[str], None]) -> None:
        self._view = service_view(self._settings, LedgerReader(self._spool.root / LEDGER))
        monitor = self._create_monitor()
        receiver, http_server, pull = self._create_parts()
        try:
            if not self._open_release():
                return
            port = self._listen(receiver)
            page = "" if http_server is None else http_server.start()
            self._audit("started")
            steps = ((self._process_study, self._study_ready), (self._send, self._send_due))
            threads = [threading.Thread(target=self._repeat, args=step) for step in steps]
            for thread in threads:
                thread.start()
            ready(f"{self._settings.aet} listens on {self._settings.host}:{port}")
            if page:
                ready(f"status page: {page}")
            beside = [part for part in (pull, self._shadow, monitor) if part is not None]
            for part in beside:
                part.start()
            while not self._stop.wait(_TICK_SECONDS):
                self._wait_for_disk(self._tick)
            receiver.stop()
            if http_server is not None:
                http_server.close()
            for joined in [*threads, *beside]:
                joined.join()
        finally:
            self.stop()
            receiver.stop()
            self._end_workers()
            if http_server is not None:
                http_server.stop()
        if self._fault is not None:
            raise self._fault

    def _create_parts(self) -> tuple[Receiver, HttpServer | None, PeriodicPull | None]:
        settings, spool, ledger, audit, clock = self._settings, self._spool, self._ledger, self._audit, self._clock
        self._completion = StudyCompletion(settings.quiet_seconds, time.monotonic)
        self._worker = Worker(settings, self._stop.is_set, self._is_out_of_time)
        self._shadow = self._create_shadow()
        answers = AnswerLog()
        if self._shadow is not None and settings.shadow is not None:
            answers = AnswerLog(settings.shadow.backlog, self._shadow.candidate)
        self._processor = StudyProcessor(settings, spool, ledger, self._worker, audit, clock, answers)
        self._sweeper = Sweeper(settings.retention, spool, ledger, audit)
        self._sender = Sender(settings, ledger, audit, clock=clock, stopping=self._stop.is_set)
        intake = Intake(settings, spool, ledger, self._completion.image_received, audit, clock)
        commitments = CommitmentReceiver(settings, ledger, audit, clock)
        receiver, pull = Receiver(settings, spool, intake, commitments, audit), self._create_pull(intake)
        return receiver, self._create_http_server(receiver, intake, pull), pull

    def _create_http_server(self, receiver: Receiver, intake: Intake, pull: PeriodicPull | None) -> HttpServer | None:
        if self._settings.web is None:
            return None
        from medopt.pacs.http.http_server import HttpServer
        from medopt.pacs.http.monitoring import NodeHealth
        from medopt.pacs.http.routes import NodeParts

        worker = self._worker
        health = NodeHealth(
            lambda: receiver.listening,
            lambda: bool(worker.pid and worker.model_digest),
            self._stop.is_set,
            lambda: None if pull is None else pull.last,
            lambda: None if self._shadow is None else self._shadow.state,
        )
        return HttpServer(
            NodeParts(self._settings, self._spool, self._ledger, intake, self._audit, health, self._clock, self._view)
        )

    def _create_monitor(self) -> ServiceMonitor | None:
        if self._settings.web is None and self._settings.alerts is None:
            return None
        from medopt.pacs.service_monitor import ServiceMonitor

        return ServiceMonitor(self._settings, self._view, self._ledger, self._audit, self._stop, self._clock)

    def _create_shadow(self) -> ShadowTrial | None:
        if self._settings.shadow is None:
            if abandoned := TrialQueue(self._ledger).abandon(self._clock()):
                self._audit("candidate removed", skipped=abandoned)
            return None
        return ShadowTrial(
            self._settings, self._settings.shadow, self._spool, self._ledger, self._audit, self._stop, self._clock
        )

    def _create_pull(self, intake: Intake) -> PeriodicPull | None:
        if self._settings.pull is None or self._settings.pull.every_minutes is None:
            return None
        from medopt.pacs.query_retrieve.periodic import PeriodicPull

        return PeriodicPull(self._settings, self._spool, intake, self._audit, self._stop, self._clock)

    def _end_workers(self) -> None:
        self._worker.stop()
        if self._shadow is not None:
            self._shadow.join()

    def _is_out_of_time(self) -> bool:
        return self._stop.is_set() and time.monotonic() > self._deadline

    def _open_release(self) -> bool:
        """Start the worker, which opens the release; False if the node was stopped meanwhile. Raises ReleaseError."""
        try:
            self._worker.start()
        except Interrupted:
            return False
        except WorkerFailed as failure:
            raise ReleaseError(f"The release {self._settings.release} could not be opened: {failure}.") from None
        if differences := runtime_differences(self._settings.release):
            log.warning("packages are not those that the release was built with: %s", "; ".join(differences))
            self._audit("runtime differs", packages=differences)
        return True

    def _listen(self, receiver: Receiver) -> int:
        try:
            return receiver.start()
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {self._settings.host}:{self._settings.port} ({error.strerror}). Choose "
                "another port, or end what listens there."
            ) from None

    def _repeat(self, step: Callable[[], bool], wake: threading.Event) -> None:
        """Repeat a step until the end. An unexpected error ends the node, which its supervisor starts again."""
        try:
            while not self._stop.is_set():
                if not self._wait_for_disk(step):
                    wake.wait(_TICK_SECONDS)
                    wake.clear()
        except BaseException as fault:
            self._fault = fault
            self.stop()

    def _wait_for_disk(self, step: Callable[[], bool]) -> bool:
        """One step. If the disk cannot be written to, wait a while: nothing is lost, and the step is repeated."""
        try:
            return step()
        except (OSError, sqlite3.OperationalError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            log.warning("the spool cannot be written to (%s); tried again in %g s", reason, _PAUSE_SECONDS)
            self._stop.wait(_PAUSE_SECONDS)
            return True

    def _tick(self) -> bool:
        """Mark the studies that are complete; now and then, remove from the spool what need not be kept."""
        for study_uid in self._ledger.receiving():
            if self._completion.is_complete(study_uid):
                self._ledger.complete(study_uid, self._clock())
                self._completion.forget(study_uid)
                self._audit("complete", study=pseudonym(study_uid))
                self._study_ready.set()
        if time.monotonic() - self._last_sweep >= _SWEEP_SECONDS:
            self._last_sweep = time.monotonic()
            if self._sweeper.sweep(self._clock()):  # there may be more: sweep again at the next tick
                self._last_sweep -= _SWEEP_SECONDS
        self._audit.sync()
        return True

    def _send(self) -> bool:
        return self._sender.send_due() > 0

    def _process_study(self) -> bool:
        if not self._worker_runs():
            return False
        processed = self._processor.process_next()
        if processed:
            self._send_due.set()
        return processed

    def _worker_runs(self) -> bool:
        """Start the worker again if it was ended. If that fails, receiving and sending go on all the same."""
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
