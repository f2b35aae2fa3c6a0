"""`medopt manifest check` as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from clinic_fixtures import call
from pictures import noisy, picture, write_manifest, write_set
from PIL import Image

from medopt.core.files import file_digest
from medopt.manifest.card import load_card


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A manifest of 24 pictures that lie beside it."""
    return write_manifest(tmp_path / "m.csv", write_set(tmp_path))


@pytest.fixture
def leaking(sound: Path) -> Path:
    """One picture again in another split, one again under the other label, one damaged."""
    folder = sound.parent
    Image.fromarray(noisy(picture(0))).save(folder / "020.png")
    shutil.copy(folder / "002.png", folder / "005.png")
    (folder / "007.png").write_bytes((folder / "007.png").read_bytes()[:200])
    return sound


def test_a_sound_manifest(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "m.csv", write_set(tmp_path, 124))
    done = call("manifest", "check", manifest, "--json")
    assert done.code == 0, done.stderr
    assert "nothing is wrong" in done.stdout
    assert (done.summary["images"], done.summary["findings"], done.summary["refused"]) == (124, [], False)


def test_small_splits_are_noted_with_the_interval_that_they_would_give(sound: Path) -> None:
    done = call("manifest", "check", sound, "--json")
    assert done.code == 0, done.stderr
    assert "nothing is wrong" not in done.stdout
    texts = [one["text"] for one in done.summary["findings"] if one["name"] == "small_split"]
    assert len(texts) == 2
    assert "The split test has 6 patients (benign 3, malignant 3)" in texts[1]
    assert "the 95 % interval goes from 29 % to 98 %" in texts[1]


def test_a_mended_manifest_keeps_its_card_and_says_what_was_done(leaking: Path) -> None:
    card = {
        "title": "m",
        "source": "s",
        "licence": "l",
        "citation": "c",
        "labels": {"benign": "12 rows", "malignant": "12 rows"},
        "notes": ["No patient IDs found: each image is treated as its own patient."],
        "manifest_sha256": file_digest(leaking),
        "root": ".",
    }
    leaking.with_suffix(".card.yaml").write_text(yaml.safe_dump(card))
    mended = leaking.parent / "out" / "mended.csv"
    mended.parent.mkdir()
    assert call("manifest", "check", leaking, "--out", mended).code == 0
    kept = load_card(mended)
    assert kept is not None
    assert kept.notes[0] == card["notes"][0]
    assert "1 image moved to another split, 2 dropped (the same pixels under two labels), 1 dropped" in kept.notes[1]
    assert (kept.licence, kept.root, kept.labels) == ("l", "..", {"benign": "11 rows", "malignant": "10 rows"})
    assert call("manifest", "check", mended).code == 0  # the card knows where the images are


