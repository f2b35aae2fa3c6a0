"""Retention: studies that are confirmed everywhere are removed by age and size, and stay known; no other is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ledger import instance

from medopt.pacs.audit import AuditFile, verify
from medopt.pacs.ledger import Ledger, Result
from medopt.pacs.retention import Sweeper, marked_studies, spool_bytes
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.settings import RetentionSettings
from medopt.pacs.spool import AUDIT, LEDGER, RESULTS, STUDIES, Spool, spool_file
from medopt.pacs.status import retry_parked, state_counts

DAY = 86_400.0
DESTINATIONS = ["A", "B"]


class FilledSpool:
    """A spool with answered studies of one image and one result each, 1000 and 500 bytes, answered on day `number`."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.spool, self.ledger = Spool(root), Ledger(root / LEDGER)
        self.events: list[dict[str, object]] = []
        self.sweeper = Sweeper(
            RetentionSettings.model_validate(settings),
            self.spool,
            self.ledger,
            lambda event, **details: self.events.append(details),
        )

    def answer(self, number: int, confirmed: tuple[str, ...] = ("A", "B")) -> str:
        study, now = f"1.2.{number}", number * DAY
        image = spool_file(STUDIES, study, f"{study}.1")
        result = spool_file(RESULTS, study, f"2.25.{number}")
        self.spool.write(image, [bytes(1000)])
        self.spool.write(result, [bytes(500)])
        self.ledger.record(
            instance(0, study, sop_uid=f"{study}.1", file=image, size=1000, digest=f"d{number}"), now, late=True
        )
        self.ledger.complete(study, now)
        due = self.ledger.take(now)
        assert due is not None
        report = Result(f"2.25.{number}", study, "c", "report", result, "d", "2.25.9", 500)
        self.ledger.finish(due, "done", "", [report], DESTINATIONS, now)
        for send in SendQueue(self.ledger).due(now):
            if send.result.study_uid == study and send.destination_name in confirmed:
                SendQueue(self.ledger).confirm(send, now)
        return study

    def files(self) -> int:
        return sum(path.is_file() for name in (STUDIES, RESULTS) for path in (self.spool.root / name).rglob("*"))


def test_by_age_and_never_before_every_destination_has_it(tmp_path: Path) -> None:
    filled = FilledSpool(tmp_path, days=10)
    first, half, second = filled.answer(1), filled.answer(2, confirmed=("A",)), filled.answer(3)
    parked = filled.answer(4, confirmed=("B",))
    for send in SendQueue(filled.ledger).due(5 * DAY):
        if send.result.study_uid == parked:
            SendQueue(filled.ledger).reschedule(send, "away", None)
    assert filled.sweeper.sweep(10.9 * DAY) == 0
    assert filled.sweeper.sweep(11 * DAY) == 1
    assert filled.sweeper.sweep(500 * DAY) == 1
    assert filled.files() == 4  # of the two studies that a destination still has to receive
    assert [event["reason"] for event in filled.events] == ["age", "age"]
    assert not any(uid in str(filled.events) for uid in (first, second))
    (send,) = SendQueue(filled.ledger).due(500 * DAY)
    assert send.result.study_uid == half
    SendQueue(filled.ledger).confirm(send, 500 * DAY)
    retry_parked(filled.ledger, 500 * DAY)
    SendQueue(filled.ledger).confirm(SendQueue(filled.ledger).due(500 * DAY)[0], 500 * DAY)
    assert filled.sweeper.sweep(511 * DAY) == 2
    assert (filled.files(), spool_bytes(filled.ledger)) == (0, 0)


def test_by_size_the_oldest_are_removed_until_the_rest_fits(tmp_path: Path) -> None:
    filled = FilledSpool(tmp_path, days=1000, gigabytes=3e-6)
    studies = [filled.answer(number, confirmed=() if number == 1 else ("A", "B")) for number in range(1, 6)]
    assert spool_bytes(filled.ledger) == 7500
    filled.sweeper.sweep(6 * DAY)
    assert spool_bytes(filled.ledger) == 3000
    present = {study for study in studies if (tmp_path / filled.ledger.images(study)[0].file).exists()}
    assert present == {studies[0], studies[4]}  # the oldest is not confirmed


def test_a_removed_study_is_still_known(tmp_path: Path) -> None:
    filled = FilledSpool(tmp_path, days=1)
    study = filled.answer(1)
    filled.sweeper.sweep(9 * DAY)
    again = instance(0, study, sop_uid=f"{study}.1", digest="d1", file="x")
    assert filled.ledger.record(again, 9 * DAY, late=True) == "known"
    assert filled.ledger.record(instance(0, study, sop_uid="1.2.77", file="y"), 9 * DAY, late=True) == "removed"
    assert (filled.ledger.state(study), filled.ledger.is_result("2.25.1")) == ("done", True)
    assert (filled.ledger.take(10 * DAY), SendQueue(filled.ledger).due(10 * DAY)) == (None, [])


def test_a_study_without_images_is_removed_and_may_come_again(tmp_path: Path) -> None:
    filled = FilledSpool(tmp_path, days=1)
    file = spool_file(STUDIES, "1.2.3", "1.2.3.9")
    filled.spool.write(file, [b"note"])
    filled.ledger.record(instance(9, image=False, file=file), 1, late=True)
    assert filled.sweeper.sweep(2 * DAY) == 1
    assert filled.files() == 0
    assert filled.ledger.record(instance(1), 3 * DAY, late=True) == "new"
    assert filled.ledger.receiving() == ["1.2.3"]


