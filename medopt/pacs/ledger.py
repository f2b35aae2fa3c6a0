"""What the node has, owes and has done: a SQLite file in WAL mode, every change one transaction.

A change that was committed survives `kill -9` and power loss (synchronous=FULL). The file lies in the spool: it holds
the UIDs that the work needs, and no other identifier.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from medopt.errors import ConfigError
from medopt.pacs.schema import migrate

Outcome = Literal["new", "known", "other", "late", "gone"]
"""What an instance is to the ledger: new; the same as before; other bytes under its UID; of an answered study; of one
whose files are no longer in the spool."""
Ending = Literal["done", "declined", "parked"]
_FREE = (
    "emptied = 0 AND (state IN ('done', 'declined') OR (state = 'receiving' AND NOT EXISTS (SELECT 1 FROM instances "
    "WHERE study_uid = uid AND image))) AND NOT EXISTS (SELECT 1 FROM results JOIN sends USING (sop_uid) "
    "WHERE study_uid = uid AND sends.state != 'sent')"
)
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
class Work:
    """A study to be answered: its images as of now, and how often the attempt ended badly."""

    study_uid: str
    tries: int
    images: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """A result that a destination has not confirmed."""

    result: Result
    destination: str
    attempts: int


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
            with self._change() as db:
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
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Receiving

    def judge(self, one: Instance, *, late: bool) -> Outcome:
        """What `record` would say of an instance, without a change."""
        rows = self._rows("SELECT digest FROM instances WHERE sop_uid = ?", one.sop_uid)
        if rows:
            return "known" if rows[0]["digest"] == one.digest else "other"
        study = self._rows("SELECT state, emptied FROM studies WHERE uid = ?", one.study_uid)
        if study and study[0]["emptied"] and study[0]["state"] != "receiving":
            return "gone"
        if one.image and not late and study and study[0]["state"] in _ANSWERED:
            return "late"
        return "new"

    def record(self, one: Instance, now: float, *, late: bool) -> Outcome:
        """Write an instance down, where it is new. `late`: images of an answered study are taken.

        Its study then waits for its end again; where it is at work, that goes on, and the study waits afterwards.
        """
        with self._change() as db:
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
        return bool(self._rows("SELECT 1 FROM results WHERE sop_uid = ?", sop_uid))

    # Studies

    def state(self, study_uid: str) -> str:
        """Where a study is, '' where it is not known."""
        rows = self._rows("SELECT state FROM studies WHERE uid = ?", study_uid)
        return str(rows[0]["state"]) if rows else ""

    def receiving(self) -> list[str]:
        """Studies with images whose end has not come."""
        rows = self._rows(
            "SELECT uid FROM studies WHERE state = 'receiving' AND EXISTS "
            "(SELECT 1 FROM instances WHERE study_uid = uid AND image)"
        )
        return [str(row["uid"]) for row in rows]

    def complete(self, study_uid: str, now: float) -> None:
        """The end of a study has come: it is ready."""
        with self._change() as db:
            db.execute(
                "UPDATE studies SET state = 'ready', changed = ? WHERE uid = ? AND state = 'receiving'",
                (now, study_uid),
            )

    def take(self, now: float) -> Work | None:
        """The study that has been ready for longest is at work from now on; None where none is ready."""
        with self._change() as db:
            row = db.execute(
                "SELECT uid, tries FROM studies WHERE state = 'ready' ORDER BY tries, changed, uid LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE studies SET state = 'working', changed = ? WHERE uid = ?", (now, row["uid"]))
            return Work(row["uid"], row["tries"], self.images(row["uid"]))

    def images(self, study_uid: str) -> tuple[Instance, ...]:
        """The received images of a study, in the order of their UIDs."""
        rows = self._rows("SELECT * FROM instances WHERE study_uid = ? AND image ORDER BY sop_uid", study_uid)
        return tuple(_instance(row) for row in rows)

    def hand_back(self, study_uid: str, now: float, *, failed: str = "") -> None:
        """Work that was not finished: the study is ready again. `failed` says why, and counts as a try."""
        with self._change() as db:
            db.execute(
                "UPDATE studies SET state = 'ready', tries = tries + ?, reason = ?, changed = ? "
                "WHERE uid = ? AND state = 'working'",
                (bool(failed), failed, now, study_uid),
            )

    def recover(self, now: float) -> int:
        """After a start: what was at work when the last process ended is ready again; returns how many."""
        with self._change() as db:
            return db.execute(
                "UPDATE studies SET state = 'ready', changed = ? WHERE state = 'working'", (now,)
            ).rowcount

    def finish(
        self,
        work: Work,
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
        with self._change() as db:
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
        rows = self._rows("SELECT * FROM results WHERE study_uid = ? ORDER BY made, rowid", study_uid)
        return [_result(row) for row in rows]

    # Sending

    def due(self, now: float, most: int = 100) -> list[Send]:
        """What is to be sent now, the oldest first."""
        rows = self._rows(
            "SELECT results.*, destination, attempts FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state = 'waiting' AND due <= ? ORDER BY due, made, results.rowid LIMIT ?",
            now,
            most,
        )
        return [Send(_result(row), row["destination"], row["attempts"]) for row in rows]

    def owed(self, sop_uid: str, destination: str) -> Send | None:
        """What a destination has not confirmed of one result, parked or not; None where it has, or never should."""
        rows = self._rows(
            "SELECT results.*, destination, attempts FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state != 'sent' AND sop_uid = ? AND destination = ?",
            sop_uid,
            destination,
        )
        return Send(_result(rows[0]), destination, rows[0]["attempts"]) if rows else None

    def unkept(self, send: Send, reason: str) -> None:
        """A destination says that it does not keep a result: why, until it is tried again as was foreseen."""
        with self._change() as db:
            db.execute(
                "UPDATE sends SET reason = ? WHERE sop_uid = ? AND destination = ? AND state != 'sent'",
                (reason, send.result.sop_uid, send.destination),
            )

    def confirmed(self, send: Send, now: float) -> None:
        """A destination has a result: it is never sent there again."""
        with self._change() as db:
            db.execute(
                "UPDATE sends SET state = 'sent', attempts = attempts + 1, reason = '', due = ? "
                "WHERE sop_uid = ? AND destination = ?",
                (now, send.result.sop_uid, send.destination),
            )

    def unsent(self, send: Send, reason: str, again: float | None) -> None:
        """An attempt failed: once more at `again`, or parked where that is None."""
        with self._change() as db:
            db.execute(
                "UPDATE sends SET attempts = attempts + 1, reason = ?, state = ?, due = coalesce(?, due) "
                "WHERE sop_uid = ? AND destination = ? AND state = 'waiting'",
                (reason, "parked" if again is None else "waiting", again, send.result.sop_uid, send.destination),
            )

    # Retention

    def kept_bytes(self) -> int:
        """What the files of all studies take that are in the spool."""
        parts = [
            f"SELECT coalesce(sum(size), 0) AS many FROM {table} JOIN studies ON uid = study_uid WHERE emptied = 0"
            for table in ("instances", "results")
        ]
        return sum(int(self._rows(part)[0]["many"]) for part in parts)

    def removable(self, before: float, most: int) -> list[str]:
        """Studies of which nothing changed since `before` and nothing is owed any more, the oldest first.

        Answered ones of which every destination confirmed every result; and those that never had an image.
        """
        rows = self._rows(
            f"SELECT uid FROM studies WHERE changed <= ? AND {_FREE} ORDER BY changed LIMIT ?", before, most
        )
        return [str(row["uid"]) for row in rows]

    def begin_emptying(self, study_uid: str) -> bool:
        """From now on no image of the study is new; False where something came or is owed since it was listed."""
        with self._change() as db:
            return bool(db.execute(f"UPDATE studies SET emptied = 1 WHERE uid = ? AND {_FREE}", (study_uid,)).rowcount)

    def emptying(self) -> list[tuple[str, list[str], int]]:
        """Studies whose files are being removed, with these files and their bytes."""
        found = []
        for row in self._rows("SELECT uid FROM studies WHERE emptied = 1"):
            files = self._rows(
                "SELECT file, size FROM instances WHERE study_uid = ?1 UNION ALL "
                "SELECT file, size FROM results WHERE study_uid = ?1",
                row["uid"],
            )
            found.append((str(row["uid"]), [str(one["file"]) for one in files], sum(int(one["size"]) for one in files)))
        return found

    def emptied(self, study_uid: str) -> None:
        """The files of a study are gone; its rows stay, so that whatever comes of it again is known."""
        with self._change() as db:
            db.execute("UPDATE studies SET emptied = 2 WHERE uid = ? AND emptied = 1", (study_uid,))

    # For people

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How many studies and sends are in each state."""
        found = {}
        for table in ("studies", "sends"):
            rows = self._rows(f"SELECT state, count(*) AS many FROM {table} GROUP BY state ORDER BY state")
            found[table] = {str(row["state"]): int(row["many"]) for row in rows}
        return found

    def parked(self) -> list[tuple[str, str, str]]:
        """What waits for a person: the study's UID, what is parked (study, or the destination), and why."""
        rows = self._rows(
            "SELECT uid, 'study' AS what, reason FROM studies WHERE state = 'parked' UNION ALL "
            "SELECT study_uid, destination, sends.reason FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state = 'parked' ORDER BY 1, 2"
        )
        return [(row["uid"], row["what"], row["reason"]) for row in rows]

    def retry(self, now: float) -> tuple[int, int]:
        """Begin anew with all that is parked; returns how many studies and sends."""
        with self._change() as db:
            studies = db.execute(
                "UPDATE studies SET state = 'ready', tries = 0, changed = ? WHERE state = 'parked'", (now,)
            ).rowcount
            sends = db.execute(
                "UPDATE sends SET state = 'waiting', attempts = 0, due = ? WHERE state = 'parked'", (now,)
            ).rowcount
        return studies, sends


def _at(one: Instance, now: float) -> tuple[str, float]:
    return one.study_uid, now


def _instance(row: sqlite3.Row) -> Instance:
    found = {one.name: row[one.name] for one in fields(Instance)}
    return Instance(**found | {"image": bool(found["image"])})


def _result(row: sqlite3.Row) -> Result:
    return Result(**{one.name: row[one.name] for one in fields(Result)})
