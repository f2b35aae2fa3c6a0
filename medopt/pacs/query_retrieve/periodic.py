"""Reconciles with the source again and again, in a thread of a running node."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from medopt.core.errors import MedoptError
from medopt.pacs.audit import AuditTrail
from medopt.pacs.comparison import LastComparison
from medopt.pacs.intake import Intake
from medopt.pacs.peers import WebPeer
from medopt.pacs.query_retrieve.dimse_source import dimse_source
from medopt.pacs.query_retrieve.reconcile import Reconciler, Reconciliation, Stopping, StudySource
from medopt.pacs.query_retrieve.web_source import Deliver, deliver_to_intake, web_source
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER, Spool

log = logging.getLogger("medopt.pacs")
_GRACE_SECONDS = 10.0


@contextmanager
def open_source(settings: NodeSettings, deliver: Deliver | None, stopping: Stopping) -> Iterator[StudySource]:
    """The source of a node file's section pull; `deliver` stores what comes by WADO-RS. Raises PeerError."""
    assert settings.pull is not None
    peer = settings.pull.source
    if isinstance(peer, WebPeer):
        assert deliver is not None
        with web_source(settings, peer, deliver, stopping) as web:
            yield web
    else:
        with dimse_source(settings, peer, stopping) as dimse:
            yield dimse


class PeriodicPull:
    """The thread that reconciles. A failure is written to log and audit, and tried again the next time."""

    def __init__(
        self, settings: NodeSettings, spool: Spool, intake: Intake, audit: AuditTrail, stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        assert settings.pull is not None
        self._settings, self._pull, self._audit, self._stop = settings, settings.pull, audit, stop
        self._deliver = deliver_to_intake(intake, spool, settings)
        self._reconciler = Reconciler(spool.root / LEDGER, settings.pull.modalities)
        self._clock = clock
        every = 60 * (settings.pull.every_minutes or 0)
        self.last = LastComparison(clock(), 2 * every + 2 * settings.pull.operation_seconds)
        self._thread = threading.Thread(target=self._run, name="pacs-pull", daemon=True)

    def start(self) -> None:
        """Reconcile for the first time now."""
        self._thread.start()

    def join(self) -> None:
        """Wait a short time for the thread's end: a fetch that is cut off is repeated after the next start."""
        self._thread.join(_GRACE_SECONDS)

    def _run(self) -> None:
        assert self._pull.every_minutes is not None
        while True:
            self._reconcile()
            if self._stop.wait(60 * self._pull.every_minutes):
                return

    def _reconcile(self) -> None:
        since = (datetime.now() - timedelta(days=self._pull.days)).date()
        try:
            with open_source(self._settings, self._deliver, self._stop.is_set) as source:
                outcome = self._reconciler.reconcile(source, since, self._stop.is_set)
        except (MedoptError, sqlite3.Error) as error:
            self._record_failure(str(error) if isinstance(error, MedoptError) else "the ledger cannot be read")
        except Exception as error:  # a PACS may answer anything, and the node must go on
            self._record_failure(f"an answer that is not understood ({type(error).__name__})")
        else:
            self._record(outcome)

    def _record_failure(self, reason: str) -> None:
        self.last = replace(self.last, ended=self._clock(), reason=reason)
        if not self._stop.is_set():
            log.warning("the source was not compared with the ledger: %s", reason)
            self._audit("not reconciled", reason=reason)

    def _record(self, outcome: Reconciliation) -> None:
        now = self._clock()
        self.last = replace(self.last, ended=now, succeeded=now, reason=outcome.reason)
        for reason, count in outcome.not_compared.items():
            log.warning("not compared with the source in %d cases: %s", count, reason)
            self._audit("not compared", reason=reason, count=count)
        if outcome.reason:
            log.warning("not all missing instances could be fetched: %s", outcome.reason)
        log.info(
            "source: %d studies, %d instances known, %d missing, %d of them fetched",
            outcome.studies,
            outcome.present,
            outcome.missing,
            outcome.fetched,
        )
        if outcome.missing:
            self._audit(
                "reconciled",
                studies=outcome.studies,
                missing=outcome.missing,
                fetched=outcome.fetched,
                reason=outcome.reason,
            )
