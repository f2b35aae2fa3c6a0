"""Storage commitment with a real Orthanc: a result counts as sent when Orthanc reports that it keeps it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from orthanc import Orthanc, needs_orthanc
from peers import Archive
from ports import free_port
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from test_sender import Clock, node_with_results

from medopt.pacs.association import associate
from medopt.pacs.commitment import (
    AWAITING_REPORT,
    CommitmentReceiver,
    Push,
    request_commitment,
    transaction_uid,
)
from medopt.pacs.intake import Intake
from medopt.pacs.receiver import Receiver
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.sender import Sender
from medopt.pacs.spool import Spool
from medopt.pacs.status import state_counts


class Committing:
    """A node's sender and receiver, with three results for a destination that is asked to commit."""

    def __init__(self, folder: Path, port: int, destination: int, aet: str = "ORTHANC") -> None:
        peer = {"aet": aet, "host": "127.0.0.1", "port": destination, "commit": True}
        self.clock = Clock()
        self.events: list[str] = []
        accept = [{"aet": aet, "addresses": ["127.0.0.1"]}]
        settings, self.ledger = node_with_results(folder, 0, 3, peer, accept, commit_seconds=50)
        self.settings = settings.model_copy(update={"host": "127.0.0.1", "port": port})
        audit: Callable[..., None] = lambda event, **_: self.events.append(event)  # noqa: E731
        spool = Spool(settings.spool)
        intake = Intake(self.settings, spool, self.ledger, lambda *_: None, audit, self.clock)
        self.receiver = Receiver(
            self.settings, spool, intake, CommitmentReceiver(self.settings, self.ledger, audit, self.clock), audit
        )
        self.receiver.start()
        self.sender = Sender(self.settings, self.ledger, audit, clock=self.clock)

    def close(self) -> None:
        self.receiver.stop()
        self.ledger.close()

    def reasons(self) -> set[str]:
        return {row["reason"] for row in self.ledger.rows("SELECT reason FROM sends WHERE state != 'sent'")}

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, (state_counts(self.ledger), self.reasons(), self.events)
            time.sleep(0.05)


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path / "orthanc", free_port())
    orthanc.start()
    yield orthanc
    orthanc.stop()


@needs_orthanc
def test_a_result_is_sent_when_the_pacs_reports_that_it_keeps_it(tmp_path: Path, orthanc: Orthanc) -> None:
    node = Committing(tmp_path, orthanc.node_port, orthanc.port)
    try:
        node.receiver.stop()  # its report does not arrive
        assert node.sender.send_due() == 0
        assert (len(orthanc.instances()), node.reasons()) == (3, {AWAITING_REPORT})
        assert state_counts(node.ledger)["sends"] == {"waiting": 3}
        node.receiver.start()
        node.clock.now += 49
        assert SendQueue(node.ledger).due(node.clock.now) == []
        node.clock.now += 1
        node.sender.send_due()
        node.wait(lambda: state_counts(node.ledger)["sends"] == {"sent": 3})
        assert (len(orthanc.instances()), node.events.count("sent")) == (3, 3)
    finally:
        node.close()


@needs_orthanc
def test_what_the_pacs_lost_is_sent_again(tmp_path: Path, orthanc: Orthanc) -> None:
    node = Committing(tmp_path, orthanc.node_port, orthanc.port)
    try:
        sends = SendQueue(node.ledger).due(node.clock.now)
        (destination,) = node.settings.destinations
        link = associate(node.settings, destination, [Push], [ExplicitVRLittleEndian])  # type: ignore[arg-type, list-item]
        assert request_commitment(link, destination, sends) == ""  # type: ignore[arg-type]
        link.release()  # nothing was stored there
        node.wait(lambda: any("does not keep it (0x0112)" in reason for reason in node.reasons()))
        assert state_counts(node.ledger)["sends"] == {"waiting": 3}
        node.sender.send_due()
        node.wait(lambda: state_counts(node.ledger)["sends"] == {"sent": 3})
    finally:
        node.close()


def test_a_pacs_without_storage_commitment(tmp_path: Path) -> None:
    archive = Archive()
    archive.start()
    node = Committing(tmp_path, free_port(), archive.port, "PACS")
    try:
        assert node.sender.send_due() == 0
        assert node.reasons() == {"the destination offers no storage commitment (commit)"}
    finally:
        node.close()
        archive.stop()


