"""The results in viewers: dcmjs and OHIF's own reader of reports, key images, and the checklist of IHE AI Results."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from highdicom.ko import KeyObjectSelectionDocument
from peers import radiograph
from pydicom import Dataset, dcmread
from report_groups import measurement_groups, source_uids
from test_evidence_data import answer, complaints, parsed, slices

from medopt.pacs.key_images import KEY_IMAGES, key_images
from medopt.pacs.result_objects import ResultContext, ScanAnswer
from medopt.pacs.settings import ResultSettings
from medopt.pacs.structured_report import study_reports
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import OutgoingObject
from medopt.release.predictor import Answer

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PRESENT = Answer({"clear": 0.1236, "blob": 0.8764}, "blob", (1.9,))
ABSENT = Answer({"clear": 0.9, "blob": 0.1}, "clear", (-2.2,))
DECLINED = Answer({"clear": 0.5, "blob": 0.5}, "", (0.0,), "it is blank")
VIEWER = Path(__file__).with_name("viewers.cjs")
DCMJS, OHIF = "dcmjs@0.52.2", "@ohif/extension-cornerstone-dicom-sr@3.13.13"


@pytest.fixture(scope="module")
def inference(release: Path) -> StudyInference:
    return StudyInference(release, "int8", None, ResultSettings(heat_map_data=True, key_images=True))


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[OutgoingObject], dict[str, Any]]]:
    """What the viewers' libraries read, from npm's registry; skips where that or node is missing."""
    folder = tmp_path_factory.mktemp("viewers")
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("node and npm are not installed")
    for words in (["install", "--no-audit", "--no-fund", "--ignore-scripts", DCMJS], ["pack", OHIF]):
        try:
            ended = subprocess.run(
                ["npm", *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip("npm's registry does not answer within two minutes")
        if ended.returncode:
            pytest.skip(f"npm {words[0]} ended with {ended.returncode}: its registry cannot be reached")
    (archive,) = folder.glob("*.tgz")
    shutil.unpack_archive(archive, folder, filter="data")
    (extension,) = (folder / "package" / "dist").glob("*.umd.js")

    def view(made: OutgoingObject) -> dict[str, Any]:
        (folder / "made.dcm").write_bytes(made.content)
        words = ["node", str(VIEWER), str(folder / "node_modules"), str(extension), str(folder / "made.dcm")]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        read: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return read

    yield view


def context_of(inference: StudyInference, images: list[Dataset]) -> ResultContext:
    return ResultContext(inference.identity, images[0].StudyInstanceUID, ["digest"], ResultSettings(), NOW)


def headers(folder: Path, count: int) -> list[Dataset]:
    paths = [radiograph(folder / f"{number}.dcm", number=number) for number in range(1, count + 1)]
    return [dcmread(path, stop_before_pixels=True) for path in paths]


def test_ohif_lists_each_finding_on_its_image(
    inference: StudyInference, viewed: Callable[[OutgoingObject], dict[str, Any]], tmp_path: Path
) -> None:
    present, declined = headers(tmp_path, 2)
    scans = [ScanAnswer(PRESENT, (present,)), ScanAnswer(DECLINED, (declined,))]
    shown = viewed(study_reports(context_of(inference, [present]), scans, {})[0])
    assert shown["isReport"] and shown["library"] == [present.SOPInstanceUID, declined.SOPInstanceUID]
    assert [(one["name"], one["image"], one["isLoaded"]) for one in shown["measurements"]] == [
        ("blob", present.SOPInstanceUID, True),
        ("blob", declined.SOPInstanceUID, True),
    ]
    first, second = (one["labels"] for one in shown["measurements"])
    assert first == [{"label": "Certainty of Finding", "value": "87.64 %"}] and second == []
    assert shown["drawn"] == 2


def test_ohif_shows_a_series_at_its_middle(
    inference: StudyInference, viewed: Callable[[OutgoingObject], dict[str, Any]], tmp_path: Path
) -> None:
    images = slices(tmp_path / "in")
    report = study_reports(context_of(inference, images), [ScanAnswer(PRESENT, tuple(images))], {})[0]
    (shown,) = viewed(report)["measurements"]
    assert (shown["image"], shown["isLoaded"]) == (images[len(images) // 2].SOPInstanceUID, True)
    (group,) = measurement_groups(report.content)
    assert sorted(source_uids(group)) == sorted(image.SOPInstanceUID for image in images)
    assert complaints(report, tmp_path) == []


def test_dcmjs_reads_every_object(
    inference: StudyInference, viewed: Callable[[OutgoingObject], dict[str, Any]], tmp_path: Path
) -> None:
    radiograph(tmp_path / "a.dcm", number=1)
    response = answer(inference, tmp_path)
    assert {made.result_type for made in response.objects} >= {"report", "heat map", "evidence map", KEY_IMAGES}
    assert [viewed(made)["sopClass"] for made in response.objects] == [made.sop_class for made in response.objects]


def test_an_image_of_unknown_size_is_named_without_a_region(inference: StudyInference, tmp_path: Path) -> None:
    (image,) = headers(tmp_path, 1)
    del image.Rows
    report = study_reports(context_of(inference, [image]), [ScanAnswer(DECLINED, (image,))], {})[0]
    (group,) = measurement_groups(report.content)
    assert source_uids(group) == [image.SOPInstanceUID]
    assert complaints(report, tmp_path) == []


def test_key_images_are_those_with_a_finding(inference: StudyInference, tmp_path: Path) -> None:
    images = headers(tmp_path, 3)
    scans = [ScanAnswer(each, (image,)) for each, image in zip((PRESENT, ABSENT, DECLINED), images, strict=True)]
    (made,) = key_images(context_of(inference, images), scans)
    assert complaints(made, tmp_path) == []
    document = KeyObjectSelectionDocument.from_dataset(parsed(made))
    assert (document.Modality, document.SeriesNumber, document.StudyInstanceUID) == (
        *("KO", 9006, images[0].StudyInstanceUID),
    )
    assert document.PatientID == images[0].PatientID
    (reference,) = document.content.get_references()
    assert str(reference.referenced_sop_instance_uid) == images[0].SOPInstanceUID
    assert document.resolve_reference(images[0].SOPInstanceUID)[1] == images[0].SeriesInstanceUID
    assert key_images(context_of(inference, images), scans)[0].content == made.content
    assert key_images(context_of(inference, images), scans[1:]) == []


# What the profile AI Results (IHE Radiology, trial implementation) asks of a report, each with how it is seen.
AI_RESULTS: dict[str, Callable[[Dataset, list[Any]], bool]] = {
    "results are in a Comprehensive 3D SR": lambda report, _: report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.34",
    "its root is an imaging measurement report, TID 1500": lambda report, _: (
        report.ContentTemplateSequence[0].TemplateIdentifier == "1500" and _code(report) == "126000"
    ),
    "its observer is a device with name, maker and UID": lambda report, _: (
        {"121005", "121012", "121013", "121014"} <= {_code(item) for item in report.ContentSequence}
        and next(item for item in report.ContentSequence if _code(item) == "121005").ConceptCodeSequence[0].CodeValue
        == "121007"
    ),
    "the procedure is named": lambda report, _: "121058" in {_code(item) for item in report.ContentSequence},
    "the images analysed are in the image library": lambda report, _: (
        "111028" in {_code(item) for item in report.ContentSequence}
    ),
    "every referenced object is listed as evidence": lambda report, _: _references(report) == _evidence(report),
    "each group has a tracking identifier and UID": lambda _, groups: all(
        {"112039", "112040"} <= _codes(group) for group in groups
    ),
    "each group names algorithm and version": lambda _, groups: all(
        {"111001", "111003"} <= _codes(group) for group in groups
    ),
    "each group refers to the image or region": lambda _, groups: all(source_uids(group) for group in groups),
    "presence is a coded evaluation": lambda _, groups: all("121052" in _codes(group) for group in groups),
    "measurements have a UCUM unit": lambda _, groups: all(
        measurement.unit.scheme_designator == "UCUM" for group in groups for measurement in group.get_measurements()
    ),
    "maps and pictures are named by the group": lambda _, groups: any("121200" in _codes(group) for group in groups),
    "patient, study and accession are those of the images": lambda report, _: bool(
        report.PatientID and report.StudyInstanceUID and report.AccessionNumber
    ),
    "nobody has verified it": lambda report, _: report.VerificationFlag == "UNVERIFIED",
    "equipment: maker, model, serial number, version": lambda report, _: bool(
        report.Manufacturer and report.ManufacturerModelName and report.DeviceSerialNumber and report.SoftwareVersions
    ),
}


def _code(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


def _codes(group: Any) -> set[str]:
    return {_code(item) for item in group[0].ContentSequence}


def _references(item: Dataset) -> set[str]:
    own = {str(each.ReferencedSOPInstanceUID) for each in item.get("ReferencedSOPSequence", [])}
    return own.union(*(_references(each) for each in item.get("ContentSequence", [])))


def _evidence(report: Dataset) -> set[str]:
    studies = report.CurrentRequestedProcedureEvidenceSequence
    series = [each for study in studies for each in study.ReferencedSeriesSequence]
    return {str(each.ReferencedSOPInstanceUID) for one in series for each in one.ReferencedSOPSequence}


@pytest.fixture(scope="module")
def report_of_a_study(inference: StudyInference, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("study")
    for number in (1, 2):
        radiograph(folder / f"{number}.dcm", number=number)
    return answer(inference, folder).objects[0].content


@pytest.mark.parametrize("item", AI_RESULTS)
def test_the_checklist_of_ai_results(report_of_a_study: bytes, item: str) -> None:
    assert AI_RESULTS[item](dcmread(io.BytesIO(report_of_a_study)), measurement_groups(report_of_a_study))
