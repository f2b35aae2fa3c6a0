"""A node in this process, so that its disk, its release and its worker can be taken away while it runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from peers import Archive, association, free_port, radiograph, send
from pydicom import dcmread
from running import told

from medopt.pacs import node as node_module
from medopt.pacs.audit import verify
from medopt.pacs.ledger import Ledger
from medopt.pacs.node import PacsNode
from medopt.pacs.receiver import OUT_OF_ROOM, STORED
from medopt.pacs.settings import Node
from medopt.pacs.spool import AUDIT, LEDGER


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_without_disk_without_release_and_stopped_in_the_midst(
    release: Path,
    archive: Archive,
    tmp_path: Path,
    tiny_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_module, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(node_module, "_GRACE_SECONDS", 1.0)
    disk, model, port = tiny_disk(6000), copytree(release, tmp_path / "release"), free_port()
    values = told(disk, port, model, archive) | {"quiet_seconds": 1.0}
    node, listens = PacsNode(Node.model_validate(values)), threading.Event()
    thread = threading.Thread(target=node.run, args=(lambda _: listens.set(),))
    thread.start()
    assert listens.wait(60)
    scans = [radiograph(tmp_path / f"{n}.dcm", study=n) for n in range(1, 5)]
    studies = [str(dcmread(scan).StudyInstanceUID) for scan in scans]

    # The disk fills up between the image and its result.
    assert send(port, scans[:1]) == [STORED]
    filler = (disk / "filler").open("wb", buffering=0)
    with pytest.raises(OSError, match="No space"):
        while filler.write(bytes(4096)):
            pass
    assert send(port, scans[1:2]) == [OUT_OF_ROOM]
    time.sleep(1.5)
    assert thread.is_alive()
    assert len(archive.kept) == 0
    filler.truncate(0)
    filler.close()
    wait_for(lambda: len(archive.kept) == 2)
    assert send(port, scans[1:2]) == [STORED]
    wait_for(lambda: len(archive.kept) == 4)

    # The worker ends, and no new one can open the release: receiving goes on.
    model.rename(tmp_path / "away")
    assert node._worker.pid is not None
    os.kill(node._worker.pid, signal.SIGKILL)
    assert send(port, scans[2:3]) == [STORED]
    wait_for(lambda: node._ledger.state(studies[2]) == "ready")
    one = association(port)
    assert one.send_c_echo().Status == STORED
    one.release()
    (tmp_path / "away").rename(model)
    wait_for(lambda: node._ledger.state(studies[2]) == "done")

    # It is stopped while the worker hangs: the study is handed back.
    wait_for(lambda: node._worker.pid is not None)
    os.kill(node._worker.pid, signal.SIGSTOP)
    assert send(port, scans[3:]) == [STORED]
    wait_for(lambda: node._ledger.state(studies[3]) == "working")
    begun = time.monotonic()
    node.stop()
    thread.join(20)
    assert not thread.is_alive()
    assert 0.9 < time.monotonic() - begun < 5
    ledger = Ledger(disk / "spool" / LEDGER)
    work = ledger.take(0)
    assert work is not None
    assert (work.study_uid, work.tries) == (studies[3], 0)
    assert ledger.counts()["sends"] == {"sent": 6}
    ledger.close()
    verify(disk / "spool" / AUDIT)
