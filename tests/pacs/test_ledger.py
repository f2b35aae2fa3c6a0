"""The ledger: what is committed stays, what is parked can be tried again, older files keep their content."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medopt.core.errors import ConfigError
from medopt.pacs.ledger import DueStudy, Instance, Ledger, Result
from medopt.pacs.schema import STEPS
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.status import parked_items, retry_parked, state_counts


def instance(number: int, study: str = "1.2.3", **changes: object) -> Instance:
    values = {
        "sop_uid": f"1.2.3.{number}",
        "study_uid": study,
        "sop_class": "1.2.840.10008.5.1.4.1.1.1.1",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "digest": f"digest {number}",
        "size": 100,
        "file": f"studies/{number}",
        "image": True,
    }
    return Instance(**(values | changes))  # type: ignore[arg-type]


def result(number: int, study: str = "1.2.3") -> Result:
    return Result(f"2.25.{number}", study, "1.2.840.10008.5.1.4.1.1.88.34", "report", f"results/{number}", "d")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def take_study(ledger: Ledger, *numbers: int) -> DueStudy:
    """A study with these images, in the state working."""
    for number in numbers:
        assert ledger.record(instance(number), 1, late=True) == "new"
    ledger.complete("1.2.3", 2)
    due = ledger.take(3)
    assert due is not None
    return due


def test_an_instance_is_recorded_once(ledger: Ledger) -> None:
    first = instance(1)
    assert [ledger.record(first, now, late=True) for now in (1, 2)] == ["new", "known"]
    assert ledger.record(instance(1, digest="another"), 3, late=True) == "conflict"
    assert ledger.images("1.2.3") == (first,)


def test_a_study_from_its_images_to_its_sends(ledger: Ledger) -> None:
    study = take_study(ledger, 1, 2)
    assert (study.study_uid, study.tries, len(study.images), ledger.take(3)) == ("1.2.3", 0, 2, None)
    assert ledger.finish(study, "done", "", [result(1)], ["A", "B"], 4) == [result(1)]
    assert state_counts(ledger) == {"studies": {"done": 1}, "sends": {"waiting": 2}}
    assert ledger.is_result("2.25.1")
    first, second = SendQueue(ledger).due(4)
    SendQueue(ledger).confirm(first, 5)
    SendQueue(ledger).reschedule(second, "away", 60)
    assert (
        SendQueue(ledger).due(59),
        [(send.destination_name, send.attempts) for send in SendQueue(ledger).due(60)],
    ) == (
        [],
        [("B", 1)],
    )
    SendQueue(ledger).reschedule(second, "still away", None)
    assert parked_items(ledger) == [("1.2.3", "B", "still away")]
    assert retry_parked(ledger, 70) == (0, 1)
    assert [(send.destination_name, send.attempts) for send in SendQueue(ledger).due(70)] == [("B", 0)]


def test_a_known_result_is_not_sent_again(ledger: Ledger) -> None:
    ledger.finish(take_study(ledger, 1), "done", "", [result(1)], ["A"], 4)
    SendQueue(ledger).confirm(SendQueue(ledger).due(4)[0], 5)
    assert ledger.record(instance(2), 6, late=True) == "new"
    assert ledger.state("1.2.3") == "receiving"
    ledger.complete("1.2.3", 7)
    again = ledger.take(8)
    assert again is not None
    assert ledger.finish(again, "done", "", [result(1), result(2)], ["A"], 9) == [result(2)]
    assert [send.result for send in SendQueue(ledger).due(9)] == [result(2)]
    assert ledger.results("1.2.3") == [result(1), result(2)]


def test_images_during_the_work_put_the_study_back_to_receiving(ledger: Ledger) -> None:
    study = take_study(ledger, 1)
    assert ledger.record(instance(2), 4, late=True) == "new"
    assert ledger.state("1.2.3") == "working"
    ledger.finish(study, "done", "", [result(1)], ["A"], 5)
    assert ledger.receiving() == ["1.2.3"]


def test_late_images_are_refused_where_the_site_says_so(ledger: Ledger) -> None:
    ledger.finish(take_study(ledger, 1), "done", "", [], [], 4)
    assert ledger.record(instance(2), 5, late=False) == "late"
    assert ledger.record(instance(1), 5, late=False) == "known"
    assert (ledger.state("1.2.3"), len(ledger.images("1.2.3"))) == ("done", 1)


def test_an_instance_that_is_no_image_does_not_delay_a_study(ledger: Ledger) -> None:
    assert ledger.record(instance(9, image=False), 1, late=False) == "new"
    assert ledger.receiving() == ["1.2.3"]  # it ends without an answer if no image comes
    ledger.finish(take_study(ledger, 1), "done", "", [], [], 4)
    assert ledger.record(instance(8, image=False), 5, late=False) == "new"
    assert ledger.state("1.2.3") == "done"


def test_failed_tries_are_counted_and_parked_studies_tried_again(ledger: Ledger) -> None:
    study = take_study(ledger, 1)
    ledger.hand_back(study.study_uid, 4, failure="it ended")
    study = ledger.take(5)
    assert study is not None
    assert study.tries == 1
    ledger.finish(study, "parked", "it ended again", [], [], 6)
    assert (ledger.take(7), parked_items(ledger)) == (None, [("1.2.3", "study", "it ended again")])
    assert retry_parked(ledger, 8) == (1, 0)
    again = ledger.take(9)
    assert again is not None
    assert again.tries == 0


def test_studies_of_an_ended_process_are_ready_again(ledger: Ledger, tmp_path: Path) -> None:
    take_study(ledger, 1)
    ledger.close()
    again = Ledger(tmp_path / "ledger.db")
    assert again.recover(5) == 1
    study = again.take(6)
    assert study is not None
    assert study.tries == 0


@pytest.mark.parametrize("version", range(1, len(STEPS)))
def test_an_older_file_keeps_its_content(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.db"
    old = sqlite3.connect(path)
    for step in STEPS[:version]:
        for statement in step:
            old.execute(statement)
    old.execute("INSERT INTO studies (uid, state, changed) VALUES ('1.2.4', 'receiving', 1)")
    old.execute("INSERT INTO studies (uid, state, changed) VALUES ('1.2.3', 'done', 1)")
    old.execute("INSERT INTO instances VALUES ('1.2.3.1', '1.2.3', 'c', 't', 'digest 1', 100, 'studies/1', 1, 1)")
    old.execute(
        "INSERT INTO results (sop_uid, study_uid, sop_class, kind, file, digest, made) "
        "VALUES ('2.25.1', '1.2.3', 'c', 'report', 'results/1', 'd', 2)"
    )
    old.execute("INSERT INTO sends VALUES ('2.25.1', 'A', 'waiting', 3, 10, 'away')")
    old.execute(f"PRAGMA user_version = {version}")
    old.commit()
    old.close()
    ledger = Ledger(path)
    assert ledger.state("1.2.3") == "done"
    assert [image.digest for image in ledger.images("1.2.3")] == ["digest 1"]
    assert ledger.results("1.2.3") == [Result("2.25.1", "1.2.3", "c", "report", "results/1", "d")]
    assert [(send.destination_name, send.attempts) for send in SendQueue(ledger).due(10)] == [("A", 3)]
    assert state_counts(ledger)["studies"] == {"done": 1, "receiving": 1}
    ledger.close()
    reopened = sqlite3.connect(path)
    assert reopened.execute("PRAGMA user_version").fetchone() == (len(STEPS),)
    assert reopened.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_newer_or_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ConfigError, match="of version 99, and this medopt knows up to"):
        Ledger(path)
    (tmp_path / "bad.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Ledger(tmp_path / "bad.db")


_WRITER = """
import sys
from test_ledger import instance
from medopt.pacs.ledger import Ledger
from pathlib import Path
ledger = Ledger(Path(sys.argv[1]))
for number in range(100000):
    ledger.record(instance(number), number, late=True)
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    acknowledged = [0, *(int(line) for line in process.stdout.read().split("\n")[:-1])]
    process.wait()
    recorded = {image.sop_uid for image in Ledger(path).images("1.2.3")}
    assert {f"1.2.3.{number}" for number in acknowledged} <= recorded
    assert len(recorded) <= len(acknowledged) + 1
