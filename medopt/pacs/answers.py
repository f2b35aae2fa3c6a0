"""The ledger's answers: what the release answered on each study, and what a candidate answered beside it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from medopt.pacs.ledger import DueStudy, Ledger
from medopt.pacs.worker_protocol import StudyRecord

TrialEnd = Literal["compared", "failed", "skipped"]
"""The candidate answered; it could not; it was not asked."""
TRIAL_STATES = ("waiting", "compared", "failed", "skipped")
MAX_TRIES = 3
"""A candidate that was at work on a study whenever the node ended without an end is not asked again."""
BACKLOG_FULL = "more studies waited than shadow.backlog allows"


@dataclass(frozen=True, slots=True)
class Trial:
    """A study that waits for the candidate. `images` are those that the release answered."""

    answer: int
    study_uid: str
    images: int


class AnswerLog:
    """Records answers; with a candidate, each of them waits for its answer, too. For the thread that answers."""

    def __init__(self, backlog: int = 0, candidate: Callable[[], str] = lambda: "") -> None:
        """`candidate` is the SHA-256 of the candidate's list of checksums; `backlog` 0: there is no candidate."""
        self._backlog, self._candidate = backlog, candidate

    def record(self, db: sqlite3.Connection, study: DueStudy, release: str, record: StudyRecord, now: float) -> None:
        """Add an answer inside the caller's transaction, and what waits for the candidate.

        An earlier answer of the study that still waits need not be compared: its images are among those of this one.
        """
        answer = db.execute(
            "INSERT INTO answers (study_uid, release, patient, accession, images, record, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (study.study_uid, release, record.patient, record.accession, len(study.images), record.model_dump_json(),
             now),
        ).lastrowid  # fmt: skip
        if not self._backlog:
            return
        db.execute(
            "UPDATE trials SET state = 'skipped', reason = 'more images of the study came', at = ?2 WHERE state = "
            "'waiting' AND answer IN (SELECT id FROM answers WHERE study_uid = ?1)",
            (study.study_uid, now),
        )
        waiting = db.execute("SELECT count(*) FROM trials WHERE state = 'waiting'").fetchone()[0]
        full = waiting >= self._backlog
        db.execute(
            "INSERT INTO trials (answer, candidate, state, reason, at) VALUES (?, ?, ?, ?, ?)",
            (answer, self._candidate(), "skipped" if full else "waiting", BACKLOG_FULL if full else "", now),
        )


class TrialQueue:
    """The studies that wait for the candidate. One object is used by one thread."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def is_release_busy(self) -> bool:
        """Whether a study waits for the release itself, or is being answered."""
        return bool(self._ledger.rows("SELECT 1 FROM studies WHERE state IN ('ready', 'working') LIMIT 1"))

    def take(self, now: float) -> Trial | None:
        """The study that has waited longest, None without one; that it was taken counts as a try until `give_back`."""
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE trials SET state = 'failed', reason = 'the node ended each time while the candidate was at "
                "work on it', at = ? WHERE state = 'waiting' AND tries >= ?",
                (now, MAX_TRIES),
            )
            row = db.execute(
                "SELECT answer, study_uid, images FROM trials JOIN answers ON id = answer WHERE state = 'waiting' "
                "ORDER BY tries, answer LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            db.execute("UPDATE trials SET tries = tries + 1 WHERE answer = ?", (row["answer"],))
        return Trial(row["answer"], row["study_uid"], row["images"])

    def give_back(self, trial: Trial) -> None:
        """The node stops in order: it was no try."""
        with self._ledger.transaction() as db:
            db.execute("UPDATE trials SET tries = tries - 1 WHERE answer = ? AND state = 'waiting'", (trial.answer,))

    def end(
        self, trial: Trial, candidate: str, state: TrialEnd, reason: str, record: StudyRecord | None, now: float
    ) -> None:
        """How a trial ended, by which candidate; a record that a newer answer skipped meanwhile stays skipped."""
        text = "" if record is None else record.model_dump_json()
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE trials SET state = ?, reason = ?, record = ?, candidate = ?, at = ? "
                "WHERE answer = ? AND state = 'waiting'",
                (state, reason, text, candidate, now, trial.answer),
            )

    def abandon(self, now: float) -> int:
        """The node file names no candidate any more: nothing waits for one. Returns how many studies did."""
        with self._ledger.transaction() as db:
            return db.execute(
                "UPDATE trials SET state = 'skipped', reason = 'the node file names no candidate any more', at = ? "
                "WHERE state = 'waiting'",
                (now,),
            ).rowcount


def trial_counts(read: Callable[[str], sqlite3.Cursor | list[sqlite3.Row]]) -> Mapping[str, int]:
    """How many studies are in each of TRIAL_STATES; empty where there never was a candidate."""
    found = Counter({row["state"]: row["number"] for row in read("SELECT state, count(*) AS number FROM trials "
                                                                 "GROUP BY state")})  # fmt: skip
    return {state: found[state] for state in TRIAL_STATES} if found else {}
