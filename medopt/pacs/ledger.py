"""The ledger: received instances, results, and what is due, in a SQLite file; every change is one transaction.

WAL mode and synchronous=FULL: a committed change survives `kill -9` and power loss. The file is in the spool: it holds
the UIDs that the node needs, and no other identifier.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal, Protocol

from medopt.core.errors import ConfigError
from medopt.pacs.schema import migrate

InstanceStatus = Literal["new", "known", "conflict", "late", "removed"]
"""An instance compared with the ledger: new; known with the same bytes; known with other bytes (conflict); an image of
a study that was answered (late); of a study whose files have left the spool (removed)."""
Ending = Literal["done", "declined", "parked"]
STATES = ("receiving", "ready", "working", "done", "declined", "parked")
_ANSWERED = ("working", "done", "declined")


@dataclass(frozen=True, slots=True)
class Instance:
    """One received SOP instance. `file` is its path below the spool, `image` whether its SOP class is an image."""

    sop_uid: str
    study_uid: str
    sop_class: str
    transfer_syntax: str
    digest: str
    """SHA-256 of the data set's bytes and of the transfer syntax."""
    size: int
    """Bytes of the file."""
    file: str
    image: bool


@dataclass(frozen=True, slots=True)
class Result:
    """One object to send back. Its bytes are in `file`, below the spool, and are never generated again."""

    sop_uid: str
    study_uid: str
    sop_class: str
    result_type: str
    """"report", "text", "heat map", "evidence map" or "key images" (the column `kind`)."""
    file: str
    digest: str
    series_uid: str = ""
    size: int = 0


@dataclass(frozen=True, slots=True)
class DueStudy:
    """A study to answer: its images as of now, and how many tries failed."""

    study_uid: str
    tries: int
    images: tuple[Instance, ...]


