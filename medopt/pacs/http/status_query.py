"""What the ledger says of the node, for the page and the metrics: read by a connection of its own, nothing changed."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from medopt.core.privacy import pseudonym
from medopt.pacs.ledger import STATES
from medopt.pacs.queue_status import counted

SENDS = ("waiting", "sent", "parked")
_WAITING = "('receiving', 'ready', 'working')"


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study by its pseudonym. Times are seconds since 1970; `seconds`: from its last image to its last result."""

    name: str
    state: str
    reason: str
    images: int
    changed: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """A destination, and what is owed to it."""

    name: str
    sends: Mapping[str, int]
    reason: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of a node at one moment."""

    studies: Mapping[str, int]
    sends: Mapping[str, int]
    oldest_study: float | None
    """Since when the study that has waited longest has been as it is; None where none waits."""
    oldest_send: float | None
    latest: tuple[StudyRow, ...]
    parked: tuple[StudyRow, ...]
    places: tuple[DestinationStatus, ...]


class Ledgers:
    """Looks into one ledger's file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=2, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA query_only=ON")
            yield db

    def overview(self, destinations: list[str], most: int = 25) -> Overview:
        """Counts, the studies that changed last, those that are parked, and the destinations; raises sqlite3.Error."""
        with self._open() as db:
            studies, sends = counted(db.execute, "studies"), counted(db.execute, "sends")
            return Overview(
                {state: studies.get(state, 0) for state in STATES},
                {state: sends.get(state, 0) for state in SENDS},
                _least(db, f"SELECT min(changed) FROM studies WHERE state IN {_WAITING}"),
                _least(db, "SELECT min(made) FROM sends JOIN results USING (sop_uid) WHERE state = 'waiting'"),
                _studies(db, "", most),
                _studies(db, "WHERE state = 'parked'", most),
                tuple(_places(db, destinations)),
            )

    def waits(self, since: float) -> tuple[list[float], float]:
        """Seconds from a study's last image to each result confirmed after `since`, and when the last of them was."""
        with self._open() as db:
            rows = db.execute(
                "SELECT due, due - (SELECT max(received) FROM instances WHERE study_uid = results.study_uid AND image "
                "AND received <= made) AS seconds FROM sends JOIN results USING (sop_uid) "
                "WHERE sends.state = 'sent' AND due > ? ORDER BY due",
                (since,),
            ).fetchall()
        found = [float(row["seconds"]) for row in rows if row["seconds"] is not None]
        return found, max((float(row["due"]) for row in rows), default=since)


def _least(db: sqlite3.Connection, query: str) -> float | None:
    found = db.execute(query).fetchone()[0]
    return None if found is None else float(found)


def _studies(db: sqlite3.Connection, where: str, most: int) -> tuple[StudyRow, ...]:
    rows = db.execute(
        f"WITH last AS (SELECT * FROM studies {where} ORDER BY changed DESC LIMIT ?) SELECT *, "
        "(SELECT count(*) FROM instances WHERE study_uid = uid AND image) AS images, "
        "(SELECT max(received) FROM instances WHERE study_uid = uid AND image) AS last_image, "
        "(SELECT max(due) FROM results CROSS JOIN sends USING (sop_uid) "  # in this order: no table is read whole
        "WHERE study_uid = uid AND sends.state = 'sent') AS last_sent FROM last ORDER BY changed DESC",
        (most,),
    )
    found = []
    for row in rows:
        ends = row["last_sent"], row["last_image"]
        seconds = ends[0] - ends[1] if None not in ends and ends[0] >= ends[1] else None
        found.append(
            StudyRow(pseudonym(row["uid"]), row["state"], row["reason"], row["images"], row["changed"], seconds)
        )
    return tuple(found)


def _places(db: sqlite3.Connection, destinations: list[str]) -> Iterator[DestinationStatus]:
    """Those of the node file, then those that are no longer in it but are owed something."""
    sends: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SENDS, 0))
    for row in db.execute("SELECT destination, state, count(*) n FROM sends GROUP BY 1, 2"):
        sends[row["destination"]][row["state"]] = row["n"]
    gone = [name for name, by in sends.items() if name not in destinations and by["waiting"] + by["parked"]]
    for name in [*destinations, *sorted(gone)]:
        row = db.execute(
            "SELECT reason FROM sends WHERE state IN ('waiting', 'parked') AND destination = ? AND reason != '' "
            "LIMIT 1",
            (name,),
        ).fetchone()
        yield DestinationStatus(name, sends[name], "" if row is None else row["reason"])
