"""Storage commitment with a real Orthanc: sent is what it says it keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from orthanc import Orthanc, needs_orthanc
from peers import Archive
from ports import free_port
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from test_sender import Clock, owing

from medopt.pacs.association import associate
from medopt.pacs.commitment import AWAITED, CommitmentReceiver, Push, ask, transaction
from medopt.pacs.intake import Intake
from medopt.pacs.queue_status import counts
from medopt.pacs.receiver import Receiver
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.sender import Sender
from medopt.pacs.spool import Spool


class Committing:
    """A node's sender and receiver, owing three results to a destination that is asked to commit."""

    def __init__(self, folder: Path, port: int, destination: int, aet: str = "ORTHANC") -> None:
        place = {"aet": aet, "host": "127.0.0.1", "port": destination, "commit": True}
        self.clock = Clock()
        self.events: list[str] = []
        accept = [{"aet": aet, "addresses": ["127.0.0.1"]}]
        node, self.ledger = owing(folder, 0, 3, place, accept, commit_seconds=50)
        self.node = node.model_copy(update={"host": "127.0.0.1", "port": port})
        told: Callable[..., None] = lambda event, **_: self.events.append(event)  # noqa: E731
        spool = Spool(node.spool)
        intake = Intake(self.node, spool, self.ledger, lambda *_: None, told, self.clock)
        self.receiver = Receiver(
            self.node, spool, intake, CommitmentReceiver(self.node, self.ledger, told, self.clock), told
        )
        self.receiver.start()
        self.sender = Sender(self.node, self.ledger, told)

    def close(self) -> None:
        self.receiver.stop()
        self.ledger.close()

    def reasons(self) -> set[str]:
        return {row["reason"] for row in self.ledger.rows("SELECT reason FROM sends WHERE state != 'sent'")}

    def wait(self, what: Callable[[], bool]) -> None:
        until = time.monotonic() + 20
        while not what():
            assert time.monotonic() < until, (counts(self.ledger), self.reasons(), self.events)
            time.sleep(0.05)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    one = Orthanc(tmp_path / "orthanc", free_port())
    one.start()
    yield one
    one.stop()


@needs_orthanc
def test_sent_is_what_the_pacs_says_it_keeps(tmp_path: Path, orthanc: Orthanc) -> None:
    node = Committing(tmp_path, orthanc.node_port, orthanc.port)
    try:
        node.receiver.stop()  # its report does not arrive
        assert node.sender.send_due(node.clock) == 0
        assert (len(orthanc.instances()), node.reasons()) == (3, {AWAITED})
        assert counts(node.ledger)["sends"] == {"waiting": 3}
        node.receiver.start()
        node.clock.now += 49
        assert SendQueue(node.ledger).due(node.clock.now) == []
        node.clock.now += 1
        node.sender.send_due(node.clock)
        node.wait(lambda: counts(node.ledger)["sends"] == {"sent": 3})
        assert (len(orthanc.instances()), node.events.count("sent")) == (3, 3)
    finally:
        node.close()


@needs_orthanc
def test_what_the_pacs_lost_is_sent_again(tmp_path: Path, orthanc: Orthanc) -> None:
    node = Committing(tmp_path, orthanc.node_port, orthanc.port)
    try:
        sends = SendQueue(node.ledger).due(node.clock.now)
        (place,) = node.node.destinations
        link = associate(node.node, place, [Push], [ExplicitVRLittleEndian])  # type: ignore[arg-type, list-item]
        assert ask(link, place, sends) == ""  # type: ignore[arg-type]
        link.release()  # nothing was stored there
        node.wait(lambda: any("does not keep it (0x0112)" in reason for reason in node.reasons()))
        assert counts(node.ledger)["sends"] == {"waiting": 3}
        node.sender.send_due(node.clock)
        node.wait(lambda: counts(node.ledger)["sends"] == {"sent": 3})
    finally:
        node.close()


def test_one_that_offers_none(tmp_path: Path) -> None:
    archive = Archive()
    archive.start()
    node = Committing(tmp_path, free_port(), archive.port, "PACS")
    try:
        assert node.sender.send_due(node.clock) == 0
        assert node.reasons() == {"the destination offers no storage commitment (commit)"}
    finally:
        node.close()
        archive.stop()


def report(node: Committing, title: str, uid: str, **items: Any) -> int:
    """N-EVENT-REPORT to the node, as a PACS sends it."""
    told = Dataset()
    told.TransactionUID = uid
    for name, uids in items.items():
        setattr(told, name, [Dataset() for _ in uids])
        for item, one in zip(getattr(told, name), uids, strict=True):
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.3", one
            item.FailureReason = 0x0112
    from pynetdicom import build_role

    ae = AE(title)
    ae.add_requested_context(Push)
    link = ae.associate(
        "127.0.0.1", node.node.port, ae_title="MEDOPT", ext_neg=[build_role(Push, scu_role=False, scp_role=True)]
    )
    assert link.is_established
    answer, _ = link.send_n_event_report(told, 1, Push, "1.2.840.10008.1.20.1.1")
    link.release()
    return int(answer.Status)


def test_a_report_that_nobody_asked_for_confirms_nothing(tmp_path: Path) -> None:
    node = Committing(tmp_path, free_port(), free_port(), "PACS")
    (name,) = (one.name for one in node.node.destinations)
    three = ["2.25.1", "2.25.2", "2.25.3"]
    try:
        assert report(node, "PACS", "1.2.3.4", ReferencedSOPSequence=three) == 0x0110
        assert report(node, "PACS", transaction(name, three[:1]), ReferencedSOPSequence=three) == 0x0110
        assert counts(node.ledger)["sends"] == {"waiting": 3}
        found = report(
            node, "PACS", transaction(name, three), ReferencedSOPSequence=three[:2], FailedSOPSequence=three[2:]
        )
        assert (found, counts(node.ledger)["sends"]) == (0, {"sent": 2, "waiting": 1})
        assert node.reasons() == {"the destination does not keep it (0x0112)"}
    finally:
        node.close()


def test_it_must_be_let_in_to_report(tmp_path: Path) -> None:
    place = {"aet": "PACS", "host": "127.0.0.1", "port": 104, "commit": True}
    with pytest.raises(ValueError, match="name it in accept, too"):
        owing(tmp_path, 0, 1, place)