class RowSource(Protocol):
    """What the rows of a query come from: the ledger itself, or a reader of its file."""

    def rows(self, query: str, *values: str | float) -> list[sqlite3.Row]:
        """The rows of a query."""


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
            with self.transaction() as db:
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction: its changes are kept as a whole or not at all."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have ended it
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: str | float) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Receiving

    def classify(self, instance: Instance, *, late: bool) -> InstanceStatus:
        """What `record` would return for an instance, without a change."""
        known = self.rows("SELECT digest FROM instances WHERE sop_uid = ?", instance.sop_uid)
        if known:
            return "known" if known[0]["digest"] == instance.digest else "conflict"
        study = self.rows(
            "SELECT state, emptied FROM studies WHERE uid = ? AND EXISTS "
            "(SELECT 1 FROM instances WHERE study_uid = uid AND image)",  # one without images was not answered
            instance.study_uid,
        )
        if study and study[0]["emptied"] and study[0]["state"] != "receiving":
            return "removed"
        if instance.image and not late and study and study[0]["state"] in _ANSWERED:
            return "late"
        return "new"

    def record(self, instance: Instance, now: float, *, late: bool) -> InstanceStatus:
        """Insert an instance if it is new. `late`: images of an answered study are accepted.

        A new image puts its study back to receiving; a study that is being answered waits again after that.
        """
        with self.transaction() as db:
            status = self.classify(instance, late=late)
            if status != "new":
                return status
            db.execute(
                "INSERT OR IGNORE INTO studies (uid, state, changed) VALUES (?, 'receiving', ?)",
                (instance.study_uid, now),
            )
            db.execute(
                "INSERT INTO instances (sop_uid, study_uid, sop_class, transfer_syntax, digest, size, file, image, "
                "received) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*astuple(instance), now),
            )
            if instance.image:
                db.execute(
                    "UPDATE studies SET state = 'receiving', tries = 0, reason = '', changed = ?2, emptied = 0 "
                    "WHERE uid = ?1 AND state != 'working'",
                    (instance.study_uid, now),
                )
            else:  # a study without images whose files are gone has one again, which counts and is removed in its time
                db.execute(
                    "UPDATE studies SET state = 'receiving', changed = ?2, emptied = 0 WHERE uid = ?1 AND emptied != 0",
                    (instance.study_uid, now),
                )
        return status

    def instance(self, sop_uid: str) -> Instance | None:
        """A received instance, None if it is not known."""
        rows = self.rows("SELECT * FROM instances WHERE sop_uid = ?", sop_uid)
        return _instance_from(rows[0]) if rows else None

    def is_result(self, sop_uid: str) -> bool:
        """Whether an instance is one of the node's own results, routed back to it."""
        return bool(self.rows("SELECT 1 FROM results WHERE sop_uid = ?", sop_uid))

    # Studies

    def state(self, study_uid: str) -> str:
        """The state of a study, '' if it is not known."""
        rows = self.rows("SELECT state FROM studies WHERE uid = ?", study_uid)
        return str(rows[0]["state"]) if rows else ""

    def receiving(self) -> list[str]:
        """Studies that are not yet complete; some may never have an image."""
        rows = self.rows("SELECT uid FROM studies WHERE state = 'receiving' AND emptied = 0")
        return [str(row["uid"]) for row in rows]

    def complete(self, study_uid: str, now: float) -> None:
        """A study is complete: it is ready to be answered."""
        with self.transaction() as db:
            db.execute(
                "UPDATE studies SET state = 'ready', changed = ? WHERE uid = ? AND state = 'receiving'",
                (now, study_uid),
            )

    def take(self, now: float) -> DueStudy | None:
        """Mark the study that has been ready for longest as working, and return it; None if none is ready."""
        with self.transaction() as db:
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
        return tuple(_instance_from(row) for row in rows)

    def hand_back(self, study_uid: str, now: float, *, failure: str = "") -> None:
        """A study that was not finished is ready again. `failure` says why, and counts as a try."""
        with self.transaction() as db:
            db.execute(
                "UPDATE studies SET state = 'ready', tries = tries + ?, reason = ?, changed = ? "
                "WHERE uid = ? AND state = 'working'",
                (bool(failure), failure, now, study_uid),
            )

    def recover(self, now: float) -> int:
        """After a start: studies that were working when the last process ended are ready again; returns how many."""
        with self.transaction() as db:
            return db.execute(
                "UPDATE studies SET state = 'ready', changed = ? WHERE state = 'working'", (now,)
            ).rowcount

    def finish(
        self, study: DueStudy, ending: Ending, reason: str, results: Sequence[Result], destinations: Sequence[str],
        now: float, also: Callable[[sqlite3.Connection], None] = lambda _: None,
    ) -> list[Result]:  # fmt: skip
        """Record in one transaction how a study ended, its results, and a send of each result to each destination.

        `also` writes what else belongs to it in the same transaction. A result whose UID is known is not recorded
        again. If images came in the meantime, the study goes back to receiving. Returns the new results.
        """
        with self.transaction() as db:
            new = [result for result in results if not self.is_result(result.sop_uid)]
            for result in new:
                db.execute(
                    "INSERT INTO results (sop_uid, study_uid, sop_class, kind, file, digest, series_uid, size, made) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*astuple(result), now),
                )
                for name in destinations:
                    db.execute(
                        "INSERT INTO sends (sop_uid, destination, state, due) VALUES (?, ?, 'waiting', ?)",
                        (result.sop_uid, name, now),
                    )
            more = len(self.images(study.study_uid)) > len(study.images)
            db.execute(
                "UPDATE studies SET state = ?, reason = ?, changed = ?, tries = ? WHERE uid = ?",
                ("receiving" if more else ending, "" if more else reason, now, 0, study.study_uid),
            )
            also(db)
        return new

    def results(self, study_uid: str) -> list[Result]:
        """All results of a study, the oldest first."""
        rows = self.rows("SELECT * FROM results WHERE study_uid = ? ORDER BY made, rowid", study_uid)
        return [result_from(row) for row in rows]


def _instance_from(row: sqlite3.Row) -> Instance:
    return Instance(
        row["sop_uid"], row["study_uid"], row["sop_class"], row["transfer_syntax"], row["digest"], row["size"],
        row["file"], bool(row["image"]),
    )  # fmt: skip


def result_from(row: sqlite3.Row) -> Result:
    """The result of a row with the columns of the table `results`."""
    return Result(
        row["sop_uid"], row["study_uid"], row["sop_class"], row["kind"], row["file"], row["digest"],
        row["series_uid"], row["size"],
    )  # fmt: skip
