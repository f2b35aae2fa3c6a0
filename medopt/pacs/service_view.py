"""A release in service over time, in aggregates: for the monitoring page and the alerts.

Figures that need probabilities are computed of the last answers of a period, at most SAMPLE or PERIOD_SAMPLE: their
cost is bounded however much a node answers, and those of periods that are over are computed once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medopt.core.errors import DataError, MedoptError
from medopt.core.files import file_digest
from medopt.core.run_paths import SUMS
from medopt.pacs.alert_settings import AlertSettings
from medopt.pacs.ledger import RowSource
from medopt.pacs.service_counts import DAY, WEEK, PeriodCounter, PeriodCounts, counts_by_period, sample, starts
from medopt.pacs.settings import NodeSettings

if TYPE_CHECKING:  # scipy takes a second, and a node without page and alerts needs none of it
    from medopt.core.records import Estimate
    from medopt.release.drift_reference import Reference, Shift
    from medopt.release.layout import ReleaseInfo
    from medopt.serving.service_performance import ServicePerformance

SAMPLE, PERIOD_SAMPLE = 1000, 500
"""Studies of the last days, and of one period."""
PERIODS = {WEEK: 12, DAY: 14}
FRESH_SECONDS, KEPT_SECONDS = 60.0, 900.0
"""How old a summary may be: one that is computed on request, and one that a thread computes every few minutes."""
_DRAWS = 50


@dataclass(frozen=True, slots=True)
class Period:
    """One day or week: its counts, the change of each column, and figures expected of a release with one finding."""

    counts: PeriodCounts
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    expected: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceSummary:
    """The last periods, and the last days as a whole: `now` with its shifts and the performance.

    `labels` are those that results report; `why` says why drift and performance are not known, "" where they are.
    """

    at: float
    days: float
    periods: tuple[Period, ...]
    now: Period
    labels: tuple[str, ...] = ()
    performance: ServicePerformance | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Served:
    """The release whose answers are shown."""

    digest: str
    info: ReleaseInfo
    reference: Reference


class ServiceView:
    """Computes summaries from a ledger. One object may be used by several threads; a summary is kept for a minute."""

    def __init__(self, source: RowSource, release: Path, days: float) -> None:
        self._source, self._release, self._days = source, release, days
        self._lock, self._kept = threading.Lock(), dict[int, ServiceSummary]()
        self._count = PeriodCounter(source)
        self._ended = dict[tuple[object, ...], Period]()
        self._performance: tuple[object, ServicePerformance | None] = (None, None)

    def summary(self, now: float, length: int = WEEK, fresh_seconds: float = FRESH_SECONDS) -> ServiceSummary:
        """The periods of `length` up to now, or up to `fresh_seconds` before; raises sqlite3.Error."""
        with self._lock:
            kept = self._kept.get(length)
            if kept is None or not 0 <= now - kept.at < fresh_seconds:
                kept = self._kept[length] = self._computed(now, length)
            return kept

    def _computed(self, now: float, length: int) -> ServiceSummary:
        first = starts(now, length, PERIODS[length])
        try:
            served = _read_release(self._release)
        except (MedoptError, OSError) as error:
            why = str(error) if isinstance(error, MedoptError) else "The release cannot be read."
            empty = tuple(Period(PeriodCounts(start)) for start in first)
            return ServiceSummary(now, self._days, empty, Period(PeriodCounts(now - self._days * DAY)), why=why)
        names = served.info.reported_labels
        counts = self._count(served.digest, names, first[0], length, now)
        periods = [counts.get(number, PeriodCounts(start)) for number, start in enumerate(first)]
        since = now - self._days * DAY
        window = counts_by_period(self._source, served.digest, names, since, round(self._days * DAY) + 1, now).get(0)
        shifts, performance, why = self._now(served, since, now)
        return ServiceSummary(
            at=now,
            days=self._days,
            periods=tuple(self._period(served, one, one.start + length) for one in periods),
            now=Period(window or PeriodCounts(since), shifts),
            labels=tuple(names),
            performance=performance,
            why=why,
        )

    def _period(self, served: _Served, counts: PeriodCounts, end: float) -> Period:
        """A period with its figures; they are computed again when its answers change."""
        if not counts.scans:
            return Period(counts)
        key = (served.digest, counts.start, end, counts.scans, counts.studies)
        if (known := self._ended.get(key)) is None:
            rows, _, shifts = _observe(self._source, served, counts.start, end, {}, PERIOD_SAMPLE)
            known = self._ended[key] = Period(counts, shifts, _expected(served, rows))
            for old in [one for one in self._ended if one[1:3] == key[1:3] and one != key]:
                del self._ended[old]
        return Period(counts, known.shifts, known.expected)

    def _now(
        self, served: _Served, since: float, now: float
    ) -> tuple[Mapping[str, Shift], ServicePerformance | None, str]:
        from medopt.pacs.labels import known_labels
        from medopt.serving.prediction_table import observed_of
        from medopt.serving.service_performance import performance_of

        rows, truth, shifts = _observe(self._source, served, since, now, known_labels(self._source))
        key = (served.digest, [row["path"] for row in rows], truth)
        if key != self._performance[0]:
            found = None
            if rows and served.info.reported_labels:
                observed = observed_of(rows, served.info.labels, has_number=served.info.number is not None)
                try:
                    found = performance_of(served.info, served.reference, rows, observed, truth, "the node")
                except DataError:  # no scan has a decision
                    found = None
            self._performance = (key, found)
        why = "" if rows else f"The release answered no study in the last {self._days:g} days."
        return shifts, self._performance[1], why


def service_view(settings: NodeSettings, source: RowSource) -> ServiceView:
    """The view of a node's release, over the days that its alerts look at."""
    days = AlertSettings.model_fields["days"].default if settings.alerts is None else settings.alerts.days
    return ServiceView(source, settings.release, days)


def _read_release(folder: Path) -> _Served:
    from medopt.release.drift_reference import Reference
    from medopt.release.layout import read_info

    return _Served(file_digest(folder / SUMS), read_info(folder), Reference.read(folder))


def _observe(
    source: RowSource, served: _Served, since: float, until: float,
    labels: Mapping[tuple[str, str], Mapping[str, int]], limit: int = SAMPLE,
) -> tuple[Sequence[Mapping[str, str]], Mapping[str, Mapping[str, int]], Mapping[str, Shift]]:  # fmt: skip
    """The last answers of a period as rows, what is known of their truth, and how they changed from validation."""
    from medopt.pacs.answer_rows import rows_of
    from medopt.release.drift_reference import compare
    from medopt.serving.prediction_table import observed_of

    has_number = served.info.number is not None
    answers = sample(source, served.digest, since, until, limit)
    rows, truth = rows_of(answers, labels, served.info.labels, has_number=has_number)
    observed = observed_of(rows, served.info.labels, has_number=has_number)
    return rows, truth, {shift.name: shift for shift in compare(served.reference, observed)}


def _expected(served: _Served, rows: Sequence[Mapping[str, str]]) -> Mapping[str, Estimate]:
    """The figures expected of the answered scans of a period; nothing of a release with several findings."""
    from medopt.serving.service_performance import expected_of_finding

    info = served.info
    return expected_of_finding(info, rows, _DRAWS) if len(info.reported_labels) == 1 else {}
