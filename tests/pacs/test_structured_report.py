"""The reports: dciodvfy finds no error, highdicom and dcmtk read them, the same work gives the same object."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peers import radiograph
from pydicom import Dataset, dcmread
from report_groups import measurement_groups, source_uids

from medopt.core.number_scale import NumberScale
from medopt.pacs.result_objects import ResultContext, ScanAnswer
from medopt.pacs.settings import ResultSettings
from medopt.pacs.structured_report import study_reports
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import EarlierResult, OutgoingObject, StudyRequest
from medopt.release.predictor import Answer, NumberAnswer

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture(scope="module")
def inference(release: Path) -> StudyInference:
    return StudyInference(release, "int8", None, ResultSettings())


def reports_of(
    inference: StudyInference, image: Dataset, answer: Answer, now: datetime = NOW, **earlier: EarlierResult
) -> list[OutgoingObject]:
    context = ResultContext(inference.identity, image.StudyInstanceUID, ["digest"], ResultSettings(), now)
    return study_reports(context, [ScanAnswer(answer, (image,))], earlier)


def header(path: Path, **changes: Any) -> Dataset:
    return dcmread(radiograph(path, **changes), stop_before_pixels=True)


def earlier(sop_uid: str, series_uid: str) -> EarlierResult:
    return EarlierResult(sop_uid=sop_uid, series_uid=series_uid)


PRESENT = Answer({"clear": 0.1236, "blob": 0.8764}, "blob", (1.9,))
DECLINED = Answer({"clear": 0.5, "blob": 0.5}, "", (0.0,), "it is blank")


def parsed(report: OutgoingObject) -> Dataset:
    return dcmread(io.BytesIO(report.content))


def measurement_group(report: OutgoingObject) -> Any:
    (group,) = measurement_groups(report.content)
    return group


def presences(group: Any) -> list[Any]:
    """The evaluations of presence; highdicom counts the algorithm's family among the evaluations, too."""
    return [evaluation for evaluation in group.get_qualitative_evaluations() if evaluation.name.value == "121052"]


def test_a_study_becomes_two_reports(inference: StudyInference, tmp_path: Path) -> None:
    radiograph(tmp_path / "in" / "a.dcm", number=3)
    image = dcmread(tmp_path / "in" / "a.dcm")
    request = StudyRequest(folder=tmp_path / "in", digests={"a.dcm": "d"}, previous={}, now=NOW)
    response = inference.answer(request)
    assert response.ending in ("done", "declined")
    report, text = (parsed(each) for each in response.objects[:2])
    for each in (report, text):
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
            assert each[keyword].value == image[keyword].value
        assert (each.VerificationFlag, each.PreliminaryFlag, each.CompletionFlag) == (
            *("UNVERIFIED", "PRELIMINARY", "COMPLETE"),
        )
        assert each.SeriesInstanceUID != image.SeriesInstanceUID
    assert (report.SeriesNumber, text.SeriesNumber) == (9001, 9002)


def test_what_the_report_says(inference: StudyInference, tmp_path: Path) -> None:
    image = header(tmp_path / "a.dcm")
    report, text = reports_of(inference, image, PRESENT)
    group = measurement_group(report)
    (certainty,) = group.get_measurements()
    (presence,) = presences(group)
    assert (certainty.name.value, certainty.value, certainty.unit.value) == ("111012", 87.64, "%")
    assert (presence.name.value, presence.value.value) == ("121052", "52101004")
    assert group.tracking_identifier == "blob"
    assert source_uids(group) == [image.SOPInstanceUID]
    assert inference.identity.model_digest.encode() in report.content
    assert b"blob: Present, probability 87.6 %" in text.content


VOLUME = NumberScale("log", 3000.0, 0.1, "mm3", "hippocampal volume", "118565006^SCT^Volume")


def with_number(inference: StudyInference, scale: NumberScale) -> Any:
    """The same release as one that gives a number."""
    info = inference.identity.release.model_copy(update={"number": scale})
    return SimpleNamespace(identity=replace(inference.identity, release=info))


