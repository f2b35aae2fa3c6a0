"""What deserves an alert: figures of the node and of its release against the limits of the section `alerts`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from medopt.core.format import count_text
from medopt.pacs.alert_settings import AlertSettings
from medopt.pacs.ledger import RowSource
from medopt.pacs.service_view import ServiceSummary

_END = 0.9
"""An alert ends below this part of its limit, so that a figure near the limit gives no row of alerts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule and what it says: `begins` above its limit, `ends` clearly below it; neither leaves an alert as it is."""

    name: str
    text: str
    begins: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits now. `waiting_since`: when the complete study or the result that waits longest came."""

    waiting_since: float | None
    parked: int


def queue_of(source: RowSource) -> Queue:
    """The queues of a ledger."""
    (row,) = source.rows(
        "SELECT (SELECT min((SELECT max(received) FROM instances WHERE study_uid = uid AND image)) FROM studies "
        "WHERE state IN ('ready', 'working')) AS study, "
        "(SELECT min(made) FROM sends JOIN results USING (sop_uid) WHERE state = 'waiting') AS send, "
        "(SELECT count(*) FROM studies WHERE state = 'parked') + (SELECT count(*) FROM sends WHERE state = 'parked') "
        "AS parked"
    )
    since = [one for one in (row["study"], row["send"]) if one is not None]
    return Queue(min(since, default=None), row["parked"])


def findings(
    settings: AlertSettings, triggers: Mapping[str, str] | None, summary: ServiceSummary, queue: Queue
) -> list[Finding]:
    """What each rule says now. Texts hold aggregates and the plan's words, and nothing of a study."""
    found = list(_queue_findings(settings, queue, summary.at))
    if summary.now.counts.scans < settings.scans:
        return [*found, *_too_few(settings, summary)]
    if settings.declined is not None:
        counts = summary.now.counts
        share = counts.declined / counts.scans
        text = (
            f"the release declined {share:.0%} of {count_text(counts.scans, 'scan')} in the last {settings.days:g} "
            f"days (limit {settings.declined:.0%})"
        )
        found.append(_judged("declined", text, share, settings.declined))
    return [*found, *_drift_findings(settings, triggers, summary)]


def _queue_findings(settings: AlertSettings, queue: Queue, now: float) -> Iterator[Finding]:
    if settings.waiting_minutes is not None:
        minutes = 0.0 if queue.waiting_since is None else max(0.0, now - queue.waiting_since) / 60
        text = f"a study or a result has waited for {minutes:.0f} minutes (limit {settings.waiting_minutes:g})"
        yield _judged("waiting", text, minutes, settings.waiting_minutes)
    if settings.parked is not None:
        text = f"studies and results that wait for a person: {queue.parked} (limit {settings.parked})"
        begins = queue.parked >= settings.parked
        yield Finding("parked", text, begins, not begins)


def _drift_findings(
    settings: AlertSettings, triggers: Mapping[str, str] | None, summary: ServiceSummary
) -> Iterator[Finding]:
    if settings.drift is None:
        return
    for name, shift in summary.now.shifts.items():
        if triggers is not None and name not in triggers:
            continue
        if shift.psi is None or shift.chance is None:
            yield Finding(f"drift: {name}", f"{name}: too few scans to tell")
            continue
        limit = max(settings.drift, shift.chance)
        scans = count_text(shift.scans, "scan")
        text = f"{name} against validation: PSI {shift.psi:.2f} of {scans} (limit {limit:.2f})"
        if triggers is not None:
            text += f"; the change plan starts: {triggers[name]}"
        yield _judged(f"drift: {name}", text, shift.psi, limit)


def _too_few(settings: AlertSettings, summary: ServiceSummary) -> Iterator[Finding]:
    """Rules that cannot be judged keep an alert as it is."""
    if settings.declined is not None:
        yield Finding("declined", "too few scans to tell")
    if settings.drift is not None:
        yield Finding("drift: *", "too few scans to tell")


def _judged(name: str, text: str, value: float, limit: float) -> Finding:
    return Finding(name, text, value > limit, value < _END * limit)