_SWEEPING = """
import sys
from pathlib import Path
from test_retention import FilledSpool, DAY
filled = FilledSpool(Path(sys.argv[1]), days=1)
print("started", flush=True)
while filled.sweeper.sweep(10_000 * DAY):
    pass
"""


@pytest.mark.parametrize("after", [0.01, 0.05])
def test_a_kill_in_the_midst_leaves_nothing_half_removed(tmp_path: Path, after: float) -> None:
    filled = FilledSpool(tmp_path, days=1)
    studies = [filled.answer(number, confirmed=() if number % 5 == 0 else ("A", "B")) for number in range(1, 41)]
    filled.ledger.close()
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", _SWEEPING, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": here})
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    again = FilledSpool(tmp_path, days=1)
    for study in studies[4::5]:
        assert (tmp_path / again.ledger.images(study)[0].file).exists()
    while again.sweeper.sweep(10_000 * DAY):
        pass
    assert again.files() == 2 * 8
    assert marked_studies(again.ledger) == []
    assert state_counts(again.ledger)["studies"] == {"done": 40}


def test_the_chain_survives_a_full_disk_and_says_what_is_missing(
    tmp_path: Path,
    tiny_disk: object,
) -> None:
    disk = tiny_disk(64)  # type: ignore[operator]
    audit = AuditFile(disk / AUDIT, lambda: 0.0)
    audit("started")
    filler = (disk / "filler").open("wb", buffering=0)
    with pytest.raises(OSError, match="No space"):
        while filler.write(bytes(1000)):
            pass
    for number in range(40):  # more than what is left of its last block
        audit("received", number=number, content="0" * 64)
    filler.truncate(0)
    filler.close()
    audit("stopped")
    audit.close()
    lines = (disk / AUDIT).read_text().splitlines()
    count, _ = verify(disk / AUDIT)
    assert count == len(lines)
    assert '"event": "unwritten"' in lines[-2]
    assert f'"lines": {40 - (count - 3)}' in lines[-2]


def test_a_document_that_comes_after_its_study_was_removed_counts_and_is_removed_too(tmp_path: Path) -> None:
    """A study that never had an image: its files are told and swept, however often one comes."""
    filled, study = FilledSpool(tmp_path, days=1), "1.2.77"
    for number, now in ((1, 0.0), (2, 10 * DAY)):
        file = spool_file(STUDIES, study, f"{study}.{number}")
        filled.spool.write(file, [bytes(1000)])
        document = instance(
            number, study, sop_uid=f"{study}.{number}", file=file, size=1000, digest=f"sr{number}", image=False
        )
        assert filled.ledger.record(document, now, late=True) == "new"
        assert spool_bytes(filled.ledger) >= 1000
        filled.sweeper.sweep(now + 5 * DAY)
        assert filled.files() == 0


def test_age_and_size_are_kept_to_the_second_and_to_the_byte(tmp_path: Path) -> None:
    """Exactly as old as asked for goes; exactly as large as allowed stays."""
    old = FilledSpool(tmp_path / "old", days=10)
    old.answer(1)
    assert (old.sweeper.sweep(11 * DAY - 1), old.sweeper.sweep(11 * DAY)) == (0, 1)
    for byte, removed in ((0, 0), (1, 1)):
        full = FilledSpool(tmp_path / f"full-{byte}", days=1000, gigabytes=1)
        studies = [full.answer(number) for number in (1, 2, 3)]
        assert spool_bytes(full.ledger) == 4500
        more = instance(
            9, studies[2], sop_uid="1.2.3.99", size=10**9 - 4500 + byte, digest="more", image=False, file="studies/note"
        )
        assert full.ledger.record(more, 4 * DAY, late=True) == "new"
        assert full.sweeper.sweep(5 * DAY) == removed
        assert [event["reason"] for event in full.events] == ["size"] * removed


def test_many_studies_are_removed_oldest_first_and_some_at_once(tmp_path: Path) -> None:
    """So that a sweep never holds the ledger for long; the next one goes on."""
    filled = FilledSpool(tmp_path, days=1)
    studies = [filled.answer(number) for number in range(23, 0, -1)]
    by_age = sorted(studies, key=lambda uid: int(uid.split(".")[-1]))
    assert filled.sweeper.sweep(100 * DAY) == 20
    present = {study for study in studies if (tmp_path / filled.ledger.images(study)[0].file).exists()}
    assert present == set(by_age[20:])
    assert (filled.sweeper.sweep(100 * DAY), filled.sweeper.sweep(100 * DAY)) == (3, 0)


def test_a_study_of_which_one_file_stays_is_not_recorded_as_removed(tmp_path: Path) -> None:
    """A folder stands in the place of its result; once that is gone the next sweep ends what was begun."""
    filled = FilledSpool(tmp_path, days=1)
    study = filled.answer(1)
    image = tmp_path / spool_file(STUDIES, study, f"{study}.1")
    result = tmp_path / spool_file(RESULTS, study, "2.25.1")
    result.unlink()
    (result / "in the way").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(OSError, match="cannot be removed"):
            filled.sweeper.sweep(9 * DAY)
        assert not image.exists() and [one.study_uid for one in marked_studies(filled.ledger)] == [study]
        assert filled.events == []
    (result / "in the way").rmdir()
    result.rmdir()
    assert filled.sweeper.sweep(9 * DAY) == 1
    assert (marked_studies(filled.ledger), len(filled.events)) == ([], 1)
