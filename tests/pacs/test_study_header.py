"""Whose results they are: one patient and study for all images, in a form that DICOM allows, or none."""

from __future__ import annotations

import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from peers import radiograph
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_header import PatientConflict, image_header, study_header
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import StudyRequest, StudyResponse

LATE = datetime(2026, 3, 4, 22, 22, 7, tzinfo=UTC)


@pytest.fixture(scope="module")
def inference(release: Path) -> StudyInference:
    return StudyInference(release, "int8", None, ResultSettings())


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def study(folder: Path, *headers: dict[str, Any]) -> Path:
    """One image for each header; a value is stored as it is given, however wrong."""
    for number, values in enumerate(headers, start=1):
        path = radiograph(folder / f"{number}.dcm", number=number)
        image = dcmread(path)
        image.SpecificCharacterSet = "ISO_IR 192"
        for keyword, value in values.items():
            tag = tag_for_keyword(keyword)
            assert tag is not None
            encoded = value.encode() + b" " * (len(value.encode()) % 2)
            image[keyword] = RawDataElement(Tag(tag), dictionary_VR(tag), len(encoded), encoded, 0, False, True)
        image.save_as(path)
    return folder


def answer(inference: StudyInference, folder: Path) -> StudyResponse:
    digests = {path.name: path.name for path in folder.iterdir()}
    return inference.answer(StudyRequest(folder=folder, digests=digests, previous={}, now=LATE))


def objects(response: StudyResponse) -> list[Dataset]:
    return [dcmread(io.BytesIO(each.content)) for each in response.objects]


@pytest.mark.parametrize(
    ("first", "second", "keyword"),
    [
        ({"PatientID": "A77"}, {"PatientID": "B88"}, "PatientID"),
        ({"PatientID": "A77"}, {"PatientID": ""}, "PatientID"),
        ({"PatientID": "A77\\B88"}, {"PatientID": "A77\\B88"}, "PatientID"),
        ({"IssuerOfPatientID": "ONE"}, {"IssuerOfPatientID": "TWO"}, "IssuerOfPatientID"),
        ({"PatientName": "QUITTENBAUM^ZOE"}, {"PatientName": "BIRNBAUM^ZOE"}, "PatientName"),
        ({"PatientName": "=A山^B"}, {"PatientName": "=C山^B"}, "PatientName"),
        ({"PatientName": "QUITTENBAUM^ZOE\\BIRNBAUM^UDO"}, {}, "PatientName"),
        ({"PatientBirthDate": "19700101"}, {"PatientBirthDate": "19710101"}, "PatientBirthDate"),
        ({"PatientSex": "F"}, {"PatientSex": "M"}, "PatientSex"),
        ({"PatientID": "7" * 65}, {"PatientID": "7" * 65}, "PatientID"),
        ({"PatientID": "A77\nB"}, {"PatientID": "A77\nB"}, "PatientID"),
    ],
)
def test_a_study_of_two_patients_is_parked(
    inference: StudyInference, tmp_path: Path, first: dict[str, str], second: dict[str, str], keyword: str
) -> None:
    response = answer(inference, study(tmp_path, first, second))
    assert (response.ending, response.objects) == ("parked", ())
    assert keyword in response.reason
    assert not any(word in response.reason for word in ("A77", "B88", "777", "BAUM", "ZOE", "1970"))


