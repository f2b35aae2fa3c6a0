"""What `/health` and `/metrics` report: which part of the node does not work, counts, states, ages and sizes.

The metrics name no study, no patient and no address.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from medopt.pacs.audit import CountingAudit
from medopt.pacs.comparison import LastComparison
from medopt.pacs.intake import Intake, Refusal
from medopt.pacs.status import LedgerReader

OK = "ok"
_MIN_INTERVAL_SECONDS = 30.0
_DELAY_BUCKETS = (1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Functions that say whether a part of the node is up, and whether the node is stopping."""

    receiver: Callable[[], bool]
    worker: Callable[[], bool]
    stopping: Callable[[], bool]
    comparison: Callable[[], LastComparison | None] = lambda: None
    """The last comparison with the source of the section pull, if a running node makes them."""
    candidate: Callable[[], str | None] = lambda: None
    """`ok`, or why the candidate of the section shadow does not answer; None without one. It is no part of the node:
    whatever happens to it, the node does its work."""


def check_parts(health: NodeHealth, intake: Intake, clock: Callable[[], float] = time.time) -> dict[str, str]:
    """For each part of the node `ok`, or why it does not work."""
    comparison = health.comparison()
    source = {} if comparison is None else {"source": _source_state(comparison, clock())}
    try:
        intake.require_space()
        disk = OK
    except Refusal as refusal:
        disk = f"{refusal.reason}: instances are refused (limits.free_mb)"
    return {
        "receiver": OK if health.receiver() else "the DICOM port is closed",
        "worker": OK if health.worker() else "the worker process does not run (it starts, or the release is refused)",
        "disk": disk,
        "node": "it stops" if health.stopping() else OK,
        **source,
    }


def _source_state(comparison: LastComparison, now: float) -> str:
    if not comparison.overdue(now):
        return OK
    since = comparison.succeeded or comparison.started
    reason = comparison.reason or "the comparison does not end"
    return f"not compared with the source for {(now - since) / 60:.0f} minutes: {reason}"


class SpoolSize:
    """Bytes of all files below a folder. They are counted seldom: at most a twentieth of the time goes into it."""

    def __init__(self, root: Path) -> None:
        self._root, self._bytes, self._next_count = root, 0, 0.0

    def __call__(self) -> int:
        """The bytes as of the last count."""
        started = time.monotonic()
        if started >= self._next_count:
            self._bytes = _folder_bytes(self._root)
            duration = time.monotonic() - started
            self._next_count = started + max(_MIN_INTERVAL_SECONDS, 20 * duration)
        return self._bytes


def _folder_bytes(folder: Path | str) -> int:
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                total += _folder_bytes(entry.path) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
    except FileNotFoundError:  # removed meanwhile
        pass
    return total


class Metrics:
    """Prometheus metrics in a registry of their own for one node. `text` may be called from several threads."""

    def __init__(
        self,
        audit: CountingAudit,
        ledger: LedgerReader,
        check: Callable[[], Mapping[str, str]],
        spool_bytes: Callable[[], int],
        free_bytes: Callable[[], int],
        clock: Callable[[], float],
        comparison: Callable[[], LastComparison | None] = lambda: None,
        candidate: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._comparison, self._candidate = comparison, candidate
        self._audit, self._ledger, self._check, self._clock = audit, ledger, check, clock
        self._spool_bytes, self._free_bytes = spool_bytes, free_bytes
        self._since, self._lock = clock(), threading.Lock()
        self._registry = CollectorRegistry()
        self._delays = Histogram(
            "medopt_pacs_result_seconds",
            "From a study's last image to each of its results being confirmed by a destination.",
            buckets=_DELAY_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)

    def text(self) -> bytes:
        """The text format, version 0.0.4; raises sqlite3.Error if the ledger cannot be read."""
        with self._lock:
            delays, self._since = self._ledger.result_delays(self._since)
            for seconds in delays:
                self._delays.observe(seconds)
            return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry learns the metrics' names from `collect`."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """As the registry calls it."""
        yield from self._event_counters()
        yield from self._queue_gauges()
        up = GaugeMetricFamily("medopt_pacs_up", "Whether a part of the node does its work.", labels=["part"])
        for part, state in self._check().items():
            up.add_metric([part], float(state == OK))
        yield up
        yield from self._comparison_gauge()
        if (candidate := self._candidate()) is not None:
            yield GaugeMetricFamily(
                "medopt_pacs_shadow_up", "Whether the candidate answers.", value=float(candidate == OK)
            )
        yield GaugeMetricFamily("medopt_pacs_spool_bytes", "Size of the spool's files.", value=self._spool_bytes())
        yield GaugeMetricFamily("medopt_pacs_free_bytes", "Free space on the spool's disk.", value=self._free_bytes())

    def _comparison_gauge(self) -> Iterable[Metric]:
        comparison = self._comparison()
        if comparison is not None:
            gauge = GaugeMetricFamily(
                "medopt_pacs_comparison_age_seconds",
                "Since the source was last compared with the ledger: with success, or at all (since the start: never).",
                labels=["what"],
            )
            for label, at in (("success", comparison.succeeded), ("end", comparison.ended)):
                gauge.add_metric([label], max(0.0, self._clock() - (at or comparison.started)))
            yield gauge

    def _event_counters(self) -> Iterable[Metric]:
        counts = self._audit.counts()
        plain = {
            "received": "Instances stored.",
            "complete": "Studies that became complete.",
            "answered": "Studies that were answered, declined or parked.",
            "sent": "Results that a destination confirmed.",
        }
        for event, description in plain.items():
            yield CounterMetricFamily(f"medopt_pacs_{event}", description, value=counts.get((event, ""), 0))
        by_reason = {
            "refused": "Instances that were not accepted.",
            "rejected": "Associations and HTTP requests that were turned away, and associations that the node ended.",
            "not sent": "Attempts to send a result that failed.",
            "not reconciled": "Attempts to ask the source that failed.",
            "not compared": "Comparisons in which something of the source could not be compared.",
        }
        for event, description in by_reason.items():
            family = CounterMetricFamily(f"medopt_pacs_{event.replace(' ', '_')}", description, labels=["reason"])
            for (name, reason), count in counts.items():
                if name == event:
                    family.add_metric([reason], count)
            yield family

    def _queue_gauges(self) -> Iterable[Metric]:
        try:
            overview = self._ledger.overview([], limit=0)
        except sqlite3.Error:
            return
        queues = (("studies", overview.studies, "Studies"), ("sends", overview.sends, "Results to send"))
        for name, by_state, title in queues:
            family = GaugeMetricFamily(f"medopt_pacs_{name}", f"{title} in each state.", labels=["state"])
            for state, count in by_state.items():
                family.add_metric([state], count)
            yield family
        if overview.trials:
            family = GaugeMetricFamily(
                "medopt_pacs_shadow_studies", "Studies by what the candidate did with them.", labels=["state"]
            )
            for state, count in overview.trials.items():
                family.add_metric([state], count)
            yield family
        oldest = GaugeMetricFamily(
            "medopt_pacs_oldest_waiting_seconds", "Age of what has waited longest.", labels=["what"]
        )
        trial = [("trial", overview.oldest_trial)] if overview.trials else []
        for label, since in (("study", overview.oldest_study), ("send", overview.oldest_send), *trial):
            oldest.add_metric([label], 0.0 if since is None else max(0.0, self._clock() - since))
        yield oldest
