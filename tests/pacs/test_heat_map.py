"""The picture of the evidence: for findings that are there, valid, and free of the patient's name in its pixels."""

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
from medopt.pacs.dicom_object import OutgoingObject
from medopt.pacs.heat_map import HEAT_MAP, heat_maps, shown
from medopt.pacs.settings import Results
from medopt.pacs.structured_report import ScanAnswer, namer
from medopt.pacs.study_inference import Answering
from medopt.release.predictor import UNDECIDED, Answer

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PRESENT = Answer({"clear": 0.1, "blob": 0.9}, "blob", (2.2,))
ABSENT = Answer({"clear": 0.9, "blob": 0.1}, "clear", (-2.2,))
OPEN = Answer({"clear": 0.5, "blob": 0.5}, UNDECIDED, (0.0,))
DECLINED = Answer({"clear": 0.1, "blob": 0.9}, "", (2.2,), "it is blank")


@pytest.fixture(scope="module")
def answering(release: Path) -> Answering:
    return Answering(release, "int8", None, Results())


def drawn(answering: Answering, scan: Path, answer: Answer, places: np.ndarray) -> list[OutgoingObject]:
    one = ScanAnswer(answer, (dcmread(scan, stop_before_pixels=True),))
    uid = namer(answering.origin, one, ["digest"])
    return heat_maps(answering.origin, one, read_scan(scan), places, uid, Results(), NOW)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [(PRESENT, ["blob"]), (OPEN, ["blob"]), (ABSENT, []), (DECLINED, [])],
    ids=["present", "undecided", "absent", "declined"],
)
def test_which_findings_are_shown(answering: Answering, tmp_path: Path, answer: Answer, labels: list[str]) -> None:
    image = dcmread(radiograph(tmp_path / "a.dcm"), stop_before_pixels=True)
    assert shown(answering.origin, ScanAnswer(answer, (image,))) == labels


def test_the_colour_lies_where_the_evidence_does(answering: Answering, tmp_path: Path) -> None:
    places = np.zeros((1, 4, 4))
    places[0, 3, 0] = 5.0  # below, left
    places[0, 0, 3] = -9.0  # what speaks against is not shown
    (one,) = drawn(answering, radiograph(tmp_path / "a.dcm"), PRESENT, places)
    pixels = dcmread(io.BytesIO(one.content)).pixel_array.astype(int)
    assert max(pixels.shape) >= 512
    colour = np.ptp(pixels[: pixels.shape[1]], axis=2)
    half = len(colour) // 2
    assert colour[half:, :half].max() > 60
    assert colour[:half].max() == colour[half:, half:].max() == 0 or colour[half:, :half].sum() > 0.8 * colour.sum()


def test_it_belongs_to_the_study_and_names_its_image(answering: Answering, tmp_path: Path) -> None:
    scan = radiograph(tmp_path / "a.dcm")
    (one,), image = drawn(answering, scan, PRESENT, np.ones((1, 4, 4))), dcmread(scan)
    found = dcmread(io.BytesIO(one.content))
    assert (one.kind, found.Modality, found.SeriesNumber) == (HEAT_MAP, "OT", 9003)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert found[keyword].value == image[keyword].value
    assert found.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert drawn(answering, scan, PRESENT, np.ones((1, 4, 4)))[0].sop_uid == one.sop_uid


def test_it_is_a_valid_secondary_capture(answering: Answering, tmp_path: Path) -> None:
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    (one,) = drawn(answering, radiograph(tmp_path / "a.dcm"), PRESENT, np.ones((1, 4, 4)))
    (tmp_path / "map.dcm").write_bytes(one.content)
    done = subprocess.run(["dciodvfy", str(tmp_path / "map.dcm")], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr


def test_a_study_gets_one_where_something_is_found(answering: Answering, tmp_path: Path) -> None:
    for number in range(1, 5):
        radiograph(tmp_path / "in" / f"{number}.dcm", number=number)
    names = {f"{number}.dcm": "d" for number in range(1, 5)}
    found = answering.study(tmp_path / "in", names, {}, NOW)
    maps = [one for one in found.made if one.kind == HEAT_MAP]
    assert len(maps) == sum(decision == "blob" for decision in found.decisions) > 0
    assert len({one.sop_uid for one in maps}) == len(maps)


def test_a_study_of_many_images_gets_few(release: Path, tmp_path: Path) -> None:
    for number in range(1, 7):
        radiograph(tmp_path / "in" / f"{number}.dcm", number=number)
    names = {f"{number}.dcm": "d" for number in range(1, 7)}
    one = Answering(release, "int8", None, Results(heat_maps=1)).study(tmp_path / "in", names, {}, NOW)
    none = Answering(release, "int8", None, Results(heat_maps=0)).study(tmp_path / "in", names, {}, NOW)
    assert sum(decision == "blob" for decision in one.decisions) > 1
    assert [found.kind for found in one.made] == ["report", "text", HEAT_MAP]
    assert [found.kind for found in none.made] == ["report", "text"]
