"""What the node has, owes and has done: a SQLite file in WAL mode, every change one transaction.

A change that was committed survives `kill -9` and power loss (synchronous=FULL). The file lies in the spool: it holds
the UIDs that the work needs, and no other identifier.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from medopt.core.errors import ConfigError
from medopt.pacs.schema import migrate

Outcome = Literal["new", "known", "other", "late", "gone"]
"""What an instance is to the ledger: new; the same as before; other bytes under its UID; of an answered study; of one
whose files are no longer in the spool."""
Ending = Literal["done", "declined", "parked"]
STATES = ("receiving", "ready", "working", "done", "declined", "parked")
_ANSWERED = ("working", "done", "declined")


@dataclass(frozen=True, slots=True)
class Instance:
    """One received object. `file` is its path below the spool; `image`: its SOP class is one of images."""

    sop_uid: str
    study_uid: str
    sop_class: str
    transfer_syntax: str
    digest: str
    size: int
    file: str
    image: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One object to send back: its bytes lie in `file` below the spool and are never made again."""

    sop_uid: str
    study_uid: str
    sop_class: str
    kind: str
    file: str
    digest: str
    series_uid: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class DueStudy:
    """A study to be answered: its images as of now, and how often the attempt ended badly."""

    study_uid: str
    tries: int
    images: tuple[Instance, ...]


