"""Removes studies from the spool whose results every destination has, by age and by size."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from medopt.core.privacy import pseudonym
from medopt.pacs.audit import AuditTrail, no_audit
from medopt.pacs.ledger import Ledger
from medopt.pacs.settings import RetentionSettings
from medopt.pacs.spool import Spool

_DAY = 86_400.0
_GIGABYTE = 1_000_000_000
_STUDIES_AT_ONCE = 20
# Answered studies whose results every destination has; and studies that never had an image.
_REMOVABLE = (
    "emptied = 0 AND (state IN ('done', 'declined') OR (state = 'receiving' AND NOT EXISTS (SELECT 1 FROM instances "
    "WHERE study_uid = uid AND image))) AND NOT EXISTS (SELECT 1 FROM results JOIN sends USING (sop_uid) "
    "WHERE study_uid = uid AND sends.state != 'sent')"
)


@dataclass(frozen=True, slots=True)
class MarkedStudy:
    """A study that is marked in the ledger for removal, its files below the spool, and their bytes."""

    study_uid: str
    files: tuple[str, ...]
    size: int


class Sweeper:
    """Removes from the spool what need not be kept any longer. One object is used by one thread."""

    def __init__(self, settings: RetentionSettings, spool: Spool, ledger: Ledger, audit: AuditTrail = no_audit) -> None:
        self._settings, self._spool, self._ledger, self._audit = settings, spool, ledger, audit

    def sweep(self, now: float) -> int:
        """Remove the files of some studies; returns how many studies, so that the caller may call again.

        A study is first marked in the ledger, so that a kill leaves no half-removed study behind: the next call
        continues. Raises OSError where a file cannot be removed.
        """
        for study_uid in _removable(self._ledger, now - self._settings.days * _DAY):
            _mark(self._ledger, study_uid)
        removed = self._remove_marked("age")
        for study_uid in _removable(self._ledger, now) if self._is_too_large() else []:
            _mark(self._ledger, study_uid)
            removed += self._remove_marked("size")
            if not self._is_too_large():
                break
        return removed

    def _is_too_large(self) -> bool:
        limit = self._settings.gigabytes
        return limit is not None and spool_bytes(self._ledger) > limit * _GIGABYTE

    def _remove_marked(self, reason: str) -> int:
        marked = marked_studies(self._ledger)
        for study in marked:
            for file in study.files:
                self._spool.remove(file)
            if any((self._spool.root / file).exists() for file in study.files):
                raise OSError(errno.EPERM, "a file of it cannot be removed")
            _record_removed(self._ledger, study.study_uid)
            self._audit(
                "emptied", study=pseudonym(study.study_uid), reason=reason, files=len(study.files), bytes=study.size
            )
        return len(marked)


def spool_bytes(ledger: Ledger) -> int:
    """Bytes of the files of all studies that are in the spool."""
    queries = [
        f"SELECT coalesce(sum(size), 0) AS bytes FROM {table} JOIN studies ON uid = study_uid WHERE emptied = 0"
        for table in ("instances", "results")
    ]
    return sum(int(ledger.rows(query)[0]["bytes"]) for query in queries)


def _removable(ledger: Ledger, before: float) -> list[str]:
    """Some studies that have not changed since `before` and have nothing pending, the oldest first."""
    query = f"SELECT uid FROM studies WHERE changed <= ? AND {_REMOVABLE} ORDER BY changed LIMIT ?"
    return [str(row["uid"]) for row in ledger.rows(query, before, _STUDIES_AT_ONCE)]


def _mark(ledger: Ledger, study_uid: str) -> None:
    """From now on no image of the study is new. Nothing happens if something came since the study was listed."""
    with ledger.transaction() as db:
        db.execute(f"UPDATE studies SET emptied = 1 WHERE uid = ? AND {_REMOVABLE}", (study_uid,))


def marked_studies(ledger: Ledger) -> list[MarkedStudy]:
    """The studies whose files are being removed."""
    studies = []
    for row in ledger.rows("SELECT uid FROM studies WHERE emptied = 1"):
        files = ledger.rows(
            "SELECT file, size FROM instances WHERE study_uid = ?1 UNION ALL "
            "SELECT file, size FROM results WHERE study_uid = ?1",
            row["uid"],
        )
        names = tuple(str(file["file"]) for file in files)
        studies.append(MarkedStudy(str(row["uid"]), names, sum(int(file["size"]) for file in files)))
    return studies


def _record_removed(ledger: Ledger, study_uid: str) -> None:
    """The files of a study are removed; its rows stay, so that instances of it that come again are known."""
    with ledger.transaction() as db:
        db.execute("UPDATE studies SET emptied = 2 WHERE uid = ? AND emptied = 1", (study_uid,))