@pytest.mark.parametrize(
    ("first", "second", "reported"),
    [
        ({"AccessionNumber": "A1\\A2"}, {"AccessionNumber": "A1\\A2"}, {"AccessionNumber": ""}),
        ({"AccessionNumber": "A1\\A1"}, {"AccessionNumber": "A1"}, {"AccessionNumber": "A1"}),
        ({"AccessionNumber": "A1"}, {"AccessionNumber": "A2"}, {"AccessionNumber": ""}),
        ({"AccessionNumber": "A" * 17}, {}, {"AccessionNumber": ""}),
        ({"PatientID": "X\\X"}, {"PatientID": "X "}, {"PatientID": "X"}),
        ({"PatientName": "Doe^Jane^^"}, {"PatientName": "DOE^JANE"}, {"PatientName": "Doe^Jane^^"}),
        ({"PatientName": "D" * 65}, {"PatientName": "D" * 65}, {"PatientName": ""}),
        ({"PatientName": "A^B^C^D^E^F"}, {"PatientName": "A^B^C^D^E^F"}, {"PatientName": ""}),
        ({"StudyID": "I" * 17}, {"StudyID": "I" * 17}, {"StudyID": ""}),
        ({"StudyDate": "2020.01.31"}, {"StudyDate": "20200131"}, {"StudyDate": "20200131"}),
        ({"StudyDate": "20200131"}, {"StudyDate": "20200201"}, {"StudyDate": ""}),
        ({"StudyDate": "20201331"}, {"StudyDate": "20201331"}, {"StudyDate": ""}),
        ({"StudyTime": "10:15:00"}, {"StudyTime": "101500"}, {"StudyTime": "101500"}),
        ({"PatientBirthDate": "1970.01.01"}, {"PatientBirthDate": ""}, {"PatientBirthDate": "19700101"}),
        ({"StudyDescription": "S" * 65}, {"StudyDescription": "S" * 65}, {"StudyDescription": ""}),
        ({"ReferringPhysicianName": "A^B\\C^D"}, {}, {"ReferringPhysicianName": ""}),
    ],
)
def test_what_cannot_be_repeated_is_empty_and_never_invented(
    inference: StudyInference, tmp_path: Path, first: dict[str, str], second: dict[str, str], reported: dict[str, str]
) -> None:
    response = answer(inference, study(tmp_path / "in", first, second))
    assert response.ending != "parked", response.reason
    results = objects(response)
    assert len(results) >= 2
    for each in results:
        assert {key: str(each.get(key) or "") for key in reported} == reported
        each.save_as(tmp_path / "result.dcm")
        if shutil.which("dciodvfy"):
            ended = subprocess.run(["dciodvfy", tmp_path / "result.dcm"], capture_output=True, text=True, check=False)
            assert "Error" not in ended.stderr


def clocks(each: Dataset) -> set[str]:
    pairs = (("ContentDate", "ContentTime"), ("InstanceCreationDate", "InstanceCreationTime"))
    pairs += (("SeriesDate", "SeriesTime"), ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"))
    return {f"{each[date].value} {str(each[time].value)[:4]}" for date, time in pairs if date in each and time in each}


def test_one_clock_in_one_object(inference: StudyInference, tmp_path: Path, in_berlin: None) -> None:
    for each in objects(answer(inference, study(tmp_path / "local", {}))):
        assert clocks(each) == {"20260304 2322"}  # not UTC's 22:22
        assert "TimezoneOffsetFromUTC" not in each
    for each in objects(answer(inference, study(tmp_path / "offset", {"TimezoneOffsetFromUTC": "+0530"}))):
        assert (clocks(each), each.TimezoneOffsetFromUTC) == ({"20260305 0352"}, "+0530")


def test_a_header_is_read_even_where_it_is_damaged() -> None:
    image = Dataset()
    image.PatientID, image.StudyInstanceUID = "A77", "1.2.3"
    assert study_header([image]).PatientID == "A77"
    other = Dataset()
    other.PatientID = "B88"
    with pytest.raises(PatientConflict):
        study_header([image, other])
    image["Rows"] = RawDataElement(Tag("Rows"), "US", 1, b"\x01", 0, False, True)  # half a number
    assert image_header(image, study_header([image])).Rows == ""


def test_the_reason_of_a_parked_study_quotes_no_header(inference: StudyInference, tmp_path: Path) -> None:
    folder = study(tmp_path, {"SeriesDescription": "Thorax QUITTENBAUM"}, {"PatientComments": "QUITTENBAUM"})
    damaged = dcmread(folder / "1.dcm")
    damaged.PixelData = damaged.PixelData[:20]
    damaged.save_as(folder / "1.dcm")
    response = answer(inference, folder)
    assert (response.ending, bool(response.reason)) == ("parked", True)
    assert not [word for word in ("QUITTENBAUM", "Thorax", "MRN", str(tmp_path)) if word in response.reason]
