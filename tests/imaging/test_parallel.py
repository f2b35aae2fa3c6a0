"""Scans side by side: in order, as by one, no further ahead than said, and nothing left behind by whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from medopt.core.errors import DataError, StorageError
from medopt.imaging import parallel
from medopt.imaging.parallel import parallel_map


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes from the first item on, whatever the machine has."""
    monkeypatch.setattr(parallel, "SERIAL_SECONDS", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_little_is_made_here_and_much_by_others(monkeypatch: pytest.MonkeyPatch, at_once: None) -> None:
    assert set(parallel_map(lambda _: os.getpid(), range(4), 1)) == {os.getpid()}
    found = list(parallel_map(lambda one: (one, os.getpid()), range(20), 2))
    assert [one for one, _ in found] == list(range(20))
    assert len({who for _, who in found}) == 2 and os.getpid() not in {who for _, who in found}
    monkeypatch.setattr(parallel, "SERIAL_SECONDS", 60)
    assert set(parallel_map(lambda _: os.getpid(), range(4), 2)) == {os.getpid()}
    assert list(parallel_map(lambda one: one, [], 2)) == []


def test_the_processes_begin_where_the_first_moment_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "SERIAL_SECONDS", 0.1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)

    def slow(one: int) -> tuple[int, bool]:
        time.sleep(0.03)
        return one, os.getpid() == here

    here = os.getpid()
    found = list(parallel_map(slow, range(12), 2))
    assert [one for one, _ in found] == list(range(12))
    mine = [own for _, own in found]
    assert 1 <= sum(mine) <= 4 and mine == sorted(mine, reverse=True)


def test_what_is_raised_arrives_as_it_is(at_once: None) -> None:
    def work(one: int) -> int:
        if one == 3:
            raise StorageError("the disk is full")
        return one

    found = parallel_map(work, range(6), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StorageError, match=r"^the disk is full$"):
        next(found)


def test_training_draws_the_same_numbers_with_and_without(at_once: None) -> None:
    torch.manual_seed(7)
    list(parallel_map(lambda one: one, range(4), 2))
    drawn = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(3))


def test_no_further_ahead_than_two_a_worker(at_once: None, tmp_path: Path) -> None:
    def work(one: int) -> int:
        (tmp_path / str(one)).touch()
        return one

    found = parallel_map(work, range(30), 2)
    for taken in range(1, 31):
        next(found)
        time.sleep(0.01)
        assert len(list(tmp_path.iterdir())) <= taken + 4
    assert len(list(tmp_path.iterdir())) == 30


def test_whoever_stops_asking_leaves_no_process(at_once: None) -> None:
    found = parallel_map(lambda _: os.getpid(), range(40), 2)
    workers = {next(found) for _ in range(8)}
    found.close()  # type: ignore[attr-defined]
    assert not any(_lives(who) for who in workers)


def test_a_killed_process_is_told(at_once: None) -> None:
    def work(one: int) -> int:
        if one == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return one

    with pytest.raises(DataError, match="killed, perhaps because memory ran out"):
        list(parallel_map(work, range(9), 2))


SCRIPT = """
import os, sys, time
from medopt.imaging import parallel
parallel.SERIAL_SECONDS = 0
os.cpu_count = lambda: 2
def work(one):
    open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    time.sleep(.05)
    return one
for one in parallel.parallel_map(work, range(10_000), 2):
    pass
"""


def test_nothing_is_left_of_a_killed_run(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path])
    _until(lambda: len(list(tmp_path.iterdir())) == 2)
    process.kill()
    process.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    _until(lambda: not any(_lives(who) for who in workers))


def _lives(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def _until(what: Callable[[], bool], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.05)
