"""What the intake does with an instance in each case, without a network; and the limits of UIDs and of space."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peers import radiograph
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, SegmentationStorage

from medopt.core.privacy import pseudonym
from medopt.pacs import intake
from medopt.pacs.intake import Intake, Refusal, content_digest, is_uid, parse_instance
from medopt.pacs.ledger import Instance, Ledger, Result
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER, STUDIES, Spool, spool_file

STUDY = "1.2.826.0.1.4711.1.5"


class Door:
    """An intake with all that it calls recorded."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        values: dict[str, Any] = {
            **{"aet": "MEDOPT", "release": folder, "spool": folder / "spool", "limits": {"free_mb": 1}},
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": 104}],
        }
        self.settings = NodeSettings.model_validate(values | changes)
        self.spool = Spool(folder / "spool")
        self.ledger = Ledger(folder / "spool" / LEDGER)
        self.told: list[tuple[str, Callable[[], bool]]] = []
        self.audit: list[tuple[str, dict[str, Any]]] = []
        self.intake = Intake(
            self.settings,
            self.spool,
            self.ledger,
            lambda *image: self.told.append(image),
            lambda event, **facts: self.audit.append((event, facts)),
            lambda: 77.0,
        )
        self.written: list[str] = []

    def is_open(self) -> bool:
        return True

    def store(self, given: Instance, content: bytes = b"pixels", header: Callable[[], Dataset] = Dataset) -> None:
        def write(name: str) -> None:
            self.written.append(name)
            self.spool.write(name, [content])

        self.intake.store(given, write, self.is_open, header)

    def refused(self, given: Instance, header: Callable[[], Dataset] = Dataset) -> Refusal:
        told, audit = list(self.told), list(self.audit)
        with pytest.raises(Refusal) as found:
            self.store(given, header=header)
        assert (self.told, self.audit) == (told, audit)  # a refused instance tells nobody and keeps no study waiting
        return found.value

    def answer(self) -> None:
        """The study is answered."""
        self.ledger.complete(STUDY, 2)
        due = self.ledger.take(3)
        assert due is not None
        self.ledger.finish(due, "done", "", [], [], 4)


def received(number: int = 1, *, image: bool = True, **changes: Any) -> Instance:
    uid = f"{STUDY}.1.{number}"
    whole = Instance(uid, STUDY, "1.2.3", "1.2", f"digest {number}", 6, spool_file(STUDIES, STUDY, uid), image)
    return replace(whole, **changes)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_the_status_codes_are_those_of_the_standard() -> None:
    """PS3.4 table B.2-1 and PS3.7 annex C."""
    assert (intake.SUCCESS, intake.PROCESSING_FAILURE, intake.DUPLICATE_INSTANCE) == (0, 0x0110, 0x0111)
    assert (intake.NOT_AUTHORIZED, intake.OUT_OF_RESOURCES) == (0x0124, 0xA700)
    assert (intake.DATA_SET_MISMATCH, intake.CANNOT_UNDERSTAND) == (0xA900, 0xC000)


def test_a_new_image_and_its_resend(door: Door) -> None:
    one = received()
    door.store(one)
    assert (door.spool.root / one.file).read_bytes() == b"pixels"
    assert door.ledger.images(STUDY) == (one,)
    assert door.ledger.rows("SELECT received FROM instances")[0][0] == 77
    assert door.audit == [("received", {"study": pseudonym(STUDY), "content": "digest 1"})]
    door.store(one)  # whoever sends again is still sending: the study is not yet complete
    assert door.told == [(STUDY, door.is_open)] * 2
    assert (len(door.audit), len(door.written)) == (1, 1)


def test_a_result_of_the_node_that_comes_back_is_left_alone(door: Door) -> None:
    door.store(received())
    door.ledger.complete(STUDY, 2)
    due = door.ledger.take(3)
    assert due is not None
    door.ledger.finish(due, "done", "", [Result("2.25.1", STUDY, "c", "report", "results/1", "d")], [], 4)
    before = (list(door.told), list(door.audit), list(door.written))
    door.store(received(sop_uid="2.25.1"))
    assert (door.told, door.audit, door.written) == before
    assert door.ledger.state(STUDY) == "done"


