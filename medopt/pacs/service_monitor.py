"""The thread that watches the release in service: it keeps the monitoring page ready and sends alerts."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from medopt.core.errors import MedoptError
from medopt.pacs.alert_channels import channels
from medopt.pacs.alert_queue import AlertQueue
from medopt.pacs.alert_rules import findings, queue_of
from medopt.pacs.alert_settings import drift_triggers
from medopt.pacs.audit import AuditTrail
from medopt.pacs.ledger import Ledger
from medopt.pacs.service_view import PERIODS, ServiceView
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER
from medopt.pacs.status import LedgerReader

log = logging.getLogger("medopt.pacs")
_TICK_SECONDS, _GRACE_SECONDS = 1.0, 5.0
_PAGE_SECONDS = 300.0
"""How often the page's figures are computed."""


class ServiceMonitor:
    """Looks now and then. Whatever fails here, the node does its work: it is a thread that nothing waits for."""

    def __init__(
        self, node: NodeSettings, view: ServiceView, ledger: Ledger, audit: AuditTrail, stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Without a section `alerts` nobody is told. Raises ConfigError where the change plan cannot be read."""
        settings = self._settings = node.alerts
        self._view, self._reader, self._audit = view, LedgerReader(node.spool / LEDGER), audit
        self._stop, self._clock, self._has_page = stop, clock, node.web is not None
        self._triggers = None if settings is None else drift_triggers(settings.plan)
        self._sends = {} if settings is None else channels(settings)
        self._queue = None if settings is None else AlertQueue(settings, ledger, node.aet, list(self._sends))
        self._thread = threading.Thread(target=self._repeat, name="pacs-monitor", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait a short time for the thread's end: a message that is cut off is sent after the next start."""
        self._thread.join(_GRACE_SECONDS)

    def _repeat(self) -> None:
        steps = [_Step(self.keep_page, _PAGE_SECONDS)] if self._has_page else []
        if self._settings is not None:
            steps += [_Step(self.look, 60 * self._settings.every_minutes), _Step(self.send_due, 0)]
        while not self._stop.is_set():
            for step in steps:
                step.run_if_due()
            self._stop.wait(_TICK_SECONDS)

    def keep_page(self) -> None:
        """Compute the figures of the page."""
        for length in PERIODS:
            self._view.summary(self._clock(), length, fresh_seconds=_PAGE_SECONDS / 2)

    def look(self) -> None:
        """Begin and end alerts."""
        if self._settings is None or self._queue is None:
            return
        now = self._clock()
        summary = self._view.summary(now, fresh_seconds=0)
        for message in self._queue.update(
            findings(self._settings, self._triggers, summary, queue_of(self._reader)), now
        ):
            log.warning("alert %s: %s: %s", message["state"], message["alert"], message["text"])
            self._audit("alert", alert=message["alert"], state=message["state"], text=message["text"], id=message["id"])

    def send_due(self) -> None:
        """Send what is due; after a failure the other messages of that channel wait."""
        if self._queue is None:
            return
        failed: set[str] = set()
        for waiting in self._queue.due(self._clock()):
            if self._stop.is_set() or waiting.channel in failed:
                continue
            send = self._sends.get(waiting.channel)
            reason = "the node file names it no longer" if send is None else send(waiting.message)
            details = {"id": waiting.message["id"], "to": waiting.channel}
            if not reason:
                self._queue.done(waiting)
                self._audit("alert sent", **details)
                continue
            failed.add(waiting.channel)
            if send is None:
                self._queue.done(waiting)
            kept = send is not None and self._queue.postpone(waiting, self._clock())
            log.warning("alert not sent by %s: %s%s", waiting.channel, reason, "" if kept else "; it is given up")
            self._audit("alert not sent", **details, reason=reason, given_up=not kept)


class _Step:
    """Something to do again and again. An error is logged, once for each row of the same, and tried again."""

    def __init__(self, action: Callable[[], None], every_seconds: float) -> None:
        self._action, self._every, self._next, self._reason = action, every_seconds, 0.0, ""

    def run_if_due(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        try:
            self._action()
            self._reason = ""
        except Exception as error:  # nothing of this may end the node
            if self._reason != (reason := _explained(error)):
                log.warning("the monitor could not look: %s", reason)
            self._reason = reason


def _explained(error: Exception) -> str:
    if isinstance(error, MedoptError):
        return str(error)
    return "the ledger cannot be used" if isinstance(error, sqlite3.Error | OSError) else type(error).__name__
