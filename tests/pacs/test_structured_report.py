"""What is sent back: dciodvfy finds no error, highdicom and dcmtk read it, the same work gives the same object."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from highdicom import sr
from peers import radiograph
from pydicom import Dataset, dcmread

from medopt.pacs.settings import Results
from medopt.pacs.structured_report import OutgoingObject, ScanAnswer, make_results
from medopt.pacs.study_inference import Answering
from medopt.release.predictor import Answer

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture(scope="module")
def answering(release: Path) -> Answering:
    return Answering(release, "int8", None, Results())


def made(answering: Answering, scan: Path, answer: Answer, now: datetime = NOW, **earlier: Any) -> list[OutgoingObject]:
    judged = [ScanAnswer(answer, (dcmread(scan, stop_before_pixels=True),))]
    return make_results(answering.origin, judged, ["digest"], earlier, Results(), now)


FOUND = Answer({"clear": 0.1236, "blob": 0.8764}, "blob", (1.9,))
DECLINED = Answer({"clear": 0.5, "blob": 0.5}, "", (0.0,), "it is blank")


def parsed(one: OutgoingObject) -> Dataset:
    return dcmread(io.BytesIO(one.content))


def group(one: OutgoingObject) -> Any:
    content = sr.srread(io.BytesIO(one.content)).content
    (found,) = content.get_image_measurement_groups()
    return found


def presences(found: Any) -> list[Any]:
    """The evaluations of presence; highdicom counts the algorithm's family among the evaluations, too."""
    return [one for one in found.get_qualitative_evaluations() if one.name.value == "121052"]


def test_a_study_becomes_two_reports(answering: Answering, tmp_path: Path) -> None:
    radiograph(tmp_path / "in" / "a.dcm", number=3)
    image = dcmread(tmp_path / "in" / "a.dcm")
    found = answering.study(tmp_path / "in", {"a.dcm": "d"}, {}, NOW)
    assert found.ending in ("done", "declined")
    report, text = (parsed(one) for one in found.made[:2])
    for one in (report, text):
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
            assert one[keyword].value == image[keyword].value
        assert (one.VerificationFlag, one.PreliminaryFlag, one.CompletionFlag) == (
            *("UNVERIFIED", "PRELIMINARY", "COMPLETE"),
        )
        assert one.SeriesInstanceUID != image.SeriesInstanceUID
    assert (report.SeriesNumber, text.SeriesNumber) == (9001, 9002)


def test_what_the_report_says(answering: Answering, tmp_path: Path) -> None:
    scan = radiograph(tmp_path / "a.dcm")
    report, text = made(answering, scan, FOUND)
    found = group(report)
    (certainty,) = found.get_measurements()
    (presence,) = presences(found)
    assert (certainty.name.value, certainty.value, certainty.unit.value) == ("111012", 87.64, "%")
    assert (presence.name.value, presence.value.value) == ("121052", "52101004")
    assert found.tracking_identifier == "blob"
    assert [str(one.referenced_sop_instance_uid) for one in found.source_images] == [dcmread(scan).SOPInstanceUID]
    assert answering.origin.model_digest.encode() in report.content
    assert b"blob: Present, probability 87.6 %" in text.content


def test_what_is_declined_is_undetermined_and_has_no_number(answering: Answering, tmp_path: Path) -> None:
    report, text = made(answering, radiograph(tmp_path / "a.dcm"), DECLINED)
    found = group(report)
    assert found.get_measurements() == []
    assert [one.value.value for one in presences(found)] == ["373068000"]
    assert b"Declined: it is blank" in report.content
    assert b"Undetermined. Declined: it is blank" in text.content


def test_uids_follow_from_the_work(answering: Answering, tmp_path: Path) -> None:
    scan, later = radiograph(tmp_path / "a.dcm"), datetime(2027, 1, 1, tzinfo=UTC)
    first, again = made(answering, scan, FOUND), made(answering, scan, FOUND, later)
    other = made(answering, radiograph(tmp_path / "b.dcm", study=2), FOUND)
    assert [one.sop_uid for one in first] == [one.sop_uid for one in again]
    assert len({one.sop_uid for one in (*first, *other)}) == 4


def test_a_later_result_names_the_earlier_one(answering: Answering, tmp_path: Path) -> None:
    later = made(answering, radiograph(tmp_path / "a.dcm"), FOUND, report=["1.2.3", "1.2.4"])
    (study,) = parsed(later[0]).PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3"
    assert "PredecessorDocumentsSequence" not in parsed(later[1])


@pytest.mark.parametrize(
    ("keyword", "value", "reported"),
    [
        ("PatientSex", "unknown", ""),
        ("PatientBirthDate", "yesterday", ""),
        ("PatientName", "Grün^Jörg", "Grün^Jörg"),
        ("StudyTime", "x", ""),
    ],
)
def test_odd_headers_give_a_valid_report(
    answering: Answering, tmp_path: Path, keyword: str, value: str, reported: str
) -> None:
    image = dcmread(radiograph(tmp_path / "a.dcm"), stop_before_pixels=True)
    image.PatientSex, image.PatientBirthDate, image.StudyTime = "F", "19700101", "101500"
    expected = {name: str(image[name].value) for name in ("PatientSex", "PatientBirthDate", "PatientName", "StudyTime")}
    image.SpecificCharacterSet = "ISO_IR 192"
    image[keyword]._value = value  # as a careless writer has it
    report = make_results(answering.origin, [ScanAnswer(FOUND, (image,))], ["d"], {}, Results(), NOW)[0]
    checked([report], tmp_path)
    written = parsed(report)
    assert {name: str(written[name].value) for name in expected} == expected | {keyword: reported}


def checked(objects: Sequence[OutgoingObject], folder: Path) -> None:
    """No error from dciodvfy, and dsrdump reads them, where these are installed."""
    for one in objects:
        path = folder / f"{one.kind}.dcm"
        path.write_bytes(one.content)
        if shutil.which("dciodvfy"):
            done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            assert "Error" not in done.stderr
        if shutil.which("dsrdump"):
            done = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, check=False)
            assert done.returncode == 0
            assert "E:" not in done.stderr


@pytest.mark.parametrize("answer", [FOUND, DECLINED], ids=["found", "declined"])
def test_others_read_it(answering: Answering, tmp_path: Path, answer: Answer) -> None:
    if not (shutil.which("dciodvfy") and shutil.which("dsrdump")):
        pytest.skip("dciodvfy (dicom3tools) and dsrdump (dcmtk) are not installed")
    objects = made(
        answering, radiograph(tmp_path / "a.dcm"), answer, report=["1.2.3", "1.2.4"], text=["1.2.5", "1.2.6"]
    )
    checked(objects, tmp_path)