def test_a_number_is_a_measurement_with_its_unit_and_its_interval(inference: StudyInference, tmp_path: Path) -> None:
    number = NumberAnswer(3120.4, 2900.1, 3357.5, "mm3", "hippocampal volume", 0.95)
    answer = replace(PRESENT, number=number)
    image = header(tmp_path / "a.dcm")
    report, text = reports_of(with_number(inference, VOLUME), image, answer)
    group = measurement_group(report)
    _, volume = group.get_measurements()
    assert (volume.name.value, volume.name.scheme_designator, volume.name.meaning) == ("118565006", "SCT", "Volume")
    assert (volume.value, volume.unit.value, volume.unit.scheme_designator) == (3120.4, "mm3", "UCUM")
    ends = {item.ConceptNameCodeSequence[0].CodeValue: item for item in volume[0].ContentSequence}
    lower, upper = (float(ends[code].MeasuredValueSequence[0].NumericValue) for code in ("371885007", "371886008"))
    assert (volume.value - lower, volume.value + upper) == pytest.approx((2900.1, 3357.5))
    assert group.tracking_identifier == "hippocampal volume: blob"
    assert b"hippocampal volume: 3120 mm3 (2900 to 3358), 95% interval in parentheses." in text.content


def test_a_number_without_a_code_is_a_quantity_and_without_an_interval_has_none(
    inference: StudyInference, tmp_path: Path
) -> None:
    answer = replace(PRESENT, number=NumberAnswer(61.5, None, None, "1", "score", 0.95))
    plain = NumberScale("linear", 60.0, 9.0, "1", "score")
    report, text = reports_of(with_number(inference, plain), header(tmp_path / "a.dcm"), answer)
    _, score = measurement_group(report).get_measurements()
    assert (score.name.value, score.value, score.unit.value) == ("246205007", 61.5, "1")
    assert b"score: 61.5." in text.content


def test_what_is_declined_is_undetermined_and_has_no_number(inference: StudyInference, tmp_path: Path) -> None:
    report, text = reports_of(inference, header(tmp_path / "a.dcm"), DECLINED)
    group = measurement_group(report)
    assert group.get_measurements() == []
    assert [evaluation.value.value for evaluation in presences(group)] == ["373068000"]
    assert b"Declined: it is blank" in report.content
    assert b"Undetermined. Declined: it is blank" in text.content


def test_uids_follow_from_the_work(inference: StudyInference, tmp_path: Path) -> None:
    image, later = header(tmp_path / "a.dcm"), datetime(2027, 1, 1, tzinfo=UTC)
    first, repeated = reports_of(inference, image, PRESENT), reports_of(inference, image, PRESENT, later)
    other = reports_of(inference, header(tmp_path / "b.dcm", study=2), PRESENT)
    assert [report.sop_uid for report in first] == [report.sop_uid for report in repeated]
    assert len({report.sop_uid for report in (*first, *other)}) == 4


def test_a_later_report_names_the_earlier_report(inference: StudyInference, tmp_path: Path) -> None:
    later = reports_of(inference, header(tmp_path / "a.dcm"), PRESENT, report=earlier("1.2.3", "1.2.4"))
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
    inference: StudyInference, tmp_path: Path, keyword: str, value: str, reported: str
) -> None:
    image = header(tmp_path / "a.dcm")
    image.PatientSex, image.PatientBirthDate, image.StudyTime = "F", "19700101", "101500"
    expected = {name: str(image[name].value) for name in ("PatientSex", "PatientBirthDate", "PatientName", "StudyTime")}
    image.SpecificCharacterSet = "ISO_IR 192"
    image[keyword]._value = value  # as a careless writer has it
    report = reports_of(inference, image, PRESENT)[0]
    check_with_other_programs([report], tmp_path)
    written = parsed(report)
    assert {name: str(written[name].value) for name in expected} == expected | {keyword: reported}


def check_with_other_programs(objects: Sequence[OutgoingObject], folder: Path) -> None:
    """No error from dciodvfy, and dsrdump reads them, where these are installed."""
    for each in objects:
        path = folder / f"{each.result_type}.dcm"
        path.write_bytes(each.content)
        if shutil.which("dciodvfy"):
            ended = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
            assert "Error" not in ended.stderr
        if shutil.which("dsrdump"):
            ended = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, check=False)
            assert ended.returncode == 0
            assert "E:" not in ended.stderr


@pytest.mark.parametrize("answer", [PRESENT, DECLINED], ids=["present", "declined"])
def test_other_programs_read_it(inference: StudyInference, tmp_path: Path, answer: Answer) -> None:
    if not (shutil.which("dciodvfy") and shutil.which("dsrdump")):
        pytest.skip("dciodvfy (dicom3tools) and dsrdump (dcmtk) are not installed")
    previous = {"report": earlier("1.2.3", "1.2.4"), "text": earlier("1.2.5", "1.2.6")}
    objects = reports_of(inference, header(tmp_path / "a.dcm"), answer, **previous)
    check_with_other_programs(objects, tmp_path)
