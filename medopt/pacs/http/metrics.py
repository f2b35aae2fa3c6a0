"""The node's figures as Prometheus reads them: counts, states, ages and sizes; no study, no patient, no address."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from medopt.pacs.audit import CountingAudit
from medopt.pacs.http.health import OK
from medopt.pacs.http.status_query import Ledgers

_SECONDS = (1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600)


class Metrics:
    """A registry of its own for one node. `text` may be called from several threads."""

    def __init__(
        self,
        counted: CountingAudit,
        ledgers: Ledgers,
        checks: Callable[[], Mapping[str, str]],
        spool_bytes: Callable[[], int],
        free_bytes: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._counted, self._ledgers, self._checks, self._clock = counted, ledgers, checks, clock
        self._spool_bytes, self._free_bytes = spool_bytes, free_bytes
        self._since, self._lock = clock(), threading.Lock()
        self._registry = CollectorRegistry()
        self._waits = Histogram(
            "medopt_pacs_result_seconds",
            "From a study's last image to each of its results being confirmed by a destination.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)

    def text(self) -> bytes:
        """The text format, version 0.0.4; raises sqlite3.Error where the ledger cannot be read."""
        with self._lock:
            seconds, self._since = self._ledgers.waits(self._since)
            for one in seconds:
                self._waits.observe(one)
            return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what `collect` gives is not known before."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """For the registry."""
        yield from self._events()
        yield from self._states()
        healthy = GaugeMetricFamily("medopt_pacs_up", "Whether a part of the node does its work.", labels=["part"])
        for part, why in self._checks().items():
            healthy.add_metric([part], float(why == OK))
        yield healthy
        yield GaugeMetricFamily("medopt_pacs_spool_bytes", "Size of the spool's files.", value=self._spool_bytes())
        yield GaugeMetricFamily("medopt_pacs_free_bytes", "Room left on the spool's disk.", value=self._free_bytes())

    def _events(self) -> Iterable[Metric]:
        counts = self._counted.counts()
        plain = {
            "received": "Instances stored.",
            "complete": "Studies whose end came.",
            "answered": "Studies that ended, in whatever way.",
            "sent": "Results that a destination confirmed.",
        }
        for event, what in plain.items():
            yield CounterMetricFamily(f"medopt_pacs_{event}", what, value=counts.get((event, ""), 0))
        reasoned = {
            "refused": "Instances that were not taken.",
            "rejected": "Associations that were not accepted.",
            "not sent": "Attempts to send a result that failed.",
            "not reconciled": "Attempts to ask the source that failed.",
        }
        for event, what in reasoned.items():
            family = CounterMetricFamily(f"medopt_pacs_{event.replace(' ', '_')}", what, labels=["reason"])
            for (name, reason), count in counts.items():
                if name == event:
                    family.add_metric([reason], count)
            yield family

    def _states(self) -> Iterable[Metric]:
        try:
            found = self._ledgers.overview([], most=0)
        except sqlite3.Error:
            return
        for name, by, what in (("studies", found.studies, "Studies"), ("sends", found.sends, "Results to send")):
            family = GaugeMetricFamily(f"medopt_pacs_{name}", f"{what} in each state.", labels=["state"])
            for state, count in by.items():
                family.add_metric([state], count)
            yield family
        oldest = GaugeMetricFamily(
            "medopt_pacs_oldest_waiting_seconds", "Age of what has waited longest.", labels=["what"]
        )
        for what, since in (("study", found.oldest_study), ("send", found.oldest_send)):
            oldest.add_metric([what], 0.0 if since is None else max(0.0, self._clock() - since))
        yield oldest