def send_report(node: Committing, title: str, uid: str, **items: Any) -> int:
    """N-EVENT-REPORT to the node, as a PACS sends it."""
    report = Dataset()
    report.TransactionUID = uid
    for name, uids in items.items():
        setattr(report, name, [Dataset() for _ in uids])
        for item, sop_uid in zip(getattr(report, name), uids, strict=True):
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.3", sop_uid
            item.FailureReason = 0x0112
    from pynetdicom import build_role

    ae = AE(title)
    ae.add_requested_context(Push)
    link = ae.associate(
        "127.0.0.1", node.settings.port, ae_title="MEDOPT", ext_neg=[build_role(Push, scu_role=False, scp_role=True)]
    )
    assert link.is_established
    response, _ = link.send_n_event_report(report, 1, Push, "1.2.840.10008.1.20.1.1")
    link.release()
    return int(response.Status)


def test_a_report_without_a_request_confirms_nothing(tmp_path: Path) -> None:
    node = Committing(tmp_path, free_port(), free_port(), "PACS")
    name = node.settings.destinations[0].name
    three = ["2.25.1", "2.25.2", "2.25.3"]
    try:
        assert send_report(node, "PACS", "1.2.3.4", ReferencedSOPSequence=three) == 0x0110
        assert send_report(node, "PACS", transaction_uid(name, three[:1]), ReferencedSOPSequence=three) == 0x0110
        assert state_counts(node.ledger)["sends"] == {"waiting": 3}
        status = send_report(
            node, "PACS", transaction_uid(name, three), ReferencedSOPSequence=three[:2], FailedSOPSequence=three[2:]
        )
        assert (status, state_counts(node.ledger)["sends"]) == (0, {"sent": 2, "waiting": 1})
        assert node.reasons() == {"the destination does not keep it (0x0112)"}
    finally:
        node.close()


def test_it_must_be_accepted_as_a_sender_to_report(tmp_path: Path) -> None:
    peer = {"aet": "PACS", "host": "127.0.0.1", "port": 104, "commit": True}
    with pytest.raises(ValueError, match="name it in accept, too"):
        node_with_results(tmp_path, 0, 1, peer)


class Strict:
    """A PACS that refuses a transaction UID used before (0x0131), and reports on the same association or never."""

    def __init__(self, *, reports: bool) -> None:
        self.port, self.asked, self.answers = free_port(), list[str](), list[int]()
        self._reports = reports
        ae = AE("PACS")
        ae.supported_contexts = [*AllStoragePresentationContexts]
        ae.add_supported_context(Push)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, lambda _: 0),
            (evt.EVT_N_ACTION, self._on_action),
        ]
        self._server: Any = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def _on_action(self, event: Any) -> tuple[int, Any]:
        request = event.action_information
        uid = str(request.TransactionUID)
        if uid in self.asked:
            return 0x0131, None
        self.asked.append(uid)
        if self._reports:
            threading.Thread(target=self._report, args=(event.assoc, request), daemon=True).start()
        return 0, None

    def _report(self, link: Any, request: Dataset) -> None:
        time.sleep(0.2)
        report = Dataset()
        report.TransactionUID, report.ReferencedSOPSequence = request.TransactionUID, request.ReferencedSOPSequence
        response, _ = link.send_n_event_report(report, 1, Push, "1.2.840.10008.1.20.1.1")
        self.answers.append(int(response.get("Status", -1)))

    def close(self) -> None:
        self._server.shutdown()


def test_no_transaction_uid_is_used_twice(tmp_path: Path) -> None:
    pacs = Strict(reports=False)
    node = Committing(tmp_path, free_port(), pacs.port, "PACS")
    try:
        for _ in range(3):
            node.sender.send_due()
            assert node.reasons() == {AWAITING_REPORT}
            node.clock.now += 60
        assert len(set(pacs.asked)) == 3
        assert all(UID(uid).is_valid and uuid.UUID(int=int(uid[5:])).version == 8 for uid in pacs.asked)
        report = {"ReferencedSOPSequence": ["2.25.1", "2.25.2", "2.25.3"]}
        assert send_report(node, "PACS", pacs.asked[0], **report) == 0  # the first report comes late, and holds
        assert state_counts(node.ledger)["sends"] == {"sent": 3}
    finally:
        node.close()
        pacs.close()


def test_a_report_on_the_same_association_is_answered(tmp_path: Path) -> None:
    pacs = Strict(reports=True)
    node = Committing(tmp_path, free_port(), pacs.port, "PACS")
    try:
        node.sender.send_due()
        node.wait(lambda: bool(pacs.answers))
        assert pacs.answers == [0]
        assert state_counts(node.ledger)["sends"] == {"sent": 3}
    finally:
        node.close()
        pacs.close()
