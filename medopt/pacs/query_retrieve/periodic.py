"""Asking the source again and again, in a thread of a running node."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from medopt.core.errors import MedoptError
from medopt.pacs.destinations import WebDestination
from medopt.pacs.intake import Intake
from medopt.pacs.query_retrieve.dimse_source import dimse_source
from medopt.pacs.query_retrieve.reconcile import Reconciled, Reconciler
from medopt.pacs.query_retrieve.source import Stopping, StudySource
from medopt.pacs.query_retrieve.web_source import Deliver, into, web_source
from medopt.pacs.settings import Node
from medopt.pacs.spool import LEDGER, Spool

log = logging.getLogger("medopt.pacs")
_GRACE_SECONDS = 10.0


@contextmanager
def opened(node: Node, deliver: Deliver | None, stopping: Stopping) -> Iterator[StudySource]:
    """The source of a node file's section pull; `deliver` takes what comes by WADO-RS. Raises Unanswered."""
    assert node.pull is not None
    place = node.pull.source
    if isinstance(place, WebDestination):
        assert deliver is not None
        with web_source(node, place, deliver, stopping) as web:
            yield web
    else:
        with dimse_source(node, place, stopping) as dimse:
            yield dimse


class Periodic:
    """The thread that asks. What fails is said in log and audit, and tried again the next time."""

    def __init__(
        self, node: Node, spool: Spool, intake: Intake, told: Callable[..., None], stop: threading.Event
    ) -> None:
        assert node.pull is not None
        self._node, self._pull, self._told, self._stop = node, node.pull, told, stop
        self._deliver = into(intake, spool, node)
        self._reconciler = Reconciler(spool.root / LEDGER, node.pull.modalities)
        self._thread = threading.Thread(target=self._run, name="pacs-pull", daemon=True)

    def start(self) -> None:
        """Ask for the first time now."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it has ended, not for long: what is asked for now may be lost without harm."""
        self._thread.join(_GRACE_SECONDS)

    def _run(self) -> None:
        assert self._pull.every_minutes is not None
        while True:
            self._ask()
            if self._stop.wait(60 * self._pull.every_minutes):
                return

    def _ask(self) -> None:
        since = (datetime.now() - timedelta(days=self._pull.days)).date()
        try:
            with opened(self._node, self._deliver, self._stop.is_set) as source:
                found = self._reconciler.reconcile(source, since, self._stop.is_set)
        except (MedoptError, sqlite3.Error) as error:
            why = str(error) if isinstance(error, MedoptError) else "the ledger cannot be read"
            self._failed(why)
        except Exception as error:  # what a PACS may answer is without end, and the node goes on
            self._failed(f"an answer that is not understood ({type(error).__name__})")
        else:
            self._say(found)

    def _failed(self, why: str) -> None:
        if not self._stop.is_set():
            log.warning("the source was not compared with the ledger: %s", why)
            self._told("not reconciled", reason=why)

    def _say(self, found: Reconciled) -> None:
        if found.reason:
            log.warning("not all that is missing could be fetched: %s", found.reason)
        log.info("source: %d studies, %d instances known, %d missing, %d of them fetched", found.studies, found.known,
                 found.missing, found.fetched)  # fmt: skip
        if found.missing:
            facts = {"studies": found.studies, "missing": found.missing, "fetched": found.fetched}
            self._told("reconciled", **facts, reason=found.reason)
