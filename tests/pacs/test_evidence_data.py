"""The evidence as numbers: valid objects, the values and the place of the evidence on the pixels of the images."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.pm import ParametricMap
from highdicom.seg import Segmentation
from peers import radiograph
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, MRImageStorage

from medopt.config import Prepare
from medopt.imaging import read_scan
from medopt.pacs import evidence_data
from medopt.pacs.evidence_data import CONTENT_LABEL, EVIDENCE_MAP, SHARE_LABEL, evidence_maps
from medopt.pacs.result_objects import ResultContext, ScanAnswer
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import OutgoingObject, StudyRequest, StudyResponse
from medopt.release.predictor import Answer

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PRESENT = Answer({"clear": 0.1, "blob": 0.9}, "blob", (2.2,))
AXIAL, SAGITTAL = (1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1)
SLICES, ROWS, COLUMNS = 9, 12, 10


@pytest.fixture(scope="module")
def inference(release: Path) -> StudyInference:
    return StudyInference(release, "int8", None, ResultSettings(heat_map_data=True, key_images=True))


def slices(folder: Path, orientation: Sequence[float] = AXIAL, sop_class: str = MRImageStorage, count: int = SLICES,
           **changes: Any) -> list[Dataset]:  # fmt: skip
    """A series of images, its first file the last along the normal, with a header as the clinic's."""
    header = dcmread(radiograph(folder.parent / "header.dcm"), stop_before_pixels=True)
    normal, written = np.cross(orientation[:3], orientation[3:]), []
    for at in range(count):
        image = Dataset()
        image.file_meta = header.file_meta
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
            setattr(image, keyword, header.get(keyword))
        image.SOPClassUID, image.SOPInstanceUID = sop_class, f"1.2.826.0.1.9.{at + 1}"
        image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.826.0.1.8", "1.2.826.0.1.7"
        image.Modality = "CT" if sop_class == CTImageStorage else "MR"
        image.ImageOrientationPatient = list(orientation)
        image.ImagePositionPatient = list(np.array([-20.0, 7, 30]) + normal * 3 * (count - at))
        image.PixelSpacing, image.SliceThickness = [0.75, 0.5], 3
        image.Rows, image.Columns = ROWS, COLUMNS
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = np.full((ROWS, COLUMNS), at, np.uint16).tobytes()
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        folder.mkdir(parents=True, exist_ok=True)
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(folder / f"{at}.dcm", enforce_file_format=True)
        written.append(dcmread(folder / f"{at}.dcm", stop_before_pixels=True))
    return written


def for_volumes(inference: StudyInference, size: Sequence[int]) -> Any:
    """The same release as one for scans of this size."""
    prepare = Prepare.model_validate({"size": list(size), "fit": "stretch"})
    info = inference.identity.release.model_copy(update={"prepare": prepare})
    return replace(inference.identity, release=info)


def maps_of(identity: Any, scan: Path, images: Sequence[Dataset], evidence: np.ndarray) -> list[OutgoingObject]:
    context = ResultContext(identity, images[0].StudyInstanceUID, ["digest"], ResultSettings(), NOW)
    return evidence_maps(context, ScanAnswer(PRESENT, tuple(images)), read_scan(scan), evidence)


