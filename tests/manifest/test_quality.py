"""What is found in the images of a manifest, each read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import picture, write_set
from PIL import Image
from pydicom import dcmread

from medopt.core.privacy import pseudonym
from medopt.core.records import Case
from medopt.manifest.image_facts import read_facts
from medopt.manifest.quality import count_labels, inspect_images, outliers
from medopt.phantom import Radiograph, write_radiograph


@pytest.fixture
def pictures(tmp_path: Path) -> list[Case]:
    return write_set(tmp_path)


def found(cases, folder, study, dims=2):
    facts = read_facts(cases, folder)
    return {one.name: one for one in inspect_images(cases, facts, folder, study, dims).findings}


def test_a_sound_set_has_no_finding_and_keeps_no_pixels(tmp_path, pictures, study):
    assert found(pictures, tmp_path, study()) == {}
    facts = read_facts(pictures, tmp_path)
    assert {one.size for one in facts} == {(64, 64)}
    assert {one.thumbnail.shape for one in facts} == {(32, 32)}
    assert len({one.digest for one in facts}) == len(pictures)


def test_missing_truncated_and_constant_images_are_refused_each_once(tmp_path, pictures, study):
    (tmp_path / "000.png").unlink()
    whole = (tmp_path / "001.png").read_bytes()
    (tmp_path / "001.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "002.png")
    findings = found(pictures, tmp_path, study())
    assert set(findings) == {"file_missing", "unreadable", "no_content"}
    assert findings["file_missing"].text.startswith("1 of 24 images")
    assert "1 images cannot be read" in findings["unreadable"].text
    assert "001.png is not readable" in findings["unreadable"].text
    assert "002.png is constant: all pixels are 9" in findings["no_content"].text


def test_nan_is_refused(tmp_path, pictures, study):
    array = picture(99).astype(np.float32)[None]
    array[0, 3, 3] = np.nan
    np.savez(tmp_path / "floats.npz", images=array)
    case = Case("f", "pf", "floats.npz#images/0", (0,), "train")
    assert "NaN" in found([*pictures, case], tmp_path, study())["no_content"].text
    taken = study()
    taken = taken.model_copy(update={"prepare": taken.prepare.model_copy(update={"nan": "background"})})
    assert "no_content" not in found([*pictures, case], tmp_path, taken)


def test_a_volume_among_images_and_an_odd_size(tmp_path, pictures, study):
    np.savez(tmp_path / "v.npz", volumes=np.random.default_rng(0).uniform(0, 9, (1, 12, 40, 40)).astype(np.float32))
    volume = Case("v", "pv", "v.npz#volumes/0", (0,), "train")
    Image.fromarray(picture(50, 512)).save(tmp_path / "large.png")
    large = Case("l", "pl", "large.png", (0,), "train")
    findings = found([*pictures, volume, large], tmp_path, study(), dims=None)
    assert "v.npz#volumes/0 (12 x 40 x 40)" in findings["mixed_dimensions"].text
    assert findings["mixed_dimensions"].severity == "refuse"
    assert "large.png (512 x 512)" in findings["size_outliers"].text
    assert findings["size_outliers"].severity == "note"


def test_outliers_lie_over_five_mads_away_in_log():
    rest = [(1.0 + 0.01 * k, 1.0) for k in range(20)]
    assert outliers([*rest, (3.0, 1.0), (1.0, 0.2), (), (1.0, 1.0, 99.0)], 2) == [20, 21]
    assert outliers([(1.0, 1.0)] * 20 + [(1.2, 1.0)], 2) == []


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory) -> tuple[Path, list[Case]]:
    """24 DICOM files of 24 patients; one is of another modality and has burned-in text."""
    folder = tmp_path_factory.mktemp("dicom")
    cases = []
    for k in range(24):
        uid = f"1.2.826.0.1.{k}"
        header = Radiograph(patient_id=f"MRN{k}", study_uid=uid, series_uid=f"{uid}.1", instance_uid=f"{uid}.1.1")
        write_radiograph(folder / f"{k}.dcm", picture(k) / np.float32(255), header)
        cases.append(Case(f"{k}", f"p{k}", f"{k}.dcm", (k % 2,), ("train", "val", "test")[k % 3]))  # type: ignore[arg-type]
    header = dcmread(folder / "5.dcm")
    header.Modality, header.BurnedInAnnotation = "OT", "YES"
    header.save_as(folder / "5.dcm")
    return folder, cases


def test_burned_in_text_and_a_modality_that_does_not_belong(radiographs, study):
    folder, cases = radiographs
    findings = found(cases, folder, study())
    assert set(findings) == {"burned_in", "minority_modality"}
    assert "1 image with text burned into the pixels, by their header: 5.dcm" in findings["burned_in"].text
    assert findings["minority_modality"].severity == "refuse"
    assert "5.dcm (OT)" in findings["minority_modality"].text
    accepted = found(cases, folder, study(accept=["minority_modality"]))
    assert accepted["minority_modality"].severity == "note"


def test_a_series_that_cannot_be_read_is_told_without_uids(tmp_path, study):
    folder = tmp_path / "MRN7"
    for k in range(2):
        uid = f"1.2.826.0.1.4711.{k}"
        header = Radiograph(study_uid="1.2.826.0.1.4711", series_uid=uid, instance_uid=f"{uid}.1")
        write_radiograph(folder / f"{uid}.dcm", picture(k) / np.float32(255), header)
    name = "1.2.826.0.1.4711.1.dcm"
    (folder / name).write_bytes((folder / name).read_bytes()[:900])
    for image in ("MRN7", f"MRN7/{name}"):
        (fact,) = read_facts([Case("c", pseudonym("MRN7"), image, (0,), "train")], tmp_path)
        assert fact.unreadable
        assert "1.2.826" not in fact.problem
        assert f"{tmp_path}/MRN7/" not in fact.problem or image == "MRN7"


def test_balance_counts_labels_by_split_and_site(study):
    cases = [Case(str(k), str(k), str(k), (k % 2,), "train", f"s{k % 3}") for k in range(12)]
    rows = count_labels(cases, study())
    assert rows[0] == {"split": "train", "site": "all", "images": 12, "benign": 6, "malignant": 6}
    assert [row["images"] for row in rows] == [12, 4, 4, 4] + [0] * 8
    several = study(task="multilabel", labels=["mass", "effusion"])
    both = [Case("a", "a", "a", (1, 1), "test"), Case("b", "b", "b", (0, 1), "test")]
    assert count_labels(both, several)[-1] == {"split": "test", "site": "all", "images": 2, "mass": 1, "effusion": 2}


def test_images_nearly_alike_are_no_finding_but_belong_together(tmp_path, pictures, study):
    """At another size, as a study prepares them, their correlation may pass the limit."""
    first = read_facts(pictures[:1], tmp_path)[0].thumbnail
    array = np.asarray(Image.open(tmp_path / pictures[0].image)).astype(float)
    smooth = np.kron(np.random.default_rng(4).normal(0, 1, (8, 8)), np.ones((8, 8)))
    Image.fromarray(np.clip(array + 0.16 * array.std() * smooth, 0, 255).astype(np.uint8)).save(tmp_path / "near.png")
    cases = [*pictures, Case("near", "pn", "near.png", pictures[0].label, "test")]
    facts = read_facts(cases, tmp_path)
    correlation = np.corrcoef(first.ravel(), facts[-1].thumbnail.ravel())[0, 1]
    assert 0.98 < correlation < 0.99
    inspected = inspect_images(cases, facts, tmp_path, study(), 2)
    assert not inspected.pairs
    assert [(pair.first, pair.second) for pair in inspected.alike()] == [(0, len(pictures))]
