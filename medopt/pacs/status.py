"""The state of the queues: for `medopt pacs status` and `retry`, the status page and the metrics."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from medopt.core.privacy import pseudonym
from medopt.pacs.answers import trial_counts
from medopt.pacs.ledger import STATES, Ledger

SEND_STATES = ("waiting", "sent", "parked")
_UNANSWERED = "('receiving', 'ready', 'working')"


class ParkedItem(NamedTuple):
    """What waits for a person: a study, or the send of one of its results to a destination."""

    study_uid: str
    item: str
    """"study", or the destination's name."""
    reason: str


def state_counts(ledger: Ledger) -> Mapping[str, Mapping[str, int]]:
    """How many studies and sends are in each state, and studies by what a candidate did, if there ever was one."""
    trials = trial_counts(ledger.rows)
    found = {table: _state_counts(ledger.rows, table) for table in ("studies", "sends")}
    return found | ({"shadow": dict(trials)} if trials else {})


def _state_counts(read: Callable[[str], Iterable[sqlite3.Row]], table: str) -> dict[str, int]:
    rows = read(f"SELECT state, count(*) AS number FROM {table} GROUP BY state ORDER BY state")
    return {str(row["state"]): int(row["number"]) for row in rows}


def parked_items(ledger: Ledger) -> list[ParkedItem]:
    """All parked studies and sends, in the order of the studies' UIDs."""
    rows = ledger.rows(
        "SELECT uid, 'study' AS item, reason FROM studies WHERE state = 'parked' UNION ALL "
        "SELECT study_uid, destination, sends.reason FROM sends JOIN results USING (sop_uid) "
        "WHERE sends.state = 'parked' ORDER BY 1, 2"
    )
    return [ParkedItem(row["uid"], row["item"], row["reason"]) for row in rows]


def retry_parked(ledger: Ledger, now: float) -> tuple[int, int]:
    """Put all parked studies and sends back into their queues; returns how many of each."""
    with ledger.transaction() as db:
        studies = db.execute(
            "UPDATE studies SET state = 'ready', tries = 0, changed = ? WHERE state = 'parked'", (now,)
        ).rowcount
        sends = db.execute(
            "UPDATE sends SET state = 'waiting', attempts = 0, due = ? WHERE state = 'parked'", (now,)
        ).rowcount
    return studies, sends


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """One study by its pseudonym."""

    name: str
    state: str
    reason: str
    images: int
    changed: float
    """Seconds since 1970."""
    delay_seconds: float | None
    """From its last image to its last confirmed result."""


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """A destination, its sends by state, and why one of them is pending."""

    name: str
    sends: Mapping[str, int]
    reason: str


@dataclass(frozen=True, slots=True)
class QueueOverview:
    """The state of a node at one moment."""

    studies: Mapping[str, int]
    sends: Mapping[str, int]
    oldest_study: float | None
    """When the study that has waited longest changed last, in seconds since 1970; None if none waits."""
    oldest_send: float | None
    """When the result that has waited longest was generated, in seconds since 1970; None if none waits."""
    latest: tuple[StudyStatus, ...]
    parked: tuple[StudyStatus, ...]
    destinations: tuple[DestinationStatus, ...]
    trials: Mapping[str, int] = field(default_factory=dict)
    """Studies by what the candidate did with them (TRIAL_STATES); empty where there never was one."""
    oldest_trial: float | None = None
    """Since when the study waits that has waited longest for the candidate; None if none waits."""


class LedgerReader:
    """Reads a ledger's file by connections of its own, and changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=2, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA query_only=ON")
            yield db

    def rows(self, query: str, *values: str | float) -> list[sqlite3.Row]:
        """The rows of a query; raises sqlite3.Error."""
        with self._open() as db:
            return db.execute(query, values).fetchall()

    def overview(self, destinations: Sequence[str], limit: int = 25) -> QueueOverview:
        """Counts, the studies that changed last, the parked ones, and the destinations; raises sqlite3.Error."""
        with self._open() as db:
            studies, sends = _state_counts(db.execute, "studies"), _state_counts(db.execute, "sends")
            return QueueOverview(
                {state: studies.get(state, 0) for state in STATES},
                {state: sends.get(state, 0) for state in SEND_STATES},
                _minimum(db, f"SELECT min(changed) FROM studies WHERE state IN {_UNANSWERED}"),
                _minimum(db, "SELECT min(made) FROM sends JOIN results USING (sop_uid) WHERE state = 'waiting'"),
                _studies(db, "", limit),
                _studies(db, "WHERE state = 'parked'", limit),
                tuple(_destinations(db, destinations)),
                trial_counts(db.execute),
                _minimum(db, "SELECT min(at) FROM trials WHERE state = 'waiting'"),
            )

    def result_delays(self, since: float) -> tuple[list[float], float]:
        """Seconds from a study's last image to each result confirmed after `since`, and when the last of them was."""
        with self._open() as db:
            rows = db.execute(
                "SELECT due, due - (SELECT max(received) FROM instances WHERE study_uid = results.study_uid AND image "
                "AND received <= made) AS seconds FROM sends JOIN results USING (sop_uid) "
                "WHERE sends.state = 'sent' AND due > ? ORDER BY due",
                (since,),
            ).fetchall()
        delays = [float(row["seconds"]) for row in rows if row["seconds"] is not None]
        return delays, max((float(row["due"]) for row in rows), default=since)


def _minimum(db: sqlite3.Connection, query: str) -> float | None:
    value = db.execute(query).fetchone()[0]
    return None if value is None else float(value)


def _studies(db: sqlite3.Connection, where: str, limit: int) -> tuple[StudyStatus, ...]:
    rows = db.execute(
        f"WITH last AS (SELECT * FROM studies {where} ORDER BY changed DESC LIMIT ?) SELECT *, "
        "(SELECT count(*) FROM instances WHERE study_uid = uid AND image) AS images, "
        "(SELECT max(received) FROM instances WHERE study_uid = uid AND image) AS last_image, "
        "(SELECT max(due) FROM results CROSS JOIN sends USING (sop_uid) "  # CROSS fixes the order: no full table scan
        "WHERE study_uid = uid AND sends.state = 'sent') AS last_sent FROM last ORDER BY changed DESC",
        (limit,),
    )
    return tuple(
        StudyStatus(
            pseudonym(row["uid"]),
            row["state"],
            row["reason"],
            row["images"],
            row["changed"],
            _delay(row["last_image"], row["last_sent"]),
        )
        for row in rows
    )


def _delay(last_image: float | None, last_sent: float | None) -> float | None:
    if last_image is None or last_sent is None or last_sent < last_image:
        return None
    return last_sent - last_image


def _destinations(db: sqlite3.Connection, configured: Sequence[str]) -> Iterator[DestinationStatus]:
    """Those of the node file, then those that were removed from it but still have pending sends."""
    sends: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SEND_STATES, 0))
    for row in db.execute("SELECT destination, state, count(*) n FROM sends GROUP BY 1, 2"):
        sends[row["destination"]][row["state"]] = row["n"]
    removed = [name for name, by in sends.items() if name not in configured and by["waiting"] + by["parked"]]
    for name in [*configured, *sorted(removed)]:
        row = db.execute(
            "SELECT reason FROM sends WHERE state IN ('waiting', 'parked') AND destination = ? AND reason != '' "
            "LIMIT 1",
            (name,),
        ).fetchone()
        yield DestinationStatus(name, sends[name], "" if row is None else row["reason"])
