"""The picture of the evidence: only for findings that are not absent, valid, in the same study as its image."""

from __future__ import annotations

import io
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from peers import radiograph
from pydicom import dcmread

from medopt.imaging import read_scan
from medopt.pacs.heat_map import HEAT_MAP, heat_maps, mapped_labels
from medopt.pacs.result_objects import ResultContext, ScanAnswer
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import OutgoingObject, StudyRequest, StudyResponse
from medopt.release.predictor import UNDECIDED, Answer

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PRESENT = Answer({"clear": 0.1, "blob": 0.9}, "blob", (2.2,))
ABSENT = Answer({"clear": 0.9, "blob": 0.1}, "clear", (-2.2,))
OPEN = Answer({"clear": 0.5, "blob": 0.5}, UNDECIDED, (0.0,))
DECLINED = Answer({"clear": 0.1, "blob": 0.9}, "", (2.2,), "it is blank")


@pytest.fixture(scope="module")
def inference(release: Path) -> StudyInference:
    return StudyInference(release, "int8", None, ResultSettings())


def maps_of(inference: StudyInference, scan: Path, answer: Answer, evidence: np.ndarray) -> list[OutgoingObject]:
    image = dcmread(scan, stop_before_pixels=True)
    context = ResultContext(inference.identity, image.StudyInstanceUID, ["digest"], ResultSettings(), NOW)
    return heat_maps(context, ScanAnswer(answer, (image,)), read_scan(scan), evidence)


def answer(release: Path, folder: Path, **settings: int) -> StudyResponse:
    inference = StudyInference(release, "int8", None, ResultSettings(**settings))
    digests = {path.name: "d" for path in folder.iterdir()}
    return inference.answer(StudyRequest(folder=folder, digests=digests, previous={}, now=NOW))


@pytest.mark.parametrize(
    ("answer", "labels"),
    [(PRESENT, ["blob"]), (OPEN, ["blob"]), (ABSENT, []), (DECLINED, [])],
    ids=["present", "undecided", "absent", "declined"],
)
def test_which_findings_get_a_picture(
    inference: StudyInference, tmp_path: Path, answer: Answer, labels: list[str]
) -> None:
    image = dcmread(radiograph(tmp_path / "a.dcm"), stop_before_pixels=True)
    assert mapped_labels(inference.identity, ScanAnswer(answer, (image,))) == labels


def test_the_colour_lies_where_the_evidence_does(inference: StudyInference, tmp_path: Path) -> None:
    evidence = np.zeros((1, 4, 4))
    evidence[0, 3, 0] = 5.0  # below, left
    evidence[0, 0, 3] = -9.0  # evidence against the finding is not displayed
    (heat_map,) = maps_of(inference, radiograph(tmp_path / "a.dcm"), PRESENT, evidence)
    pixels = dcmread(io.BytesIO(heat_map.content)).pixel_array.astype(int)
    assert max(pixels.shape) >= 512
    colour = np.ptp(pixels[: pixels.shape[1]], axis=2)
    half = len(colour) // 2
    assert colour[half:, :half].max() > 60
    assert colour[:half].max() == colour[half:, half:].max() == 0 or colour[half:, :half].sum() > 0.8 * colour.sum()


def test_it_belongs_to_the_study_and_names_its_image(inference: StudyInference, tmp_path: Path) -> None:
    scan = radiograph(tmp_path / "a.dcm")
    (heat_map,), image = maps_of(inference, scan, PRESENT, np.ones((1, 4, 4))), dcmread(scan)
    capture = dcmread(io.BytesIO(heat_map.content))
    assert (heat_map.result_type, capture.Modality, capture.SeriesNumber) == (HEAT_MAP, "OT", 9003)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert capture[keyword].value == image[keyword].value
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert maps_of(inference, scan, PRESENT, np.ones((1, 4, 4)))[0].sop_uid == heat_map.sop_uid


def test_it_is_a_valid_secondary_capture(inference: StudyInference, tmp_path: Path) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    (heat_map,) = maps_of(inference, radiograph(tmp_path / "a.dcm"), PRESENT, np.ones((1, 4, 4)))
    (tmp_path / "map.dcm").write_bytes(heat_map.content)
    ended = subprocess.run(["dciodvfy", str(tmp_path / "map.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in ended.stderr


def test_a_study_gets_a_picture_of_each_finding(release: Path, tmp_path: Path) -> None:
    for number in range(1, 5):
        radiograph(tmp_path / f"{number}.dcm", number=number)
    response = answer(release, tmp_path)
    maps = [each for each in response.objects if each.result_type == HEAT_MAP]
    assert len(maps) == sum(decision == "blob" for decision in response.decisions) > 0
    assert len({heat_map.sop_uid for heat_map in maps}) == len(maps)


def test_a_study_of_many_images_gets_few(release: Path, tmp_path: Path) -> None:
    for number in range(1, 7):
        radiograph(tmp_path / f"{number}.dcm", number=number)
    one, none = answer(release, tmp_path, heat_maps=1), answer(release, tmp_path, heat_maps=0)
    assert sum(decision == "blob" for decision in one.decisions) > 1
    assert [each.result_type for each in one.objects] == ["report", "text", HEAT_MAP]
    assert [each.result_type for each in none.objects] == ["report", "text"]
