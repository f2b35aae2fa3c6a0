"""What is kept of an answer: pseudonyms by which scans and patients are told apart, and no text that cannot be sent."""

from __future__ import annotations

import math
from pathlib import Path

from peers import radiograph
from pydicom import Dataset, dcmread

from medopt.core.privacy import pseudonym
from medopt.pacs.result_objects import ScanAnswer
from medopt.pacs.study_record import Stopwatch, study_record
from medopt.pacs.worker_protocol import StudyRecord, StudyResponse
from medopt.release.predictor import Answer

ANSWER = Answer({"clear": 0.2, "blob": 0.8}, "blob", (1.4,), distances=(math.nan, math.inf))


def image(series: str = "1.2.1", instance: str = "1.2.1.1", **values: str) -> Dataset:
    found = Dataset()
    found.StudyInstanceUID, found.SeriesInstanceUID, found.SOPInstanceUID = "1.2", series, instance
    for name, value in ({"PatientID": "MRN1", "InstitutionName": "QUELLENHOF"} | values).items():
        setattr(found, name, value)
    return found


def record(images: list[Dataset], answers: list[ScanAnswer], *, by_series: bool = False) -> StudyRecord:
    return study_record(images, answers, Stopwatch.start(), by_series=by_series)


def test_a_scan_is_an_image_a_series_or_the_series_of_a_case() -> None:
    first, second = image(), image("1.2.2", "1.2.2.1")
    found = record([first, second], [ScanAnswer(ANSWER, (first,)), ScanAnswer(ANSWER, (second,))])
    assert [scan.scan for scan in found.scans] == [pseudonym("1.2.1.1"), pseudonym("1.2.2.1")]
    more = image("1.2.1", "1.2.1.2")
    assert record([first], [ScanAnswer(ANSWER, (first, more))], by_series=True).scans[0].scan == pseudonym("1.2.1")
    case = record([first], [ScanAnswer(ANSWER, (second, first))], by_series=True)
    assert case.scans[0].scan == pseudonym("1.2.1 1.2.2")
    none = Answer({}, "", (), declined="the rules leave none")
    assert record([first], [ScanAnswer(none, (first, second))]).scans[0].scan == pseudonym("1.2")


def test_names_are_pseudonyms_and_what_differs_is_empty() -> None:
    first, second = image(DeviceSerialNumber="7"), image(instance="1.2.1.2", InstitutionName="ANOTHER")
    found = record([first, second], [ScanAnswer(ANSWER, (first,))])
    assert (found.patient, found.site, found.accession) == (pseudonym("MRN1"), "", "")
    assert found.device == pseudonym("//7") and found.memory_mb > 1 and found.seconds >= 0
    assert "MRN1" not in found.model_dump_json()


def test_whatever_a_header_holds_the_record_can_be_sent(tmp_path: Path) -> None:
    odd = image(PatientID="MRN\udcff1", InstitutionName="\ud800")
    found = record([odd], [ScanAnswer(ANSWER, (odd,), ("DX", "\udcff"))])
    again = StudyResponse.model_validate_json(StudyResponse(ending="done", record=found).to_json()).record
    assert again is not None and again.scans[0].facts == ("DX", "?")
    assert again.scans[0].distances is not None and math.isnan(again.scans[0].distances[0])
    real = dcmread(radiograph(tmp_path / "1.dcm"))
    assert record([real], [ScanAnswer(ANSWER, (real,))]).patient == pseudonym("MRN8001P")