def test_the_cards_root_is_where_images_are_looked_for(tmp_path: Path) -> None:
    for at in range(40):
        (tmp_path / "my scans" / ("normal", "lesion")[at % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(at)).save(tmp_path / "my scans" / ("normal", "lesion")[at % 2] / f"{at}.png")
    manifest = tmp_path / "lists" / "m.csv"
    manifest.parent.mkdir()
    done = call("manifest", "build", tmp_path / "my scans", "--out", manifest)
    assert done.code == 0, done.stderr
    text = manifest.with_suffix(".card.yaml").read_text()
    assert "root: ../my scans" in text and str(tmp_path) not in text
    assert call("manifest", "check", manifest).code == 0
    study = tmp_path / "studies" / "s.yaml"
    study.parent.mkdir()
    done = call("plan", manifest, "--out", study)
    assert done.code == 0, done.stderr
    planned = yaml.safe_load(study.read_text())
    planned["data"]["root"] = "."
    study.write_text(yaml.safe_dump(planned))
    done = call("prepare", study, "--runs", tmp_path / "runs")
    assert done.code == 0, done.stderr
    (tmp_path / "my scans").rename(tmp_path / "moved")
    call("manifest", "check", manifest).refused(3, "40 of 40 images")


def test_leaks_are_refused_with_their_reasons_and_without_identifiers(leaking: Path) -> None:
    done = call("manifest", "check", leaking, "--json", "--out", leaking.parent / "sheet.png")
    said = done.refused(3, "DataError", "near_duplicates", "label_conflict", "unreadable", "_fixed.csv")
    assert "1 of 6 test, 1 of 12 train images have a near-duplicate (correlation over 0.99) in another split" in said
    names = {one["name"]: one["severity"] for one in done.summary["findings"] if one["name"] != "small_split"}
    assert names == {
        "near_duplicates": "refuse",
        "exact_duplicates_within": "note",
        "label_conflict": "refuse",
        "unreadable": "refuse",
    }
    assert done.summary["pairs"] == {"exact": 1, "near": 1}
    assert "MRNp" not in done.stdout + done.stderr
    assert (leaking.parent / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_fix_writes_a_manifest_that_passes(leaking: Path) -> None:
    mended = leaking.parent / "mended.csv"
    done = call("manifest", "check", leaking, "--out", mended, "--json")
    assert done.code == 0, done.stderr
    changes = {row["image"]: row["to"] for row in done.summary["changes"]}
    assert changes == {"002.png": "dropped", "005.png": "dropped", "007.png": "dropped", "020.png": "train"}
    again = call("manifest", "check", mended, "--json")
    assert (again.code, again.summary["images"]) == (0, 21)
    assert {one["name"] for one in again.summary["findings"]} == {"near_duplicates_within", "small_split"}


def test_fix_writes_nothing_where_it_cannot_mend(sound: Path) -> None:
    lines = sound.read_text().splitlines()
    sound.write_text("\n".join(line for line in lines if ",val," not in line) + "\n")
    done = call("manifest", "check", sound, "--out", sound.parent / "mended.csv")
    done.refused(3, "was not written: mended, the manifest would still be refused", "split_absent")
    assert not (sound.parent / "mended.csv").exists()


def test_a_study_accepts_by_name(leaking: Path) -> None:
    (leaking.parent / "007.png").unlink()
    Image.fromarray(picture(7)).save(leaking.parent / "007.png")
    data = {"manifest": "m.csv", "labels": ["benign", "malignant"], "accept": ["near_duplicates", "label_conflict"]}
    study = leaking.parent / "study.yaml"
    study.write_text(yaml.safe_dump({"name": "s", "question": "?", "data": data, "prepare": {"size": [32, 32]}}))
    done = call("manifest", "check", leaking, "--study", study, "--data", leaking.parent)
    assert done.code == 0, done.stderr
    assert "accepted" in done.stdout
    study.write_text(study.read_text().replace("near_duplicates", "near_duplicate"))
    call("manifest", "check", leaking, "--study", study, "--data", leaking.parent).refused(2, "did you mean near_dup")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("image,patient_id,label,split\na.png,p,benign,train\n", "has one label only, 'benign'"),
        ("image,patient_id,finding,split\na.png,p,1,train\n", "has no column label"),
        ("image,patient_id,label,split\na.png,p,x,train\nb.png,p,y,test\n", "patient_overlap"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "m.csv").write_text(content)
    call("manifest", "check", tmp_path / "m.csv").refused(3, "DataError", said)


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    call("manifest", "check", tmp_path / "none.csv").refused(3, "none.csv cannot be read")


def test_json_is_one_object_on_the_last_line(leaking: Path) -> None:
    last = call("manifest", "check", leaking, "--json").stdout.splitlines()[-1]
    assert set(json.loads(last)) == {
        "manifest",
        "images",
        "refused",
        "findings",
        "pairs",
        "images_with_a_copy_in_another_split",
        "balance",
        "shortcuts",
        "changes",
    }


def test_images_beside_the_manifest_are_found_where_medopt_data_lacks_them(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDOPT_DATA", str(tmp_path / "elsewhere"))
    assert call("manifest", "check", sound).code == 0
    done = call("manifest", "check", sound, "--data", tmp_path / "elsewhere")
    done.refused(3, "24 of 24 images", str(tmp_path / "elsewhere"))


@pytest.fixture
def sized(tmp_path: Path) -> Path:
    """A manifest of 60 pictures; those of the second label are larger."""
    for at in range(60):
        image = Image.fromarray(picture(at))
        larger = (image.width + 20 * (at % 2) + at % 7, image.height + 20 * (at % 2))
        folder = tmp_path / ("normal", "lesion")[at % 2]
        folder.mkdir(exist_ok=True)
        image.resize(larger).save(folder / f"{at}.png")
    done = call("manifest", "build", tmp_path, "--out", tmp_path / "m.csv")
    assert done.code == 0, done.stderr
    return tmp_path / "m.csv"


def test_a_size_that_tells_the_label_is_reported_and_refused_where_the_study_says_so(sized: Path) -> None:
    done = call("manifest", "check", sized, "--json")
    assert done.code == 0, done.stderr
    (finding,) = [one for one in done.summary["findings"] if one["name"] == "shortcuts"]
    assert finding["severity"] == "note" and "the size of the image alone reaches AUC 1.000 (0." in finding["text"]
    looks = {one["name"]: one["is_shortcut"] for one in done.summary["shortcuts"]["looks"]}
    assert looks["the size of the image"] and "corrected for" in done.stdout
    study = sized.with_name("s.yaml")
    done = call("plan", sized, "--out", study, "--json")
    assert done.code == 0, done.stderr
    assert (
        any(one["is_shortcut"] for one in done.summary["shortcuts"]["looks"]) and "the size of the image" in done.stdout
    )
    study.write_text(study.read_text().replace("data:\n", "data:\n  shortcuts: refuse\n", 1))
    done = call("manifest", "check", sized, "--study", study, "--json")
    assert done.code == 3 and "shortcuts: " not in done.stdout and "the size of the image alone" in done.stderr
    done = call("run", study, "--runs", sized.parent / "runs")
    assert done.code == 3 and "the size of the image alone reaches AUC" in done.stderr and "epoch 1" not in done.stderr