def test_what_is_no_image_keeps_only_a_study_waiting_that_receives(door: Door) -> None:
    door.store(received(8, image=False))
    assert len(door.told) == 1
    door.store(received(1))
    door.answer()
    door.store(received(9, image=False))
    assert (len(door.told), len(door.audit)) == (2, 3)
    assert door.ledger.state(STUDY) == "done"


def test_a_late_image_leads_to_a_new_result_or_is_refused(tmp_path: Path) -> None:
    door = Door(tmp_path / "a")
    door.store(received(1))
    door.answer()
    door.store(received(2))
    assert (door.ledger.state(STUDY), len(door.told)) == ("receiving", 2)
    door = Door(tmp_path / "b", late_images="refuse")
    door.store(received(1))
    door.answer()
    assert door.refused(received(2)) == Refusal(0x0124, "the study was answered; late images are refused here")
    assert not (door.spool.root / received(2).file).exists()


def test_an_image_whose_study_is_answered_while_it_is_written_leaves_no_file(tmp_path: Path) -> None:
    door = Door(tmp_path, late_images="refuse")
    door.store(received(1))
    late = received(2)

    def write(name: str) -> None:
        door.spool.write(name, [b"pixels"])
        door.answer()

    with pytest.raises(Refusal, match="late images are refused"):
        door.intake.store(late, write, door.is_open)
    assert not (door.spool.root / late.file).exists()
    assert (door.spool.root / received(1).file).exists()
    assert len(door.told) == 1


def test_an_image_of_a_study_that_left_the_spool_is_refused(door: Door) -> None:
    door.store(received(1))
    door.answer()
    with door.ledger.transaction() as db:
        db.execute("UPDATE studies SET emptied = 2")
    assert door.refused(received(2)) == Refusal(0x0124, "the study was answered and has left the spool")


HERE = "another instance with this UID is here already"


def test_the_same_uids_with_other_content(door: Door, tmp_path: Path) -> None:
    scan = radiograph(tmp_path / "a.dcm")
    one, content = received(), scan.read_bytes()
    same, other = (lambda: dcmread(scan, stop_before_pixels=True)), Dataset()
    other.update(same())
    other.PerformedProcedureStepStartDate = "20200101"
    door.store(one, content)
    changed = replace(one, digest="another")
    assert door.refused(changed, same) == Refusal(0x0111, HERE)  # other pixels, whatever the header says
    recoded = replace(changed, transfer_syntax="1.2.1")
    assert door.refused(replace(recoded, study_uid="1.9"), same) == Refusal(0x0111, HERE)
    assert door.refused(replace(recoded, sop_class="1.9"), same) == Refusal(0x0111, HERE)
    reason = "one with this UID is here, with another PerformedProcedureStepStartDate"
    assert door.refused(recoded, lambda: other) == Refusal(0x0111, reason[:64])
    told = len(door.told)
    door.store(recoded, header=same)  # the same image in another encoding: the first is kept
    assert (len(door.told), len(door.audit), len(door.written)) == (told + 1, 1, 1)
    (door.spool.root / one.file).write_bytes(b"damaged")
    assert door.refused(recoded, same) == Refusal(0x0111, HERE)
    (door.spool.root / one.file).unlink()
    gone = Refusal(0x0111, "it was here in another encoding and has left the spool")
    assert door.refused(recoded, same) == gone
    assert door.ledger.images(STUDY) == (one,)


