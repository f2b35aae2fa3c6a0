"""The studies that wait for a candidate: bounded, counted, and never asked for ever."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from medopt.pacs.answers import BACKLOG_FULL, MAX_TRIES, AnswerLog, TrialQueue, trial_counts
from medopt.pacs.ledger import Instance, Ledger
from medopt.pacs.schema import STEPS
from medopt.pacs.worker_protocol import StudyRecord

RECORD = StudyRecord(patient="p", accession="a", site="s", device="d", scans=(), seconds=1, cpu_seconds=1, memory_mb=1)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    opened = Ledger(Path(":memory:"))
    yield opened
    opened.close()


def answer(ledger: Ledger, log: AnswerLog, study: str, images: int = 1) -> None:
    """Receive so many images of a study in all, and answer it."""
    for number in range(images):
        uid = f"{study}.{number}"
        ledger.record(Instance(uid, study, "c", "t", "d", 1, f"studies/{uid}", True), 1, late=True)
    ledger.complete(study, 2)
    due = ledger.take(3)
    assert due is not None
    ledger.finish(due, "done", "", [], [], 4, partial(log.record, study=due, release="r", record=RECORD, now=4))


def states(ledger: Ledger) -> list[tuple[str, str]]:
    rows = ledger.rows("SELECT state, reason FROM trials ORDER BY answer")
    return [(row["state"], row["reason"]) for row in rows]


def test_without_a_candidate_nothing_waits(ledger: Ledger) -> None:
    answer(ledger, AnswerLog(), "1.1")
    assert len(ledger.rows("SELECT * FROM answers")) == 1
    assert states(ledger) == [] and trial_counts(ledger.rows) == {}


def test_what_the_backlog_does_not_hold_is_counted_as_skipped(ledger: Ledger) -> None:
    log = AnswerLog(2, lambda: "candidate")
    for number in range(5):
        answer(ledger, log, f"1.{number}")
    assert states(ledger) == [("waiting", "")] * 2 + [("skipped", BACKLOG_FULL)] * 3
    assert trial_counts(ledger.rows) == {"waiting": 2, "compared": 0, "failed": 0, "skipped": 3}


def test_the_candidate_is_asked_on_the_last_answer_of_a_study_alone(ledger: Ledger) -> None:
    log = AnswerLog(9, lambda: "candidate")
    answer(ledger, log, "1.1")
    answer(ledger, log, "1.1", images=2)
    assert states(ledger) == [("skipped", "more images of the study came"), ("waiting", "")]
    trial = TrialQueue(ledger).take(5)
    assert trial is not None and trial.images == 2


def test_a_candidate_that_takes_the_node_down_is_not_asked_for_ever(ledger: Ledger) -> None:
    log, queue = AnswerLog(9, lambda: "candidate"), TrialQueue(ledger)
    answer(ledger, log, "1.1")
    answer(ledger, log, "1.2")
    first = queue.take(5)
    assert first is not None
    queue.give_back(first)  # the node stopped in order
    for _ in range(2 * MAX_TRIES):  # it was killed each time: nobody gave it back; both studies get a turn
        assert queue.take(6) is not None
    assert queue.take(7) is None
    assert [state for state, _ in states(ledger)] == ["failed", "failed"]


def test_an_end_is_kept_and_a_study_that_was_skipped_meanwhile_stays_so(ledger: Ledger) -> None:
    log, queue = AnswerLog(9, lambda: "candidate"), TrialQueue(ledger)
    answer(ledger, log, "1.1")
    trial = queue.take(5)
    assert trial is not None
    answer(ledger, log, "1.1", images=2)
    queue.end(trial, "other", "compared", "", RECORD, 6)
    again = queue.take(7)
    assert again is not None and again.answer != trial.answer
    queue.end(again, "other", "compared", "", RECORD, 8)
    assert [state for state, _ in states(ledger)] == ["skipped", "compared"]
    (row,) = ledger.rows("SELECT candidate, record FROM trials WHERE state = 'compared'")
    assert row["candidate"] == "other" and StudyRecord.model_validate_json(row["record"]) == RECORD


def test_without_the_section_in_the_node_file_nothing_waits_any_more(ledger: Ledger) -> None:
    answer(ledger, AnswerLog(9, lambda: "candidate"), "1.1")
    assert TrialQueue(ledger).abandon(9) == 1
    assert states(ledger) == [("skipped", "the node file names no candidate any more")]


def test_while_a_study_waits_for_the_release_the_candidate_is_not_asked(ledger: Ledger) -> None:
    queue = TrialQueue(ledger)
    assert not queue.is_release_busy()
    ledger.record(Instance("1.1.1", "1.1", "c", "t", "d", 1, "f", True), 1, late=True)
    assert not queue.is_release_busy()  # it is still coming in
    ledger.complete("1.1", 2)
    assert queue.is_release_busy()
    assert ledger.take(3) is not None
    assert queue.is_release_busy()


def test_an_answer_and_its_trial_are_kept_with_the_results_or_not_at_all(ledger: Ledger) -> None:
    log = AnswerLog(9, lambda: "candidate")
    ledger.record(Instance("1.1.1", "1.1", "c", "t", "d", 1, "f", True), 1, late=True)
    ledger.complete("1.1", 2)
    due = ledger.take(3)
    assert due is not None

    def fail(db: sqlite3.Connection) -> None:
        log.record(db, due, "r", RECORD, 4)
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError):
        ledger.finish(due, "done", "", [], [], 4, fail)
    assert ledger.state("1.1") == "working" and states(ledger) == []


def test_a_ledger_of_the_version_before_gets_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as db:
        for step in STEPS[:3]:
            for statement in step:
                db.execute(statement)
        db.execute("PRAGMA user_version = 3")
        db.execute("INSERT INTO studies (uid, state, changed) VALUES ('1.1', 'done', 1)")
    db.close()
    ledger = Ledger(path)
    assert ledger.state("1.1") == "done" and trial_counts(ledger.rows) == {}
    ledger.close()
