"""A node in this process, so that a test can take away its disk, its release and its worker while it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import pytest
from node_process import node_file_values
from peers import Archive, association, radiograph, send
from ports import free_port
from pydicom import dcmread

from medopt.pacs import node as node_module
from medopt.pacs.audit import verify
from medopt.pacs.intake import NOT_AUTHORIZED, OUT_OF_RESOURCES, SUCCESS
from medopt.pacs.ledger import Ledger
from medopt.pacs.node import PacsNode
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import AUDIT, LEDGER
from medopt.pacs.status import state_counts

pytestmark = pytest.mark.long


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class NodeInThread:
    """A node in a thread, with a small disk and a release of its own."""

    def __init__(self, folder: Path, disk: Path, release: Path, archive: Archive) -> None:
        self.disk, self.release, self.port, self.archive = (
            disk,
            copytree(release, folder / "release"),
            free_port(),
            archive,
        )
        values = node_file_values(disk, self.port, self.release, archive) | {
            "quiet_seconds": 1.0,
            "retention": {"days": 0},
        }
        values["results"] = {"heat_maps": 0}  # so that the number of results is known
        self.node, listens = PacsNode(NodeSettings.model_validate(values)), threading.Event()
        self.thread = threading.Thread(target=self.node.run, args=(lambda _: listens.set(),))
        self.thread.start()
        assert listens.wait(60)

    def send(self, *scans: Path) -> list[int]:
        return send(self.port, scans)

    def state(self, scan: Path) -> str:
        return self.node._ledger.state(str(dcmread(scan).StudyInstanceUID))

    def signal_worker(self, number: int) -> None:
        assert self.node._worker.pid is not None
        os.kill(self.node._worker.pid, number)

    def dicom_files(self) -> list[Path]:
        return list((self.disk / "spool").rglob("*.dcm"))


@pytest.fixture
def inside(
    release: Path, archive: Archive, tmp_path: Path, tiny_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[NodeInThread]:
    for name, seconds in (("_PAUSE_SECONDS", 0.2), ("_GRACE_SECONDS", 1.0), ("_SWEEP_SECONDS", 0.5)):
        monkeypatch.setattr(node_module, name, seconds)
    node = NodeInThread(tmp_path, tiny_disk(6000), release, archive)
    yield node
    node.node.stop()
    node.thread.join(30)


def test_whatever_is_taken_away_comes_back(inside: NodeInThread, archive: Archive, tmp_path: Path) -> None:
    """One node for all of it: starting one takes seconds."""
    scans = [radiograph(tmp_path / f"{n}.dcm", study=n) for n in range(1, 5)]
    the_disk_fills_up_between_the_image_and_its_result(inside, *scans[:2])
    the_worker_ends_and_no_new_one_can_open_the_release(inside, scans[2])
    what_every_destination_has_is_removed_and_still_known(inside, scans[:3])
    it_is_stopped_while_the_worker_hangs(inside, scans[3])


def the_disk_fills_up_between_the_image_and_its_result(inside: NodeInThread, first: Path, second: Path) -> None:
    assert inside.send(first) == [SUCCESS]
    filler = (inside.disk / "filler").open("wb", buffering=0)
    with pytest.raises(OSError, match="No space"):
        while filler.write(bytes(4096)):
            pass
    assert inside.send(second) == [OUT_OF_RESOURCES]
    time.sleep(1.5)
    assert inside.thread.is_alive()
    assert len(inside.archive.kept) == 0
    filler.truncate(0)
    filler.close()
    wait_for(lambda: len(inside.archive.kept) == 2)
    assert inside.send(second) == [SUCCESS]
    wait_for(lambda: len(inside.archive.kept) == 4)


def the_worker_ends_and_no_new_one_can_open_the_release(inside: NodeInThread, scan: Path) -> None:
    away = inside.release.rename(inside.release.with_name("away"))
    inside.signal_worker(signal.SIGKILL)
    assert inside.send(scan) == [SUCCESS]
    wait_for(lambda: inside.state(scan) == "ready")
    link = association(inside.port)
    assert link.send_c_echo().Status == SUCCESS
    link.release()
    away.rename(inside.release)
    wait_for(lambda: inside.state(scan) == "done")


def what_every_destination_has_is_removed_and_still_known(inside: NodeInThread, scans: list[Path]) -> None:
    wait_for(lambda: len(inside.archive.kept) == 6 and not inside.dicom_files())
    late = radiograph(scans[0].with_name("late.dcm"), study=1, number=9)
    assert inside.send(*scans, late) == [SUCCESS] * 3 + [NOT_AUTHORIZED]
    assert inside.dicom_files() == []


def it_is_stopped_while_the_worker_hangs(inside: NodeInThread, scan: Path) -> None:
    wait_for(lambda: inside.node._worker.pid is not None)
    inside.signal_worker(signal.SIGSTOP)
    assert inside.send(scan) == [SUCCESS]
    wait_for(lambda: inside.state(scan) == "working")
    started = time.monotonic()
    inside.node.stop()
    inside.thread.join(20)
    assert not inside.thread.is_alive()
    assert 0.9 < time.monotonic() - started < 5
    ledger = Ledger(inside.disk / "spool" / LEDGER)
    due = ledger.take(0)
    assert due is not None
    assert (due.study_uid, due.tries) == (str(dcmread(scan).StudyInstanceUID), 0)
    assert state_counts(ledger)["sends"] == {"sent": 6}
    ledger.close()
    verify(inside.disk / "spool" / AUDIT)