class Ledger:
    """The open file. One object may be used by several threads; other processes may read, and retry."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, and bring an older one to this version's schema.

        Raises ConfigError where it is damaged or of a newer version.
        """
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA foreign_keys=ON")
            with self.change() as db:
                migrate(db, path)
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"The ledger {path} cannot be opened ({error}). Check the spool's disk and its permissions; never "
                "delete the ledger while the spool holds studies."
            ) from None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: what is written in it is kept as a whole or not at all."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Receiving

    def judge(self, one: Instance, *, late: bool) -> Outcome:
        """What `record` would say of an instance, without a change."""
        rows = self.rows("SELECT digest FROM instances WHERE sop_uid = ?", one.sop_uid)
        if rows:
            return "known" if rows[0]["digest"] == one.digest else "other"
        study = self.rows("SELECT state, emptied FROM studies WHERE uid = ?", one.study_uid)
        if study and study[0]["emptied"] and study[0]["state"] != "receiving":
            return "gone"
        if one.image and not late and study and study[0]["state"] in _ANSWERED:
            return "late"
        return "new"

    def record(self, one: Instance, now: float, *, late: bool) -> Outcome:
        """Write an instance down, where it is new. `late`: images of an answered study are taken.

        Its study then waits for its end again; where it is at work, that goes on, and the study waits afterwards.
        """
        with self.change() as db:
            outcome = self.judge(one, late=late)
            if outcome != "new":
                return outcome
            db.execute("INSERT OR IGNORE INTO studies (uid, state, changed) VALUES (?, 'receiving', ?)", _at(one, now))
            db.execute(
                "INSERT INTO instances (sop_uid, study_uid, sop_class, transfer_syntax, digest, size, file, image, "
                "received) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*astuple(one), now),
            )
            if one.image:
                db.execute(
                    "UPDATE studies SET state = 'receiving', tries = 0, reason = '', changed = ?2, emptied = 0 "
                    "WHERE uid = ?1 AND state != 'working'",
                    _at(one, now),
                )
        return outcome

    def is_result(self, sop_uid: str) -> bool:
        """Whether an object is one of the node's own, on its way back."""
        return bool(self.rows("SELECT 1 FROM results WHERE sop_uid = ?", sop_uid))

    # Studies

    def state(self, study_uid: str) -> str:
        """Where a study is, '' where it is not known."""
        rows = self.rows("SELECT state FROM studies WHERE uid = ?", study_uid)
        return str(rows[0]["state"]) if rows else ""

    def receiving(self) -> list[str]:
        """Studies with images whose end has not come."""
        rows = self.rows(
            "SELECT uid FROM studies WHERE state = 'receiving' AND EXISTS "
            "(SELECT 1 FROM instances WHERE study_uid = uid AND image)"
        )
        return [str(row["uid"]) for row in rows]

    def complete(self, study_uid: str, now: float) -> None:
        """The end of a study has come: it is ready."""
        with self.change() as db:
            db.execute(
                "UPDATE studies SET state = 'ready', changed = ? WHERE uid = ? AND state = 'receiving'",
                (now, study_uid),
            )

    def take(self, now: float) -> DueStudy | None:
        """The study that has been ready for longest is at work from now on; None where none is ready."""
        with self.change() as db:
            row = db.execute(
                "SELECT uid, tries FROM studies WHERE state = 'ready' ORDER BY tries, changed, uid LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE studies SET state = 'working', changed = ? WHERE uid = ?", (now, row["uid"]))
            return DueStudy(row["uid"], row["tries"], self.images(row["uid"]))

    def images(self, study_uid: str) -> tuple[Instance, ...]:
        """The received images of a study, in the order of their UIDs."""
        rows = self.rows("SELECT * FROM instances WHERE study_uid = ? AND image ORDER BY sop_uid", study_uid)
        return tuple(_instance(row) for row in rows)

    def hand_back(self, study_uid: str, now: float, *, failed: str = "") -> None:
        """Work that was not finished: the study is ready again. `failed` says why, and counts as a try."""
        with self.change() as db:
            db.execute(
                "UPDATE studies SET state = 'ready', tries = tries + ?, reason = ?, changed = ? "
                "WHERE uid = ? AND state = 'working'",
                (bool(failed), failed, now, study_uid),
            )

    def recover(self, now: float) -> int:
        """After a start: what was at work when the last process ended is ready again; returns how many."""
        with self.change() as db:
            return db.execute(
                "UPDATE studies SET state = 'ready', changed = ? WHERE state = 'working'", (now,)
            ).rowcount

    def finish(
        self,
        work: DueStudy,
        ending: Ending,
        reason: str,
        results: Sequence[Result],
        destinations: Sequence[str],
        now: float,
    ) -> list[Result]:
        """A study's end with its results, and what is owed to each destination, in one transaction.

        A result that is known by its UID is not taken again. Where images came while it was at work, the study waits
        for its end again. Returns the new results.
        """
        with self.change() as db:
            fresh = [one for one in results if not self.is_result(one.sop_uid)]
            for one in fresh:
                db.execute(
                    "INSERT INTO results (sop_uid, study_uid, sop_class, kind, file, digest, series_uid, size, made) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*astuple(one), now),
                )
                for name in destinations:
                    db.execute(
                        "INSERT INTO sends (sop_uid, destination, state, due) VALUES (?, ?, 'waiting', ?)",
                        (one.sop_uid, name, now),
                    )
            more = len(self.images(work.study_uid)) > len(work.images)
            db.execute(
                "UPDATE studies SET state = ?, reason = ?, changed = ?, tries = ? WHERE uid = ?",
                ("receiving" if more else ending, "" if more else reason, now, 0, work.study_uid),
            )
        return fresh

    def results(self, study_uid: str) -> list[Result]:
        """All results of a study, the oldest first."""
        rows = self.rows("SELECT * FROM results WHERE study_uid = ? ORDER BY made, rowid", study_uid)
        return [as_result(row) for row in rows]


def _at(one: Instance, now: float) -> tuple[str, float]:
    return one.study_uid, now


def _instance(row: sqlite3.Row) -> Instance:
    found = {one.name: row[one.name] for one in fields(Instance)}
    return Instance(**found | {"image": bool(found["image"])})


def as_result(row: sqlite3.Row) -> Result:
    """A row with the columns of `results`."""
    return Result(**{one.name: row[one.name] for one in fields(Result)})
