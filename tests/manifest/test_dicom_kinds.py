"""Which objects of a DICOM export become rows: captures, FOR PROCESSING, volumes of any modality, mixtures, links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from scans_of_patients import mr_series

from medopt.config import SeriesRules
from medopt.core.errors import DataError
from medopt.core.records import Case
from medopt.core.reporter import SilentReporter
from medopt.imaging import read_scan
from medopt.imaging.series_index import index_folder
from medopt.manifest.image_facts import read_facts
from medopt.manifest.quality import quality_findings
from medopt.manifest.sources.dicom import find_dicom
from medopt.manifest.sources.scan_listing import ScanListing, SourceOptions


def write(path: Path, **elements: Any) -> Path:
    """A projection image of a patient named after the file, unless elements say otherwise."""
    pixels = np.random.default_rng(len(path.name)).integers(0, 999, (4, 4)).astype(np.uint16)
    own = {"PatientID": path.name, "Modality": "MG", "PatientAge": "", "StudyInstanceUID": f"1.2.{path.name}"}
    study = str((own | elements)["StudyInstanceUID"])
    given = {**own, "PixelData": pixels.tobytes(), **elements}
    mr_series(path.parent, path.name, study, path.name, 1, f"{path.name}#", **given)
    path.with_name(f"{path.name}#0").rename(path)
    return path


def enhanced(path: Path, modality: str) -> None:
    """Four frames in one file, each with a position."""
    write(path, Modality=modality, NumberOfFrames="4", PixelData=np.arange(64).astype(np.uint16).tobytes())
    data = dcmread(path)
    del data.ImagePositionPatient
    data.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(4)]
    for at, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        place = Dataset()
        place.ImagePositionPatient = [0, 0, 2 * at]
        group.PlanePositionSequence = [place]
    data.save_as(path)


def listed(root: Path, **options: Any) -> ScanListing:
    return find_dicom(root, SourceOptions(**options), SilentReporter())


def both_kinds(root: Path) -> None:
    for at in range(4):
        for kind in ("PROCESSING", "PRESENTATION"):
            write(root / f"{at}-{kind.lower()}", PatientID=f"P{at}", PresentationIntentType=f"FOR {kind}")


def test_of_an_exposure_the_image_for_presentation_is_taken_or_the_other_one_on_request(tmp_path):
    both_kinds(tmp_path)
    found = listed(tmp_path)
    assert all(scan.image.endswith("presentation") for scan in found.scans) and len(found.scans) == 4
    assert {reason for _, reason in found.left_out} == {"FOR PROCESSING (--presentation-intent processing takes these)"}
    raw = listed(tmp_path, presentation_intent="processing")
    assert all(scan.image.endswith("processing") for scan in raw.scans) and len(raw.scans) == 4


def test_images_for_processing_alone_are_taken(tmp_path):
    for at in range(3):
        write(tmp_path / f"{at}", PresentationIntentType="FOR PROCESSING")
    assert len(listed(tmp_path).scans) == 3


def test_a_manifest_of_both_kinds_is_refused(tmp_path):
    both_kinds(tmp_path)
    cases = [Case(path.name, path.name, path.name, (0,), "train") for path in sorted(tmp_path.iterdir())]
    findings = {one.name: one for one in quality_findings(cases, read_facts(cases, tmp_path), {})}
    assert findings["mixed_intents"].severity == "refuse"


@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4", "Modality": "US"},
        {"Modality": "OT"},
        {"Modality": "DOC"},
        {"ConversionType": "WSD"},
    ],
)
def test_captures_are_left_out_unless_kept(tmp_path, elements):
    write(tmp_path / "1")
    write(tmp_path / "2", **elements)
    found = listed(tmp_path)
    assert [scan.image for scan in found.scans] == ["1"]
    assert found.left_out == (("2", "a secondary capture or a document (--keep-derived keeps it)"),)
    assert len(listed(tmp_path, keep_derived=True).scans) == 2


def test_a_check_notes_captures_and_any_mixture_of_modalities(tmp_path):
    for at in range(4):
        write(tmp_path / f"{at}", Modality="MR" if at % 2 else "MG", ConversionType="DV")
    found = listed(tmp_path, keep_derived=True)
    assert "several modalities: MR 2, MG 2" in found.notes[0] or "several modalities: MG 2, MR 2" in found.notes[0]
    cases = [Case(name, name, name, (0,), "train") for name in "0123"]
    findings = {one.name: one.severity for one in quality_findings(cases, read_facts(cases, tmp_path), {})}
    assert findings["mixed_modalities"] == findings["secondary_captures"] == "note"


@pytest.mark.parametrize("modality", ["OPT", "NM", "US", "MG"])
def test_frames_with_positions_are_a_volume_in_any_modality(tmp_path, modality):
    mr_series(tmp_path / "slices", "P1", "1.2.1", Modality=modality)
    enhanced(tmp_path / "frames", modality)
    found = listed(tmp_path)
    assert sorted(scan.image for scan in found.scans) == ["frames", "slices"]
    assert all(scan.volume for scan in found.scans)
    assert {read_scan(scan.image, data=tmp_path).spatial_dims for scan in found.scans} == {3}


def test_frames_without_positions_are_a_clip_and_listed(tmp_path):
    write(tmp_path / "still", Modality="US")
    write(tmp_path / "clip", Modality="US", NumberOfFrames="4", PixelData=bytes(4 * 32))
    found = listed(tmp_path)
    assert [scan.image for scan in found.scans] == ["still"]
    assert "a clip" in found.left_out[0][1]


def test_rules_choose_by_intent_and_never_a_capture(tmp_path):
    for at, intent in enumerate(("PRESENTATION", "PROCESSING")):
        write(tmp_path / f"{at}", StudyInstanceUID="1.9", PresentationIntentType=f"FOR {intent}")
    write(tmp_path / "capture", StudyInstanceUID="1.9", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    found = listed(tmp_path, rules=SeriesRules(presentation_intent="processing"))
    assert [scan.image for scan in found.scans] == ["1"]


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    mr_series(tmp_path / "elsewhere" / "a", "P1", "1.2.1")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "elsewhere" / "a", target_is_directory=True)
    (tmp_path / "elsewhere" / "a" / "loop").symlink_to(tmp_path / "source", target_is_directory=True)
    found = listed(tmp_path / "source")
    assert [scan.image for scan in found.scans] == ["linked"]
    assert read_scan("linked", data=tmp_path / "source").array.shape[1] == 3
    assert len(index_folder(tmp_path / "source").series) == 1


def test_one_age_in_manifest_and_reader(tmp_path):
    ages = {
        "0": {"PatientAge": "093Y"},
        "1": {"PatientAge": "61Y"},
        "2": {"PatientBirthDate": "19600401", "StudyDate": "20210331"},
        "3": {"PatientAge": "018M"},
        "4": {"PatientAge": "999Y"},
    }
    for name, elements in ages.items():
        write(tmp_path / name, **elements)
    found = {scan.image: scan.age for scan in listed(tmp_path).scans}
    assert found == {"0": "90", "1": "61", "2": "60", "3": "1", "4": ""}
    assert {name: read_scan(name, data=tmp_path).source["age"] for name in ages} == found


def test_a_claim_of_billions_of_frames_or_pixels_is_refused_at_once(tmp_path):
    write(tmp_path / "sound")
    write(tmp_path / "frames", NumberOfFrames="2000000000")
    assert "a clip" in dict(listed(tmp_path).left_out)["frames"]
    with pytest.raises(DataError, match=r"NumberOfFrames .* is 2000000000"):
        read_scan(tmp_path / "frames")
