"""What a PACS has and the ledger does not: found, fetched, and looked for again."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from medopt.imaging.dicom_file import quiet_pydicom
from medopt.pacs.errors import PeerError
from medopt.pacs.query_retrieve.source import Stopping, StudySource

_AT_ONCE = 500
_SELDOM = 24
"""An instance that does not arrive, as when the node refuses it, is asked for ever more seldom: at last in every 24th
comparison."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A series of which instances are missing here; `whole`: all of them are."""

    study: str
    series: str
    missing: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Reconciled:
    """How a comparison went, in instances but for `studies`."""

    studies: int
    known: int
    missing: int
    put_off: int
    """Missing, too, but asked for in vain before, and not in this comparison."""
    fetched: int
    reason: str = ""
    """Why something could not be fetched, where the source said so."""

    @property
    def still_missing(self) -> int:
        """Asked for, and not here."""
        return self.missing - self.fetched


class Reconciler:
    """Compares a PACS with a ledger's file, again and again. Nothing of it outlives the process."""

    def __init__(self, ledger: Path, modalities: Sequence[str]) -> None:
        self._ledger, self._modalities = ledger, modalities
        self._runs = 0
        self._tries: Counter[str] = Counter()
        self._next: dict[str, int] = {}

    @quiet_pydicom()
    def reconcile(self, source: StudySource, since: date, stopping: Stopping, *, fetch: bool = True) -> Reconciled:
        """One comparison, then one attempt to fetch each gap; raises Unanswered, sqlite3.Error."""
        self._runs += 1
        studies, known, put_off, gaps = 0, 0, 0, list[Gap]()
        for modality in self._modalities:
            for study in source.studies(since, modality):
                studies += 1
                for series in source.series(study, modality):
                    there = source.instances(study, series)
                    here = self._here(there)
                    wanted = [one for one in there if one not in here and self._next.get(one, 0) <= self._runs]
                    known += len(here)
                    put_off += len(there) - len(here) - len(wanted)
                    if wanted:
                        gaps.append(Gap(study, series, tuple(wanted), len(wanted) == len(there)))
        fetched, reason = self._fetch_all(source, gaps, stopping) if fetch else (0, "")
        return Reconciled(studies, known, sum(len(gap.missing) for gap in gaps), put_off, fetched, reason)

    def _fetch_all(self, source: StudySource, gaps: Sequence[Gap], stopping: Stopping) -> tuple[int, str]:
        """Each gap by itself: how many instances came, and the first reason why some did not."""
        fetched, reason = 0, ""
        for gap in gaps:
            if stopping():
                break
            try:
                source.fetch(gap.study, gap.series, () if gap.whole else gap.missing)
            except PeerError as unanswered:
                reason = reason or str(unanswered)
            came = self._here(gap.missing)
            fetched += len(came)
            for one in gap.missing:
                if one in came:
                    self._tries.pop(one, None)
                    self._next.pop(one, None)
                else:
                    self._tries[one] += 1
                    self._next[one] = self._runs + min(2 ** (self._tries[one] - 1), _SELDOM)
        return fetched, reason

    def _here(self, instances: Sequence[str]) -> Collection[str]:
        """Those that the ledger knows, as images or as results of its own."""
        found: set[str] = set()
        with closing(sqlite3.connect(self._ledger, timeout=10, isolation_level=None)) as db:
            db.execute("PRAGMA query_only=ON")
            for first in range(0, len(instances), _AT_ONCE):
                some = instances[first : first + _AT_ONCE]
                marks = ",".join("?" * len(some))
                for table in ("instances", "results"):
                    rows = db.execute(f"SELECT sop_uid FROM {table} WHERE sop_uid IN ({marks})", some)
                    found.update(row[0] for row in rows)
        return found