def test_a_refusal_is_logged_and_audited_with_its_status(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("medopt.pacs")
    with caplog.at_level(logging.INFO, log.name):
        log.addHandler(caplog.handler)  # a node that ran in this process may have kept the log from the root
        door.intake.record_refusal(Refusal(0x0111, "why"))
        log.removeHandler(caplog.handler)
    assert door.audit == [("refused", {"reason": "why", "status": "0x0111"})]
    assert set(caplog.messages) == {"instance refused (0x0111): why"}


def test_space_is_kept_to_the_byte_and_asked_for_before_anything_is_written(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = door.settings.limits.free_bytes
    assert limit > 0
    free = [limit]
    monkeypatch.setattr(door.spool, "free_bytes", lambda: free[0])
    door.intake.require_space()
    door.intake.require_space(0)
    for size in (1, 6):
        with pytest.raises(Refusal) as found:
            door.intake.require_space(size)
        assert found.value == Refusal(0xA700, "the spool's disk is nearly full")
    free[0] = limit + 5
    assert door.refused(received(1, size=6)).status == 0xA700
    assert door.written == []
    free[0] = limit + 6
    door.store(received(1, size=6))
    free[0] = limit - 1
    with pytest.raises(Refusal):
        door.intake.require_space()
    door.store(received(1, size=6))  # what is here already needs no space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("1." + "2" * 62, True), ("1." + "2" * 63, False), ("1.2", True), ("0.0", True), ("1", False), ("", False)],
        *[("1.02", False), ("01.2", False), ("1..2", False), ("1.2.", False), (".1", False), ("1.2\n", False)],
        *[("1.٣", False), ("1.2a", False), ("../etc", False), ("10.20", True)],
    ],
)
def test_a_uid_has_at_most_64_characters_and_no_leading_zeros(text: str, expected: bool) -> None:
    """PS3.5 9.1."""
    assert is_uid(text) is expected


def test_a_digest_is_of_the_data_set_and_its_syntax() -> None:
    expected = hashlib.sha256(b"abcdef" + b"1.2.3").hexdigest()
    assert content_digest("1.2.3", [b"abc", memoryview(b"def")]) == expected
    assert content_digest("1.2.4", [b"abcdef"]) != expected


def parsed(dataset: Dataset, **announced: str) -> Instance:
    stream = io.BytesIO()
    dataset.save_as(stream, implicit_vr=False, little_endian=True)
    names = {"sop_uid": f"{STUDY}.1.1", "sop_class": "1.2.840.10008.5.1.4.1.1.1.1"} | announced
    syntax = names.pop("transfer_syntax", str(ExplicitVRLittleEndian))
    return parse_instance(io.BytesIO(stream.getvalue()), names["sop_uid"], names["sop_class"], syntax, "d", 9)


@pytest.fixture
def scan(tmp_path: Path) -> Dataset:
    dataset = dcmread(radiograph(tmp_path / "a.dcm"))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def test_an_instance_is_read_from_its_header(scan: Dataset) -> None:
    uid, sop_class = str(scan.SOPInstanceUID), str(scan.SOPClassUID)
    expected = Instance(uid, STUDY, sop_class, "1.2.840.10008.1.2.1", "d", 9, spool_file(STUDIES, STUDY, uid), True)
    assert parsed(scan, sop_uid=uid, sop_class=sop_class) == expected
    scan.SOPClassUID = scan.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    found = parsed(scan, sop_uid=uid, sop_class=SegmentationStorage)
    assert found == replace(expected, sop_class=SegmentationStorage, image=False)


def test_command_and_data_set_are_of_one_instance_and_one_class(scan: Dataset) -> None:
    differ = Refusal(0xA900, "command and data set name different instances")
    for announced in ({"sop_uid": "1.2.3"}, {"sop_class": "1.2.840.10008.5.1.4.1.1.2"}):
        with pytest.raises(Refusal) as found:
            parsed(scan, **announced)
        assert found.value == differ


@pytest.mark.parametrize("name", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_missing_or_malformed_uid_is_named(scan: Dataset, name: str) -> None:
    for value, reason in (("", f"{name} is missing"), ("1.02", f"{name} is not a UID")):
        scan[name].value = value
        with pytest.raises(Refusal) as found:
            parsed(scan)
        assert found.value == Refusal(0xA900, reason)
    del scan[name]
    with pytest.raises(Refusal, match=f"{name} is missing"):
        parsed(scan)


def test_what_cannot_be_read_is_refused(scan: Dataset) -> None:
    with pytest.raises(Refusal) as found:
        parsed(scan, transfer_syntax=str(DeflatedExplicitVRLittleEndian))
    assert found.value == Refusal(0xC000, "deflated data sets are not accepted")
    with pytest.raises(Refusal, match="its header cannot be read") as found:
        parse_instance(io.BytesIO(b"no DICOM at all"), "1", "1", str(ExplicitVRLittleEndian), "d", 1)
    assert found.value.status == 0xC000
