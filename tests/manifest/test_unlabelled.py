from __future__ import annotations

from pathlib import Path

import pytest
from pictures import picture, write_manifest, write_set
from PIL import Image

from medopt.core.errors import DataError
from medopt.core.reporter import SilentReporter
from medopt.manifest.unlabelled import find_images, read_images


def manifest(folder: Path, text: str) -> Path:
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_column_of_images_is_enough(tmp_path: Path) -> None:
    images = read_images(manifest(tmp_path, "image\na.png\nb.png\n"))
    assert [(case.image, case.split, case.label) for case in images.cases] == [
        ("a.png", "train", ()),
        ("b.png", "train", ()),
    ]
    assert images.labels == ()
    assert images.cases[0].patient_id != images.cases[1].patient_id


def test_splits_patients_and_the_labels_that_there_are(tmp_path: Path) -> None:
    text = "image,patient_id,label,split\na.png,P1,yes,train\nb.png,P1,,val\nc.png,P2,no,test\nd.png,unknown,no,\n"
    images = read_images(manifest(tmp_path, text))
    assert images.labels == ("no", "yes")
    assert [case.label for case in images.cases] == [(1,), (), (0,), (0,)]
    assert [case.split for case in images.cases] == ["train", "val", "test", "train"]
    first, second, third, fourth = (case.patient_id for case in images.cases)
    assert first == second
    assert len({first, third, fourth}) == 3
    assert "P1" not in {first, third}


def test_the_manifest_of_a_study_is_read_as_its_study_reads_it(tmp_path: Path) -> None:
    cases = write_set(tmp_path)
    images = read_images(write_manifest(tmp_path / "m.csv", cases))
    assert [case.label for case in images.cases] == [case.label for case in cases]
    assert [case.split for case in images.cases] == [case.split for case in cases]


def test_a_manifest_of_a_spreadsheet_is_read_as_one_with_labels(tmp_path: Path) -> None:
    """Semicolons, a blank row, one class in two spellings, a word for no label, one name in two forms of Unicode."""
    text = "image;patient_id;label\na.png;M\u00fcller;Lesion\nb.png;Mu\u0308ller;lesion\n\nc.png;P;n/a\nd.png;Q;No\n"
    images = read_images(manifest(tmp_path, text))
    assert images.labels == ("Lesion", "No")
    assert [case.label for case in images.cases] == [(0,), (0,), (), (1,)]
    assert images.cases[0].patient_id == images.cases[1].patient_id
    with pytest.raises(DataError, match="row 4: the cell image is empty"):
        read_images(manifest(tmp_path, "image,label\na.png,x\n\n,y\n"))


def test_findings_of_zeros_and_ones(tmp_path: Path) -> None:
    images = read_images(manifest(tmp_path, "image,mass,edema,remark\na.png,0,1,x\nb.png,1,0,y\n"))
    assert (images.task, images.labels) == ("multilabel", ("mass", "edema"))
    assert [case.label for case in images.cases] == [(0, 1), (1, 0)]


def test_what_cannot_be_used_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: the split 'dev' is none of train, val, test; row 3: the cell image"):
        read_images(manifest(tmp_path, "image,split\na.png,dev\n,train\n"))
    with pytest.raises(DataError, match="row 2"):
        read_images(manifest(tmp_path, "image\n../a.png\n"))
    with pytest.raises(DataError, match="no row"):
        read_images(manifest(tmp_path, "image\n"))
    with pytest.raises(DataError, match="no column image"):
        read_images(manifest(tmp_path, "file\na.png\n"))


def test_a_folder_with_and_without_classes(tmp_path: Path) -> None:
    for at in range(8):
        for name in ("plain", f"classes/{'ab'[at % 2]}"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(at)).save(tmp_path / name / f"{at}.png")
    plain = find_images(tmp_path / "plain", tmp_path / "unpacked", SilentReporter())
    assert (len(plain.cases), plain.labels) == (8, ())
    classes = find_images(tmp_path / "classes", tmp_path / "unpacked", SilentReporter())
    assert classes.labels == ("a", "b")
    assert {case.image[0]: case.label for case in classes.cases} == {"a": (0,), "b": (1,)}
