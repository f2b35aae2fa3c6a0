"""The ledger against a model of it: every call in every state, and after each of them every row."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from medopt.pacs.ledger import DueStudy, Instance, Ledger, Result
from medopt.pacs.retention import _mark, _record_removed

STUDIES = ("1.1", "1.2", "1.3")
IMAGE, REPORT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.11"
studies, numbers = st.sampled_from(STUDIES), st.integers(1, 5)


def instance(study: str, number: int, *, digest: str = "first") -> Instance:
    """Numbers 4 and 5 of a study are reports."""
    uid, image = f"{study}.{number}", number < 4
    return Instance(uid, study, IMAGE if image else REPORT, "1.2", digest, 10 * number, f"studies/{uid}", image)


@dataclass
class Study:
    """What the model knows of a study; `images` and `reports` are numbers of instances."""

    changed: float
    state: str = "receiving"
    tries: int = 0
    reason: str = ""
    emptied: int = 0
    images: set[int] = field(default_factory=set)
    reports: set[int] = field(default_factory=set)


class LedgerStates(RuleBasedStateMachine):
    """The ledger, and a dictionary of studies beside it."""

    @initialize()
    def begin(self) -> None:
        self.ledger = Ledger(Path(":memory:"))
        self.model: dict[str, Study] = {}
        self.taken: list[DueStudy] = []
        self.results: dict[str, tuple[Result, float]] = {}
        self.sends: dict[tuple[str, str], float] = {}
        self.now = 1000.0

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()

    def expected(self, study_uid: str, number: int, digest: str, *, late: bool) -> str:
        study = self.model.get(study_uid)
        if study is None:
            return "new"
        if number in study.images | study.reports:
            return "known" if digest == "first" else "conflict"
        if not study.images:
            return "new"  # it was never answered
        if study.emptied and study.state != "receiving":
            return "removed"
        if number < 4 and not late and study.state in ("working", "done", "declined"):
            return "late"
        return "new"

    @rule(study_uid=studies, number=numbers, digest=st.sampled_from(["first", "first", "second"]), late=st.booleans())
    def record(self, study_uid: str, number: int, digest: str, late: bool) -> None:
        self.now += 1
        expected = self.expected(study_uid, number, digest, late=late)
        received = instance(study_uid, number, digest=digest if expected == "conflict" else "first")
        before = self.ledger.rows("SELECT * FROM instances")
        assert self.ledger.classify(received, late=late) == expected
        assert self.ledger.rows("SELECT * FROM instances") == before
        if expected == "new":
            received = instance(study_uid, number)
        assert self.ledger.record(received, self.now, late=late) == expected
        if expected != "new":
            return
        study = self.model.setdefault(study_uid, Study(self.now))
        if number < 4:
            study.images.add(number)
            if study.state != "working":
                self.model[study_uid] = Study(self.now, images=study.images, reports=study.reports)
        else:
            study.reports.add(number)
            if study.emptied:
                study.state, study.changed, study.emptied = "receiving", self.now, 0

    @rule(study_uid=studies)
    def complete(self, study_uid: str) -> None:
        self.now += 1
        self.ledger.complete(study_uid, self.now)
        study = self.model.get(study_uid)
        if study and study.state == "receiving":
            study.state, study.changed = "ready", self.now

    @rule()
    def take(self) -> None:
        self.now += 1
        ready = [(study.tries, study.changed, uid) for uid, study in self.model.items() if study.state == "ready"]
        due = self.ledger.take(self.now)
        if not ready:
            assert due is None
            return
        tries, _, uid = min(ready)  # a study that fails again and again does not keep the others waiting
        study = self.model[uid]
        assert due == DueStudy(uid, tries, tuple(instance(uid, number) for number in sorted(study.images)))
        study.state, study.changed = "working", self.now
        self.taken.append(due)

    @rule(study_uid=studies, failure=st.sampled_from(["", "it ended", "it ended again"]))
    def hand_back(self, study_uid: str, failure: str) -> None:
        self.now += 1
        self.ledger.hand_back(study_uid, self.now, failure=failure)
        study = self.model.get(study_uid)
        if study and study.state == "working":
            study.state, study.changed, study.reason = "ready", self.now, failure
            study.tries += bool(failure)

    @rule()
    def start_again(self) -> None:
        self.now += 1
        working = [study for study in self.model.values() if study.state == "working"]
        assert self.ledger.recover(self.now) == len(working)
        for study in working:
            study.state, study.changed = "ready", self.now
        self.taken.clear()

    @rule(
        ending=st.sampled_from(["done", "declined", "parked"]),
        made=st.sets(st.integers(1, 3), max_size=2),
        destinations=st.sampled_from([(), ("A",), ("A", "B")]),
    )
    def finish(self, ending: str, made: set[int], destinations: tuple[str, ...]) -> None:
        working = [due for due in self.taken if self.model[due.study_uid].state == "working"]
        if not working:
            return
        self.now += 1
        due = working[-1]
        self.taken.remove(due)
        uid = due.study_uid
        results = [Result(f"2.{uid}.{n}", uid, "c", "report", f"results/{uid}.{n}", f"d{n}", "s", n) for n in made]
        new = [result for result in results if result.sop_uid not in self.results]
        assert self.ledger.finish(due, ending, "why", results, destinations, self.now) == new  # type: ignore[arg-type]
        for result in new:
            self.results[result.sop_uid] = (result, self.now)
            self.sends |= {(result.sop_uid, name): self.now for name in destinations}
        study = self.model[uid]
        more = len(study.images) > len(due.images)
        study.state, study.reason = ("receiving", "") if more else (ending, "why")
        study.changed, study.tries = self.now, 0

    @rule(study_uid=studies, then_empty=st.booleans())
    def answer(self, study_uid: str, then_empty: bool) -> None:
        """The whole way, which single steps rarely go."""
        self.complete(study_uid)
        while any(study.state == "ready" for study in self.model.values()):
            self.take()
            self.finish("done", set(), ())
        if then_empty:
            self.empty(study_uid, True)

    @rule(study_uid=studies, whole=st.booleans())
    def empty(self, study_uid: str, whole: bool) -> None:
        """Retention removes answered studies and those without images."""
        study = self.model.get(study_uid)
        pending = any(sop_uid.startswith(f"2.{study_uid}.") for sop_uid, _ in self.sends)
        _mark(self.ledger, study_uid)
        if study and not pending and not study.emptied:
            removable = study.state in ("done", "declined") or (study.state == "receiving" and not study.images)
            study.emptied = 1 if removable else 0
        if whole:
            _record_removed(self.ledger, study_uid)
            if study and study.emptied == 1:
                study.emptied = 2

    @invariant()
    def every_row_is_the_models(self) -> None:
        if not hasattr(self, "ledger"):
            return
        rows = self.ledger.rows("SELECT uid, state, tries, reason, changed, emptied FROM studies ORDER BY uid")
        assert [tuple(row) for row in rows] == [
            (uid, study.state, study.tries, study.reason, study.changed, study.emptied)
            for uid, study in sorted(self.model.items())
        ]
        receiving = {uid for uid, one in self.model.items() if one.state == "receiving" and not one.emptied}
        assert set(self.ledger.receiving()) == receiving
        for uid in STUDIES:
            study = self.model.get(uid, Study(0, state=""))
            assert self.ledger.state(uid) == study.state
            assert self.ledger.images(uid) == tuple(instance(uid, number) for number in sorted(study.images))
            for number in range(1, 6):
                known = number in study.images | study.reports
                assert self.ledger.instance(f"{uid}.{number}") == (instance(uid, number) if known else None)
            own = [(made, result) for result, made in self.results.values() if result.study_uid == uid]
            assert self.ledger.results(uid) == [result for _, result in sorted(own, key=lambda pair: pair[0])]
            assert all(self.ledger.is_result(result.sop_uid) for _, result in own)
            assert not self.ledger.is_result(f"2.{uid}.9")
        sends = self.ledger.rows("SELECT sop_uid, destination, state, attempts, due FROM sends")
        assert {tuple(row) for row in sends} == {(*key, "waiting", 0, due) for key, due in self.sends.items()}


LedgerStates.TestCase.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
TestLedgerStates = LedgerStates.TestCase


def test_a_failing_study_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for study in STUDIES[:2]:
        ledger.record(instance(study, 1), 1, late=True)
        ledger.complete(study, 2)
    order = []
    for now in range(3, 7):
        due = ledger.take(now)
        assert due is not None
        order.append((due.study_uid, due.tries))
        ledger.hand_back(due.study_uid, now, failure="it ended" if due.study_uid == "1.1" else "")
    assert order == [("1.1", 0), ("1.2", 0), ("1.2", 0), ("1.2", 0)]


def answered(path: Path) -> Ledger:
    """One study of one image, answered."""
    ledger = Ledger(path)
    ledger.record(instance("1.1", 1), 1, late=True)
    ledger.complete("1.1", 2)
    due = ledger.take(3)
    assert due is not None
    ledger.finish(due, "done", "", [], [], 4)
    return ledger


def test_what_was_asked_of_an_answered_study_changes_nothing(tmp_path: Path) -> None:
    ledger = answered(tmp_path / "ledger.db")
    ledger.complete("1.1", 5)
    ledger.hand_back("1.1", 6, failure="too late")
    assert ledger.recover(7) == 0
    assert [tuple(row) for row in ledger.rows("SELECT state, changed, reason, tries FROM studies")] == [
        ("done", 4.0, "", 0)
    ]


def test_a_transaction_is_kept_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(path)
    insert = "INSERT INTO studies (uid, state, changed) VALUES (?, 'ready', 1)"
    with pytest.raises(ValueError, match="half-way"), ledger.transaction() as db:
        db.execute(insert, ("1.1",))
        raise ValueError("half-way")
    with pytest.raises(ValueError, match="the disk was full"), ledger.transaction() as db:
        db.execute(insert, ("1.2",))
        db.execute("ROLLBACK")  # as SQLite does itself where a disk is full
        raise ValueError("the disk was full")
    with ledger.transaction() as db:
        db.execute(insert, ("1.3",))
    ledger.close()
    assert sqlite3.connect(path).execute("SELECT uid FROM studies").fetchall() == [("1.3",)]
    with pytest.raises(sqlite3.ProgrammingError):
        ledger.state("1.3")


def test_a_result_of_an_unknown_study_is_refused_with_all_that_came_with_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    result = Result("2.1", "9.9", "c", "report", "results/1", "d")
    with pytest.raises(sqlite3.IntegrityError):
        ledger.finish(DueStudy("9.9", 0, ()), "done", "", [result], ["A"], 1)
    assert (ledger.results("9.9"), ledger.rows("SELECT * FROM sends")) == ([], [])
    assert result.size == 0


def test_who_begins_a_transaction_has_the_file_and_other_threads_wait(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger, order = Ledger(path), []
    other = sqlite3.connect(path, timeout=0, isolation_level=None)

    def read() -> None:
        ledger.state("1.1")
        order.append("read")

    thread = threading.Thread(target=read)
    with ledger.transaction():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        thread.start()
        thread.join(0.05)
        order.append("commit")
    thread.join(5)
    assert order == ["commit", "read"]
    other.execute("BEGIN IMMEDIATE")


def test_the_ledger_is_committed_with_full_flushes_in_a_log(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    pragmas = {name: ledger.rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "foreign_keys")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_what_comes_for_a_study_whose_files_are_gone(tmp_path: Path) -> None:
    ledger = answered(tmp_path / "ledger.db")
    for emptied in (1, 2):
        with ledger.transaction() as db:
            db.execute("UPDATE studies SET emptied = ?", (emptied,))
        for number in (2, 4):
            assert ledger.record(instance("1.1", number), 5, late=True) == "removed"
        assert ledger.record(instance("1.1", 1), 5, late=True) == "known"
        assert ledger.receiving() == []


def test_a_report_for_a_study_of_reports_that_was_removed_counts_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.record(instance("1.1", 4), 1, late=True)
    ledger.record(instance("1.2", 4), 2, late=True)
    _mark(ledger, "1.1")
    assert ledger.receiving() == ["1.2"]
    _record_removed(ledger, "1.1")
    assert ledger.record(instance("1.1", 5), 3, late=True) == "new"
    assert ledger.record(instance("1.2", 5), 4, late=True) == "new"
    rows = ledger.rows("SELECT uid, state, changed, emptied FROM studies ORDER BY uid")
    assert [tuple(row) for row in rows] == [("1.1", "receiving", 3.0, 0), ("1.2", "receiving", 2.0, 0)]


def test_a_study_that_had_no_image_was_not_answered(tmp_path: Path) -> None:
    """It ended without an answer; its first image is neither late nor of a study that was removed."""
    ledger = Ledger(tmp_path / "ledger.db")
    for study in STUDIES[:2]:
        ledger.record(instance(study, 4), 1, late=False)
        ledger.complete(study, 2)
        due = ledger.take(3)
        assert due is not None and due.images == ()
        ledger.finish(due, "declined", "no image", [], [], 4)
    with ledger.transaction() as db:
        db.execute("UPDATE studies SET emptied = 2 WHERE uid = '1.2'")
    for study in STUDIES[:2]:
        assert ledger.classify(instance(study, 1), late=False) == "new"
        assert ledger.record(instance(study, 1), 5, late=False) == "new"
        assert ledger.receiving() == [study]
        ledger.complete(study, 6)
