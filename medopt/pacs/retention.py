"""What the spool keeps no longer: studies whose results every destination has, by age and by size."""

from __future__ import annotations

import errno
from collections.abc import Callable

from medopt.core.privacy import pseudonym
from medopt.pacs.ledger import Ledger
from medopt.pacs.settings import Retention
from medopt.pacs.spool import Spool

_DAY = 86_400.0
_GIGABYTE = 1_000_000_000
_AT_ONCE = 20
# Of an answered study whose results every destination has; or of one that never had an image.
_FREE = (
    "emptied = 0 AND (state IN ('done', 'declined') OR (state = 'receiving' AND NOT EXISTS (SELECT 1 FROM instances "
    "WHERE study_uid = uid AND image))) AND NOT EXISTS (SELECT 1 FROM results JOIN sends USING (sop_uid) "
    "WHERE study_uid = uid AND sends.state != 'sent')"
)


class Sweeper:
    """Empties the spool of what it no longer has to keep. One object is used by one thread."""

    def __init__(
        self, kept: Retention, spool: Spool, ledger: Ledger, told: Callable[..., None] = lambda *_, **__: None
    ) -> None:  # fmt: skip
        self._kept, self._spool, self._ledger, self._told = kept, spool, ledger, told

    def sweep(self, now: float) -> int:
        """Remove the files of some studies; returns how many, so that the caller may come back for more.

        A study is marked first, in the ledger, so that a kill in the midst of it leaves nothing half-known: the next
        call goes on there. Raises OSError where a file cannot be removed.
        """
        for study in self._over_age(now):
            _begin_emptying(self._ledger, study)
        done = self._finish("age")
        for study in self._over_size(now):
            _begin_emptying(self._ledger, study)
            done += self._finish("size")
            if not self._too_large():
                break
        return done

    def _over_age(self, now: float) -> list[str]:
        return _removable(self._ledger, now - self._kept.days * _DAY, _AT_ONCE)

    def _over_size(self, now: float) -> list[str]:
        return _removable(self._ledger, now, _AT_ONCE) if self._too_large() else []

    def _too_large(self) -> bool:
        limit = self._kept.gigabytes
        return limit is not None and kept_bytes(self._ledger) > limit * _GIGABYTE

    def _finish(self, why: str) -> int:
        waiting = emptying(self._ledger)
        for study, files, size in waiting:
            for file in files:
                self._spool.remove(file)
            if any((self._spool.root / file).exists() for file in files):
                raise OSError(errno.EPERM, "a file of it cannot be removed")
            _emptied(self._ledger, study)
            self._told("emptied", study=pseudonym(study), reason=why, files=len(files), bytes=size)
        return len(waiting)


def kept_bytes(ledger: Ledger) -> int:
    """What the files of all studies take that are in the spool."""
    parts = [
        f"SELECT coalesce(sum(size), 0) AS many FROM {table} JOIN studies ON uid = study_uid WHERE emptied = 0"
        for table in ("instances", "results")
    ]
    return sum(int(ledger.rows(part)[0]["many"]) for part in parts)


def _removable(ledger: Ledger, before: float, most: int) -> list[str]:
    """Studies of which nothing changed since `before` and nothing is owed any more, the oldest first.

    Answered ones of which every destination confirmed every result; and those that never had an image.
    """
    rows = ledger.rows(f"SELECT uid FROM studies WHERE changed <= ? AND {_FREE} ORDER BY changed LIMIT ?", before, most)
    return [str(row["uid"]) for row in rows]


def _begin_emptying(ledger: Ledger, study_uid: str) -> bool:
    """From now on no image of the study is new; False where something came or is owed since it was listed."""
    with ledger.change() as db:
        return bool(db.execute(f"UPDATE studies SET emptied = 1 WHERE uid = ? AND {_FREE}", (study_uid,)).rowcount)


def emptying(ledger: Ledger) -> list[tuple[str, list[str], int]]:
    """Studies whose files are being removed, with these files and their bytes."""
    found = []
    for row in ledger.rows("SELECT uid FROM studies WHERE emptied = 1"):
        files = ledger.rows(
            "SELECT file, size FROM instances WHERE study_uid = ?1 UNION ALL "
            "SELECT file, size FROM results WHERE study_uid = ?1",
            row["uid"],
        )
        found.append((str(row["uid"]), [str(one["file"]) for one in files], sum(int(one["size"]) for one in files)))
    return found


def _emptied(ledger: Ledger, study_uid: str) -> None:
    """The files of a study are gone; its rows stay, so that whatever comes of it again is known."""
    with ledger.change() as db:
        db.execute("UPDATE studies SET emptied = 2 WHERE uid = ? AND emptied = 1", (study_uid,))
