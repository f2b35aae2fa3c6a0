"""The whole node as a process of its own: killed at random moments, sent everything twice, stopped, held to account."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clinic_fixtures import call
from peers import Archive, association, free_port, radiograph, store
from pydicom import dcmread

KILLS = int(os.environ.get("MEDOPT_TEST_NODE_KILLS", "1"))


class Running:
    """A node's process, begun again after each kill."""

    def __init__(self, folder: Path, release: Path, archive: Archive, **changes: Any) -> None:
        self.folder, self.port, self.file = folder, free_port(), folder / "node.yaml"
        told = {
            "aet": "MEDOPT",
            "host": "127.0.0.1",
            "port": self.port,
            "release": str(release),
            "spool": "spool",
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": archive.aet, "host": "127.0.0.1", "port": archive.port}],
            "quiet_seconds": 0.5,
            "limits": {"free_mb": 0},
            "sending": {"first_seconds": 0.2, "longest_seconds": 0.5, "tries": 500, "timeout_seconds": 10},
        }
        self.file.write_text(yaml.safe_dump(told | changes))
        self.log = (folder / "node.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        words = [sys.executable, "-m", "medopt", "pacs", "run", str(self.file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(words, stdout=self.log, stderr=self.log, env=environment)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=40)

    def said(self) -> str:
        return (self.folder / "node.log").read_text()

    def status(self) -> dict[str, Any]:
        return call("pacs", "status", self.file, "--json").summary

    def deliver(self, scan: Path, within: float = 200) -> None:
        """Send until the node acknowledges it, as a modality does."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            one = association(self.port)
            if one.is_established:
                answer = store(one, scan)
                if one.is_established:
                    one.release()
                if answer.get("Status") == 0x0000:
                    return
            assert self.process is not None
            if self.process.poll() is not None:
                self.begin()
            time.sleep(0.1)
        raise AssertionError(self.said())


def wait_for(what: Callable[[], bool], running: Running, seconds: float = 280) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, running.said()
        time.sleep(0.1)


@pytest.fixture
def archive() -> Iterator[Archive]:
    one = Archive()
    one.start()
    yield one
    one.stop()


@pytest.fixture
def running(tmp_path: Path, release: Path, archive: Archive) -> Iterator[Callable[..., Running]]:
    begun: list[Running] = []

    def begin(**changes: Any) -> Running:
        begun.append(Running(tmp_path, release, archive, **changes))
        begun[-1].begin()
        return begun[-1]

    yield begin
    for one in begun:
        if one.process is not None and one.process.poll() is None:
            one.kill()
        one.log.close()


def test_each_study_ends_with_one_set_of_results_whatever_is_killed(
    running: Callable[..., Running], archive: Archive, tmp_path: Path
) -> None:
    chance = random.Random(7)
    node = running()
    scans = [radiograph(tmp_path / "scans" / f"{study}.dcm", study=study, number=study) for study in range(1, 5)]
    for kill in range(KILLS):
        for scan in scans[kill:]:
            node.deliver(scan)
        time.sleep(chance.uniform(0, 3))  # waiting for the end, in the model, or sending
        node.kill()
        node.begin()
    for scan in scans:  # all of it again, as a PACS does that routes results back
        node.deliver(scan)
    wait_for(lambda: node.status()["studies"] == {"done": len(scans)}, node)
    wait_for(lambda: set(node.status()["sends"]) == {"sent"}, node)
    assert node.status()["sends"]["sent"] == len(archive.kept)
    for copies in archive.kept.values():
        assert len(set(copies)) == 1  # a kill between the answer and the ledger sends the same bytes again
    found = archive.objects()
    assert {str(one.StudyInstanceUID) for one in found} == {str(dcmread(scan).StudyInstanceUID) for scan in scans}
    kinds = Counter((str(one.StudyInstanceUID), one.Modality, one.SeriesNumber) for one in found)
    assert set(kinds.values()) == {1}
    reports = [one for one in found if one.Modality == "SR"]
    assert len(reports) == 2 * len(scans)
    for one in reports:
        assert (one.VerificationFlag, one.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")

    assert node.kill(signal.SIGTERM) == 0
    assert call("pacs", "audit", "verify", node.file).code == 0
    outside = node.said() + (tmp_path / "spool" / "audit.jsonl").read_text()
    for scan in scans:
        sent = dcmread(scan)
        for word in (sent.PatientID, "QUITTENBAUM", sent.AccessionNumber, sent.StudyInstanceUID, sent.SOPInstanceUID):
            assert str(word) not in outside
    for one in found:
        assert str(one.SOPInstanceUID) not in outside
    events = [json.loads(line)["event"] for line in (tmp_path / "spool" / "audit.jsonl").read_text().splitlines()]
    assert {"started", "received", "complete", "answered", "sent"} <= set(events)
