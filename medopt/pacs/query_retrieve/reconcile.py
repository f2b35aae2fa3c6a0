"""Compares a PACS with the ledger, and fetches the instances that the ledger does not know."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Protocol

from medopt.pacs.peers import PeerError, PeerGone

Stopping = Callable[[], bool]
MAX_STUDIES = 20_000
_UIDS_PER_QUERY = 500
_MAX_INTERVAL = 24
"""An instance that does not arrive, for example because the node refuses it, is fetched less and less often: in the end
in every 24th comparison."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The UIDs that a source lists, each once."""

    uids: tuple[str, ...]
    invalid: int = 0
    """Entries without a valid UID (PS3.5 9.1), which this node would not accept either."""
    cut: bool = False
    """Whether the source left entries off and does not give them."""


class StudySource(Protocol):
    """A PACS, by whichever protocol. Every method raises PeerError; PeerGone where it cannot be asked any longer."""

    def studies(self, since: date, modality: str) -> Listing:
        """The studies of a day or later that may hold series of a modality."""

    def series(self, study_uid: str, modality: str) -> Listing:
        """A study's series of one modality."""

    def instances(self, study_uid: str, series_uid: str) -> Listing:
        """A series' instances."""

    def fetch(self, study_uid: str, series_uid: str, instances: Sequence[str]) -> None:
        """Have instances sent to the node, or, if none is named, the whole series; returns when that has ended."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A series of which instances are missing here; `whole`: all of them are."""

    study_uid: str
    series_uid: str
    missing: tuple[str, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The outcome of a comparison; all numbers but `studies` count instances."""

    studies: int
    present: int
    missing: int
    put_off: int
    """Also missing, but fetched in vain before, and not tried in this comparison."""
    fetched: int
    reason: str = ""
    """Why something could not be fetched, if the source said so."""
    not_compared: Mapping[str, int] = field(default_factory=dict)
    """What the source holds and could not be compared: for each reason, in how many cases."""

    @property
    def still_missing(self) -> int:
        """Instances that were requested and did not arrive."""
        return self.missing - self.fetched


class Reconciler:
    """Compares a PACS with a ledger's file, as often as it is called. Nothing of this outlives the process."""

    def __init__(self, ledger: Path, modalities: Sequence[str]) -> None:
        self._ledger, self._modalities = ledger, modalities
        self._comparisons = 0
        self._failures: Counter[str] = Counter()
        self._next_try: dict[str, int] = {}

    def reconcile(self, source: StudySource, since: date, stopping: Stopping, *, fetch: bool = True) -> Reconciliation:
        """One comparison, then one attempt to fetch each gap; raises PeerError, sqlite3.Error."""
        self._comparisons += 1
        studies, known, put_off, gaps = 0, 0, 0, list[Gap]()
        not_compared: Counter[str] = Counter()
        for modality in self._modalities:
            for study_uid in _counted(source.studies(since, modality), "study", not_compared):
                studies += 1
                for series_uid, instances in _instances(source, study_uid, modality, not_compared):
                    present = self._known(instances)
                    missing = [uid for uid in instances if uid not in present and self._is_due(uid)]
                    known += len(present)
                    put_off += len(instances) - len(present) - len(missing)
                    if missing:
                        gaps.append(Gap(study_uid, series_uid, tuple(missing), len(missing) == len(instances)))
        fetched, reason = self._fetch_all(source, gaps, stopping) if fetch else (0, "")
        missing_count = sum(len(gap.missing) for gap in gaps)
        return Reconciliation(studies, known, missing_count, put_off, fetched, reason, dict(not_compared))

    def _is_due(self, sop_uid: str) -> bool:
        return self._next_try.get(sop_uid, 0) <= self._comparisons

    def _fetch_all(self, source: StudySource, gaps: Sequence[Gap], stopping: Stopping) -> tuple[int, str]:
        """Fetch each gap by itself: how many instances arrived, and the first reason why some did not."""
        fetched, reason = 0, ""
        for gap in gaps:
            if stopping():
                break
            gone = False
            try:
                source.fetch(gap.study_uid, gap.series_uid, () if gap.whole else gap.missing)
            except PeerError as error:
                reason, gone = reason or str(error), isinstance(error, PeerGone)
            arrived = self._known(gap.missing)
            fetched += len(arrived)
            for sop_uid in gap.missing:
                if sop_uid in arrived:
                    self._failures.pop(sop_uid, None)
                    self._next_try.pop(sop_uid, None)
                else:
                    self._failures[sop_uid] += 1
                    interval = min(2 ** (self._failures[sop_uid] - 1), _MAX_INTERVAL)
                    self._next_try[sop_uid] = self._comparisons + interval
            if gone:  # the gaps that were not tried are due in the next comparison
                break
        return fetched, reason

    def _known(self, instances: Sequence[str]) -> Collection[str]:
        """The instances that the ledger knows, as received ones or as results of the node."""
        known: set[str] = set()
        with closing(sqlite3.connect(self._ledger, timeout=10, isolation_level=None)) as db:
            db.execute("PRAGMA query_only=ON")
            for start in range(0, len(instances), _UIDS_PER_QUERY):
                batch = instances[start : start + _UIDS_PER_QUERY]
                marks = ",".join("?" * len(batch))
                for table in ("instances", "results"):
                    rows = db.execute(f"SELECT sop_uid FROM {table} WHERE sop_uid IN ({marks})", batch)
                    known.update(row[0] for row in rows)
        return known


def _counted(listing: Listing, what: str, not_compared: Counter[str]) -> tuple[str, ...]:
    """The UIDs of a list; what it does not hold is counted with its reason."""
    if listing.invalid:
        not_compared[f"a {what} without a valid UID (PS3.5 9.1)"] += listing.invalid
    if listing.cut:
        not_compared[f"the source cuts its list off ({what} level): take fewer days, or raise its limit"] += 1
    return listing.uids


def _instances(
    source: StudySource, study_uid: str, modality: str, not_compared: Counter[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The series of a study with their instances. A study that the source does not describe is counted and left."""
    try:
        for series_uid in _counted(source.series(study_uid, modality), "series", not_compared):
            yield series_uid, _counted(source.instances(study_uid, series_uid), "instance", not_compared)
    except PeerGone:
        raise
    except PeerError as error:
        not_compared[f"a study of which {error}"] += 1
