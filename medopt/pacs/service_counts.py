"""Counts and waits of the release's answers by day or week: aggregates that the ledger's file computes itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medopt.pacs.ledger import RowSource
from medopt.release.predictor import UNDECIDED

DAY, WEEK = 86400, 7 * 86400
MONDAY = 4 * DAY
"""1970-01-05: a Monday, from which weeks and days are counted."""


@dataclass(frozen=True, slots=True)
class PeriodCounts:
    """What a release answered from `start` on, in seconds since 1970, for one period.

    `called` is how many scans got each reported label. The seconds are from a study's last image to its answer: the
    median and what 95 % of the studies stay within, None where it is not known.
    """

    start: float
    studies: int = 0
    scans: int = 0
    declined: int = 0
    undecided: int = 0
    called: Mapping[str, int] = field(default_factory=dict)
    median_seconds: float | None = None
    p95_seconds: float | None = None


def starts(now: float, length: int, periods: int) -> list[float]:
    """When each of the last periods began, the oldest first; the last one is not over."""
    last = (now - MONDAY) // length
    return [MONDAY + (last - back) * length for back in reversed(range(periods))]


def counts_by_period(
    source: RowSource, release: str, names: Sequence[str], first: float, length: int, end: float
) -> dict[int, PeriodCounts]:
    """The counts from `first` until `end` by the period's number from there; periods without answers are left out."""
    where = "FROM served WHERE release = ?3 AND at >= ?1 AND at < ?4"
    scans, declined, undecided = Counter[int](), Counter[int](), Counter[int]()
    called: dict[int, Counter[str]] = defaultdict(Counter)
    values = (first, length, release, end)
    for row in source.rows(
        f"SELECT CAST((at - ?1) / ?2 AS INTEGER) AS period, decision, declined, count(*) AS number {where} "
        "GROUP BY 1, 2, 3",
        *values,
    ):
        period, number, labels = row["period"], row["number"], row["decision"].split(";")
        scans[period] += number
        declined[period] += number * row["declined"]
        undecided[period] += number * any(label.partition(":")[0] == UNDECIDED for label in labels)
        called[period].update({name: number for name in names if name in labels})
    waits = source.rows(
        f"WITH one AS (SELECT DISTINCT CAST((at - ?1) / ?2 AS INTEGER) AS period, answer, waited {where}), "
        "ranked AS (SELECT period, waited, row_number() OVER (PARTITION BY period ORDER BY waited) AS place, "
        "count(*) OVER (PARTITION BY period) AS number FROM one) "
        "SELECT period, number, max(CASE WHEN place = (number + 1) / 2 THEN waited END) AS median, "
        "max(CASE WHEN place = (95 * number + 99) / 100 THEN waited END) AS p95 FROM ranked GROUP BY period",
        *values,
    )
    return {
        row["period"]: PeriodCounts(
            start=first + row["period"] * length,
            studies=row["number"],
            scans=scans[row["period"]],
            declined=declined[row["period"]],
            undecided=undecided[row["period"]],
            called={name: called[row["period"]][name] for name in names},
            median_seconds=row["median"],
            p95_seconds=row["p95"],
        )
        for row in waits
    }


class PeriodCounter:
    """Counts by period again and again: those of periods that are over only when their answers changed."""

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self._kept: dict[int, tuple[object, dict[int, PeriodCounts]]] = {}

    def __call__(
        self, release: str, names: Sequence[str], first: float, length: int, now: float
    ) -> dict[int, PeriodCounts]:
        """As `counts_by_period`."""
        current = first + (now - first) // length * length
        (row,) = self._source.rows(
            "SELECT count(*) AS number, max(answer) AS last FROM served WHERE release = ? AND at >= ? AND at < ?",
            release, first, current,
        )  # fmt: skip
        key, kept = (release, first, current, row["number"], row["last"]), self._kept.get(length)
        if kept is None or kept[0] != key:
            kept = self._kept[length] = (
                key, counts_by_period(self._source, release, names, first, length, current)
            )  # fmt: skip
        running = counts_by_period(self._source, release, names, current, length, now)
        return kept[1] | {round((current - first) / length): counts for counts in running.values()}


def sample(source: RowSource, release: str, since: float, until: float, limit: int) -> list[tuple[str, str]]:
    """The UIDs and records of the last answers of a period, at most `limit`."""
    rows = source.rows(
        "SELECT study_uid, record FROM answers WHERE id IN (SELECT answer FROM served WHERE release = ? AND at >= ? "
        "AND at < ? GROUP BY at, answer ORDER BY at DESC, answer DESC LIMIT ?)",
        release, since, until, limit,
    )  # fmt: skip
    return [(row["study_uid"], row["record"]) for row in rows]
