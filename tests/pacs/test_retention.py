"""Retention: what is confirmed everywhere goes by age and size, nothing else does, and what went is still known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_ledger import instance

from medopt.pacs.audit import Audit, verify
from medopt.pacs.ledger import Ledger, Result
from medopt.pacs.queue_status import counts, retry
from medopt.pacs.retention import Sweeper, emptying, kept_bytes
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.settings import Retention
from medopt.pacs.spool import AUDIT, LEDGER, RESULTS, STUDIES, Spool

DAY = 86_400.0
PLACES = ["A", "B"]


class Kept:
    """A spool with answered studies of one image and one result each, 1000 and 500 bytes, answered on day `number`."""

    def __init__(self, root: Path, **kept: object) -> None:
        self.spool, self.ledger = Spool(root), Ledger(root / LEDGER)
        self.told: list[dict[str, object]] = []
        self.sweeper = Sweeper(
            Retention.model_validate(kept), self.spool, self.ledger, lambda event, **facts: self.told.append(facts)
        )

    def answer(self, number: int, confirmed: tuple[str, ...] = ("A", "B")) -> str:
        study, now = f"1.2.{number}", number * DAY
        image = self.spool.place(STUDIES, study, f"{study}.1")
        result = self.spool.place(RESULTS, study, f"2.25.{number}")
        self.spool.write(image, [bytes(1000)])
        self.spool.write(result, [bytes(500)])
        self.ledger.record(
            instance(0, study, sop_uid=f"{study}.1", file=image, size=1000, digest=f"d{number}"), now, late=True
        )
        self.ledger.complete(study, now)
        work = self.ledger.take(now)
        assert work is not None
        made = Result(f"2.25.{number}", study, "c", "report", result, "d", "2.25.9", 500)
        self.ledger.finish(work, "done", "", [made], PLACES, now)
        for send in SendQueue(self.ledger).due(now):
            if send.result.study_uid == study and send.destination in confirmed:
                SendQueue(self.ledger).confirmed(send, now)
        return study

    def files(self) -> int:
        return sum(path.is_file() for kind in (STUDIES, RESULTS) for path in (self.spool.root / kind).rglob("*"))


def test_by_age_and_never_before_every_destination_has_it(tmp_path: Path) -> None:
    kept = Kept(tmp_path, days=10)
    first, half, second = kept.answer(1), kept.answer(2, confirmed=("A",)), kept.answer(3)
    parked = kept.answer(4, confirmed=("B",))
    for send in SendQueue(kept.ledger).due(5 * DAY):
        if send.result.study_uid == parked:
            SendQueue(kept.ledger).unsent(send, "away", None)
    assert kept.sweeper.sweep(10.9 * DAY) == 0
    assert kept.sweeper.sweep(11 * DAY) == 1
    assert kept.sweeper.sweep(500 * DAY) == 1
    assert kept.files() == 4  # of the two that a destination still has to get
    assert [facts["reason"] for facts in kept.told] == ["age", "age"]
    assert not any(uid in str(kept.told) for uid in (first, second))
    (send,) = SendQueue(kept.ledger).due(500 * DAY)
    assert send.result.study_uid == half
    SendQueue(kept.ledger).confirmed(send, 500 * DAY)
    retry(kept.ledger, 500 * DAY)
    SendQueue(kept.ledger).confirmed(SendQueue(kept.ledger).due(500 * DAY)[0], 500 * DAY)
    assert kept.sweeper.sweep(511 * DAY) == 2
    assert (kept.files(), kept_bytes(kept.ledger)) == (0, 0)


def test_by_size_the_oldest_go_until_there_is_room(tmp_path: Path) -> None:
    kept = Kept(tmp_path, days=1000, gigabytes=3e-6)
    studies = [kept.answer(number, confirmed=() if number == 1 else ("A", "B")) for number in range(1, 6)]
    assert kept_bytes(kept.ledger) == 7500
    kept.sweeper.sweep(6 * DAY)
    assert kept_bytes(kept.ledger) == 3000
    there = {study for study in studies if (tmp_path / kept.ledger.images(study)[0].file).exists()}
    assert there == {studies[0], studies[4]}  # the oldest is not confirmed


def test_what_went_is_still_known(tmp_path: Path) -> None:
    kept = Kept(tmp_path, days=1)
    study = kept.answer(1)
    kept.sweeper.sweep(9 * DAY)
    again = instance(0, study, sop_uid=f"{study}.1", digest="d1", file="x")
    assert kept.ledger.record(again, 9 * DAY, late=True) == "known"
    assert kept.ledger.record(instance(0, study, sop_uid="1.2.77", file="y"), 9 * DAY, late=True) == "gone"
    assert (kept.ledger.state(study), kept.ledger.is_result("2.25.1")) == ("done", True)
    assert (kept.ledger.take(10 * DAY), SendQueue(kept.ledger).due(10 * DAY)) == (None, [])


def test_what_never_had_an_image_goes_and_may_begin_anew(tmp_path: Path) -> None:
    kept = Kept(tmp_path, days=1)
    place = kept.spool.place(STUDIES, "1.2.3", "1.2.3.9")
    kept.spool.write(place, [b"note"])
    kept.ledger.record(instance(9, image=False, file=place), 1, late=True)
    assert kept.sweeper.sweep(2 * DAY) == 1
    assert kept.files() == 0
    assert kept.ledger.record(instance(1), 3 * DAY, late=True) == "new"
    assert kept.ledger.receiving() == ["1.2.3"]


_SWEEPING = """
import sys
from pathlib import Path
from test_retention import Kept, DAY
kept = Kept(Path(sys.argv[1]), days=1)
print("begun", flush=True)
while kept.sweeper.sweep(10_000 * DAY):
    pass
"""


@pytest.mark.parametrize("after", [0.01, 0.05])
def test_a_kill_in_the_midst_leaves_nothing_half_known(tmp_path: Path, after: float) -> None:
    kept = Kept(tmp_path, days=1)
    studies = [kept.answer(number, confirmed=() if number % 5 == 0 else ("A", "B")) for number in range(1, 41)]
    kept.ledger.close()
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    words = [sys.executable, "-c", _SWEEPING, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": here})
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    again = Kept(tmp_path, days=1)
    for study in studies[4::5]:
        assert (tmp_path / again.ledger.images(study)[0].file).exists()
    while again.sweeper.sweep(10_000 * DAY):
        pass
    assert again.files() == 2 * 8
    assert emptying(again.ledger) == []
    assert counts(again.ledger)["studies"] == {"done": 40}


def test_the_chain_survives_a_full_disk_and_says_what_is_missing(
    tmp_path: Path,
    tiny_disk: object,
) -> None:
    disk = tiny_disk(64)  # type: ignore[operator]
    audit = Audit(disk / AUDIT, lambda: 0.0)
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