def complaints(made: OutgoingObject, folder: Path) -> list[str]:
    """The errors of dciodvfy."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    (folder / "made.dcm").write_bytes(made.content)
    ended = subprocess.run(["dciodvfy", str(folder / "made.dcm")], capture_output=True, text=True, check=False)
    return [line for line in ended.stderr.splitlines() if line.startswith("Error")]


def parsed(made: OutgoingObject) -> Dataset:
    return dcmread(io.BytesIO(made.content))


@pytest.mark.parametrize("sop_class", [MRImageStorage, CTImageStorage], ids=["MR", "CT"])
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL], ids=["axial", "sagittal"])
def test_a_parametric_map_lies_on_the_images(
    inference: StudyInference, tmp_path: Path, orientation: Sequence[float], sop_class: str
) -> None:
    """The volume is read with other axes than the images have; a frame of the map has those of its image."""
    images = slices(tmp_path / "in", orientation, sop_class)
    volume = read_scan(tmp_path / "in")
    at = np.indices(volume.array.shape[1:])
    ramp = (at[0] + 10.0 * at[1] + 100.0 * at[2])[None]
    (made,) = maps_of(for_volumes(inference, volume.array.shape[1:]), tmp_path / "in", images, ramp)
    assert complaints(made, tmp_path) == []
    written = ParametricMap.from_dataset(parsed(made))
    frames = np.frombuffer(written.FloatPixelData, np.float32).reshape(SLICES, ROWS, COLUMNS)
    by_position = {tuple(map(float, image.ImagePositionPatient)): image for image in images}
    to_index = np.linalg.inv(volume.affine)
    for frame, groups in zip(frames, written.PerFrameFunctionalGroupsSequence, strict=True):
        position = tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
        image = by_position.pop(position)
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
        right, down = np.array(orientation[:3]) * 0.5, np.array(orientation[3:]) * 0.75
        for row, column in ((0, 0), (11, 2), (3, 9)):
            index = to_index @ [*(np.array(position) + row * down + column * right), 1]
            assert frame[row, column] == pytest.approx(index[0] + 10 * index[1] + 100 * index[2], abs=0.02)
    assert not by_position
    shared = written.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == list(orientation)
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == [0.75, 0.5]
    assert written.FrameOfReferenceUID == images[0].FrameOfReferenceUID


def test_what_a_parametric_map_says(inference: StudyInference, tmp_path: Path) -> None:
    images = slices(tmp_path / "in")
    identity, evidence = for_volumes(inference, (SLICES, ROWS, COLUMNS)), np.full((1, SLICES, ROWS, COLUMNS), -2.5)
    evidence[0, 2, 3, 4] = 1.5
    (made,) = maps_of(identity, tmp_path / "in", images, evidence)
    written = parsed(made)
    (mapping,) = written.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    unit, (quantity,) = mapping.MeasurementUnitsCodeSequence[0], mapping.QuantityDefinitionSequence
    assert (made.result_type, written.ContentLabel, written.SeriesNumber) == (EVIDENCE_MAP, CONTENT_LABEL, 9004)
    assert (unit.CodeValue, unit.CodingSchemeDesignator, mapping.LUTLabel) == ("1", "UCUM", "logit")
    assert quantity.ConceptCodeSequence[0].CodeValue == "130402"
    assert (mapping.DoubleFloatRealWorldValueFirstValueMapped, mapping.DoubleFloatRealWorldValueLastValueMapped) == (
        *(-2.5, 1.5),
    )
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert written[keyword].value == images[0][keyword].value
    (again,) = maps_of(identity, tmp_path / "in", images, evidence)
    assert again.content == made.content


def test_a_large_series_gets_every_second_pixel(
    inference: StudyInference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_data, "_MAX_VALUES", SLICES * ROWS * COLUMNS / 2)
    images = slices(tmp_path / "in")
    ramp = np.broadcast_to(np.arange(COLUMNS, dtype=float), (1, SLICES, ROWS, COLUMNS))
    (made,) = maps_of(for_volumes(inference, (SLICES, ROWS, COLUMNS)), tmp_path / "in", images, ramp)
    written = parsed(made)
    assert (written.Rows, written.Columns) == (ROWS // 2, COLUMNS // 2)
    assert list(written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing) == [1.5, 1.0]
    position = written.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert [float(each) for each in position[:2]] == [-20 + 0.5, 7 + 0.75]
    frames = np.frombuffer(written.FloatPixelData, np.float32).reshape(SLICES, ROWS // 2, COLUMNS // 2)
    assert frames[0, 0] == pytest.approx([1, 3, 5, 7, 9], abs=0.01)


@pytest.mark.parametrize(
    "changes",
    [
        {"FrameOfReferenceUID": ""},
        {"ImageOrientationPatient": None},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"NumberOfFrames": 2},
    ],
    ids=["no frame of reference", "no orientation", "no plane", "frames"],
)
def test_images_that_lie_nowhere_get_no_map(inference: StudyInference, tmp_path: Path, changes: dict[str, Any]) -> None:
    slices(tmp_path / "in")
    images = slices(tmp_path / "elsewhere", **changes)
    identity = for_volumes(inference, (SLICES, ROWS, COLUMNS))
    assert maps_of(identity, tmp_path / "in", images, np.ones((1, SLICES, ROWS, COLUMNS))) == []


def test_a_ct_image_without_a_frame_of_reference_gets_no_map(inference: StudyInference, tmp_path: Path) -> None:
    """A Segmentation of a CT needs one (PS3.3 A.51)."""
    images = slices(tmp_path / "in", sop_class=CTImageStorage, count=1, FrameOfReferenceUID=None)
    assert maps_of(for_volumes(inference, (ROWS, COLUMNS)), tmp_path / "in" / "0.dcm", images, np.ones((1, 8, 8))) == []


def test_a_single_mr_image_gets_a_parametric_map(inference: StudyInference, tmp_path: Path) -> None:
    images, evidence = slices(tmp_path / "in", SAGITTAL, count=1), np.zeros((1, ROWS, COLUMNS))
    evidence[0, 2, 7] = 4.0
    (made,) = maps_of(for_volumes(inference, (ROWS, COLUMNS)), tmp_path / "in" / "0.dcm", images, evidence)
    assert complaints(made, tmp_path) == []
    frame = np.frombuffer(parsed(made).FloatPixelData, np.float32).reshape(ROWS, COLUMNS)
    assert np.unravel_index(frame.argmax(), frame.shape) == (2, 7)
    assert frame.max() == pytest.approx(4, abs=0.01)


def test_a_radiograph_gets_a_fractional_segmentation(inference: StudyInference, tmp_path: Path) -> None:
    scan = radiograph(tmp_path / "a.dcm")
    image, evidence = dcmread(scan), np.zeros((1, 4, 4))
    evidence[0, 3, 0], evidence[0, 0, 3] = 5.0, -9.0  # below, left; and what speaks against it
    (made,) = maps_of(inference.identity, scan, [image], evidence)
    assert complaints(made, tmp_path) == []
    written = parsed(made)
    segmentation = Segmentation.from_dataset(written)
    assert (written.SegmentationType, written.ContentLabel, written.SeriesNumber) == ("FRACTIONAL", SHARE_LABEL, 9005)
    pixels = written.pixel_array.astype(int)
    assert pixels.shape == image.pixel_array.shape
    half = len(pixels) // 2
    assert pixels[half:, :half].max() == 255
    assert pixels[:half, half:].max() == 0
    (segment,) = segmentation.SegmentSequence
    assert "5 added to the logit" in segment.SegmentDescription and "no probability" in segment.SegmentDescription
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "130402"
    assert segment.TrackingID == "blob"
    (measures,) = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence  # OHIF fails without them
    assert measures.PixelSpacing == image.ImagerPixelSpacing and measures.SliceThickness == 1
    assert "FrameOfReferenceUID" not in written
    assert written.StudyInstanceUID == image.StudyInstanceUID


def answer(inference: StudyInference, folder: Path) -> StudyResponse:
    digests = {path.name: "d" for path in folder.iterdir()}
    return inference.answer(StudyRequest(folder=folder, digests=digests, previous={}, now=NOW))


def test_the_report_names_the_pictures_and_the_maps(inference: StudyInference, tmp_path: Path) -> None:
    for number in range(1, 4):
        radiograph(tmp_path / f"{number}.dcm", number=number)
    response = answer(inference, tmp_path)
    kinds = [made.result_type for made in response.objects]
    assert kinds[:2] == ["report", "text"] and kinds[-1] == "key images"
    maps = {made.sop_uid for made in response.objects if made.result_type in ("heat map", EVIDENCE_MAP)}
    assert len(maps) == 2 * kinds.count("heat map") > 0
    report = parsed(response.objects[0])
    evidence = {
        str(instance.ReferencedSOPInstanceUID)
        for series in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    images = {str(dcmread(path).SOPInstanceUID) for path in tmp_path.iterdir()}
    assert evidence == maps | images
    assert _named(report, "121200") == maps
    (library,) = [item for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "111028"]
    assert {str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            for item in library.ContentSequence[0].ContentSequence} == images  # fmt: skip


def _named(item: Dataset, concept: str) -> set[str]:
    """The instances below an item that are named under a concept."""
    found: set[str] = set()
    for each in item.get("ContentSequence", []):
        name = each.get("ConceptNameCodeSequence")
        if name and name[0].CodeValue == concept and each.ValueType == "IMAGE":
            found.add(str(each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID))
        found |= _named(each, concept)
    return found


def test_a_segment_and_its_measurement_group_have_one_tracking_uid(inference: StudyInference, tmp_path: Path) -> None:
    radiograph(tmp_path / "a.dcm", number=1)
    response = answer(inference, tmp_path)
    (segment,) = [parsed(made) for made in response.objects if made.result_type == EVIDENCE_MAP]
    assert segment.SegmentSequence[0].TrackingUID.encode() in response.objects[0].content


@pytest.mark.parametrize("settings", [ResultSettings(), ResultSettings(heat_maps=0, heat_map_data=True)])
def test_maps_and_key_images_are_sent_only_where_asked_for(
    release: Path, tmp_path: Path, settings: ResultSettings
) -> None:
    radiograph(tmp_path / "a.dcm", number=1)
    response = answer(StudyInference(release, "int8", None, settings), tmp_path)
    assert not {EVIDENCE_MAP, "key images"} & {made.result_type for made in response.objects}
