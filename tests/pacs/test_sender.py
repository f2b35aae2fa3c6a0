"""SendSettings with a clock of its own: bounded waits, then parked, nothing twice; and the audit's chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peers import Archive
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.sop_class import BasicTextSRStorage  # type: ignore[attr-defined]

from medopt.core.errors import DataError
from medopt.pacs.audit import AuditFile, verify
from medopt.pacs.ledger import Instance, Ledger, Result
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.sender import Sender, echo, wait_seconds
from medopt.pacs.settings import NodeSettings, SendSettings
from medopt.pacs.spool import LEDGER, RESULTS, Spool, spool_file
from medopt.pacs.status import parked_items, retry_parked, state_counts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def node_with_results(
    folder: Path,
    port: int,
    count: int = 1,
    destination: dict[str, Any] | None = None,
    accept: list[dict[str, Any]] | None = None,
    **sending: object,
) -> tuple[NodeSettings, Ledger]:
    """A node with some small reports to send to the destination."""
    settings = NodeSettings.model_validate(
        {
            "aet": "MEDOPT",
            "release": folder,
            "spool": folder / "spool",
            "accept": accept or [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [destination or {"aet": "PACS", "host": "127.0.0.1", "port": port}],
            "sending": {"tries": 4, "first_seconds": 10, "longest_seconds": 25, "timeout_seconds": 5} | sending,
        }
    )
    ledger = Ledger(Spool(settings.spool).root / LEDGER)
    ledger.record(Instance("1.2.3.4", "1.2.3", "c", "t", "d", 1, "f", True), 1, late=True)
    ledger.complete("1.2.3", 1)
    due = ledger.take(1)
    assert due is not None
    results = []
    for number in range(count):
        report = Dataset()
        report.SOPClassUID, report.SOPInstanceUID = BasicTextSRStorage, f"2.25.{number + 1}"
        report.PatientID, report.StudyInstanceUID, report.SeriesInstanceUID = "Q", "1.2.3", "1.2.3.9"
        report.file_meta = FileMetaDataset()
        report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = spool_file(RESULTS, "1.2.3", report.SOPInstanceUID)
        (settings.spool / file).parent.mkdir(parents=True, exist_ok=True)
        report.save_as(settings.spool / file, enforce_file_format=True)
        results.append(Result(report.SOPInstanceUID, "1.2.3", BasicTextSRStorage, f"text{number}", file, "d"))
    ledger.finish(due, "done", "", results, [settings.destinations[0].name], 1000)
    return settings, ledger


def test_down_then_up_and_nothing_twice(tmp_path: Path) -> None:
    archive, clock = Archive(), Clock()
    settings, ledger = node_with_results(tmp_path, archive.port)
    sender = Sender(settings, ledger, clock=clock)
    assert sender.send_due() == 0
    assert echo(settings, settings.destinations[0]) == "it is not reached"
    clock.now += 9
    assert SendQueue(ledger).due(clock.now) == []
    archive.start()
    try:
        clock.now += 1
        assert [sender.send_due() for _ in range(3)] == [1, 0, 0]
        assert [len(copies) for copies in archive.kept.values()] == [1]
        assert echo(settings, settings.destinations[0]) == ""
    finally:
        archive.stop()


def test_waits_double_up_to_a_bound_then_it_is_parked(tmp_path: Path) -> None:
    archive, clock = Archive(), Clock()
    settings, ledger = node_with_results(tmp_path, archive.port)
    sender = Sender(settings, ledger, clock=clock)
    assert [wait_seconds(settings.sending, attempts) for attempts in (1, 2, 3, 1000)] == [10, 20, 25, 25]
    for _ in range(6):  # an hour in which the PACS is away
        sender.send_due()
        clock.now += 600
    assert state_counts(ledger)["sends"] == {"parked": 1}
    assert parked_items(ledger) == [("1.2.3", settings.destinations[0].name, "the destination is not reached")]
    archive.start()
    try:
        assert sender.send_due() == 0
        assert retry_parked(ledger, clock.now) == (0, 1)
        assert sender.send_due() == 1
    finally:
        archive.stop()


def test_an_hour_without_the_pacs_with_the_default_settings(tmp_path: Path) -> None:
    archive, clock = Archive(), Clock()
    settings, ledger = node_with_results(tmp_path, archive.port, count=2, **SendSettings().model_dump())
    sender, attempts = Sender(settings, ledger, clock=clock), []

    def wait(seconds: int) -> None:
        for _ in range(seconds // 15):
            clock.now += 15
            attempts.append(len(SendQueue(ledger).due(clock.now)))
            sender.send_due()

    wait(3600)
    assert sum(attempts) == 2 * 9  # each after 15, 30, 60, 120, 240, 480, 960, 1860 and 2760 seconds
    assert state_counts(ledger)["sends"] == {"waiting": 2}  # an hour needs no person
    wait(3600)
    assert state_counts(ledger)["sends"] == {"parked": 2}
    assert {reason for _, _, reason in parked_items(ledger)} == {"the destination is not reached"}
    archive.start()
    try:
        wait(600)
        assert archive.kept == {}
        assert retry_parked(ledger, clock.now) == (0, 2)
        wait(600)
        assert [len(copies) for copies in archive.kept.values()] == [1, 1]
        assert state_counts(ledger)["sends"] == {"sent": 2}
    finally:
        archive.stop()


def test_each_instance_fails_by_itself(tmp_path: Path) -> None:
    archive, clock = Archive(), Clock()
    settings, ledger = node_with_results(tmp_path, archive.port, count=3)
    refused = "2.25.2"
    keep = archive._store
    archive._store = lambda event: (  # type: ignore[method-assign]
        0xA700 if event.request.AffectedSOPInstanceUID == refused else keep(event)
    )
    archive.start()
    try:
        assert Sender(settings, ledger, clock=clock).send_due() == 2
        assert (set(archive.kept), state_counts(ledger)["sends"]) == ({"2.25.1", "2.25.3"}, {"sent": 2, "waiting": 1})
    finally:
        archive.stop()


def test_the_chain_goes_on_after_a_start_and_a_torn_line(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.jsonl", Clock()
    for number in range(3):
        audit = AuditFile(path, clock)
        audit("received", number=number)
        audit.close()
        with path.open("ab") as stream:
            stream.write(b'{"at": "2026')  # the process was killed there
    again = AuditFile(path, clock)
    again("stopped")
    again.close()
    count, last_hash = verify(path)
    assert (count, len(last_hash)) == (4, 64)


@pytest.mark.parametrize("edit", ["change", "remove", "swap"])
def test_any_edit_is_found(tmp_path: Path, edit: str) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditFile(path, Clock())
    for number in range(5):
        audit("received", number=number)
    audit.close()
    lines = path.read_text().splitlines(keepends=True)
    if edit == "change":
        lines[2] = lines[2].replace('"number": 2', '"number": 7')
    elif edit == "remove":
        del lines[2]
    else:
        lines[1], lines[2] = lines[2], lines[1]
    path.write_text("".join(lines))
    with pytest.raises(DataError, match=r"line [234] does not follow"):
        verify(path)
