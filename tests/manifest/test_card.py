from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from real_data import DATA, REPO, needs, real

from medopt.core.errors import DataError
from medopt.core.files import file_digest
from medopt.manifest.card import load_card
from medopt.manifest.check import check_cases
from medopt.manifest.table import read_manifest

MANIFESTS = REPO / "data_manifests"
LABELS = {
    "busi": ["benign_or_normal", "malignant"],
    "busi_official": ["benign_or_normal", "malignant"],
    "breastmnist": ["normal_or_benign", "malignant"],
    "hippocampus": ["small", "large"],
}


def carded(tmp_path: Path, **changes: object) -> Path:
    """A manifest with its card; a change to None leaves the key out."""
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,patient_id,label,split\n")
    card = {
        "title": "t",
        "source": "s",
        "licence": "l",
        "citation": "c",
        "labels": {"a": "b"},
        "manifest_sha256": file_digest(manifest),
        **changes,
    }
    text = yaml.safe_dump({key: value for key, value in card.items() if value is not None})
    manifest.with_suffix(".card.yaml").write_text(text)
    return manifest


def test_a_manifest_may_have_no_card(tmp_path):
    assert load_card(tmp_path / "mine.csv") is None


def test_a_changed_manifest_is_refused_with_its_new_checksum(tmp_path):
    manifest = carded(tmp_path)
    assert load_card(manifest) is not None
    manifest.write_text("image,patient_id,label,split\nx,P,a,train\n")
    with pytest.raises(
        DataError, match=f"manifest_sha256: {file_digest(manifest)} into {manifest.with_suffix('.card.yaml')}"
    ):
        load_card(manifest)


FILE = {"url": "https://example.org/a", "path": "a", "checksum": "md5:" + "0" * 32}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"licence": None}, "licence is missing"),
        ({"license": "x"}, "unknown key license: did you mean licence?"),
        ({"files": [{**FILE, "moves": {}}]}, "unknown key files.0.moves: did you mean move?"),
        ({"files": [{**FILE, "zebra": 1}]}, "known here: url, path, checksum"),
        ({"files": [{**FILE, "url": "file:///etc/passwd"}]}, "files.0.url"),
        ({"files": [{**FILE, "path": "../a"}]}, "files.0.path: it leads out of its folder"),
        ({"files": [{**FILE, "move": {"a": "/b"}}]}, "it is absolute"),
        ({"files": [{**FILE, "checksum": "md5:1"}]}, "files.0.checksum"),
        ({"manifest_sha256": "1"}, "manifest_sha256"),
    ],
)
def test_a_wrong_card_is_refused(tmp_path, changes, expected):
    manifest = carded(tmp_path, **changes)
    with pytest.raises(DataError, match=r"The card .*m\.card\.yaml") as caught:
        load_card(manifest)
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b"title: [", b"\xff\xfe", b"- a list"])
def test_an_unreadable_card_is_refused(tmp_path, content):
    manifest = carded(tmp_path)
    manifest.with_suffix(".card.yaml").write_bytes(content)
    with pytest.raises(DataError, match="The card"):
        load_card(manifest)


@pytest.mark.parametrize("name", LABELS)
def test_the_project_s_manifests_are_what_their_cards_describe(name, study):
    manifest = MANIFESTS / f"{name}.csv"
    card = load_card(manifest)
    assert card is not None
    assert set(card.labels) == set(LABELS[name])
    way, by_hand = card.how_to_get(name), name.startswith("busi")  # BUSI has no published checksum
    assert (f"medopt fetch {name}" in way) is not by_hand
    assert ("by hand" in way and "https://scholar.cu.edu.eg/Dataset_BUSI.zip" in way) is by_hand
    cases = read_manifest(manifest, study(labels=LABELS[name]))
    assert len(cases) == {"busi": 778, "busi_official": 780, "breastmnist": 780, "hippocampus": 200}[name]


def test_breastmnist_has_its_official_split_and_busi_that_one_without_leaks():
    def counts(name: str, finding: str) -> dict[str, tuple[int, int]]:
        rows = list(csv.DictReader((MANIFESTS / f"{name}.csv").read_text().splitlines()))
        return {
            split: (
                sum(row["split"] == split for row in rows),
                sum(row["split"] == split and row["label"] == finding for row in rows),
            )
            for split in ("train", "val", "test")
        }

    assert counts("breastmnist", "malignant") == {"train": (546, 147), "val": (78, 21), "test": (156, 42)}
    assert counts("busi_official", "malignant") == counts("breastmnist", "malignant")
    assert counts("busi", "malignant") == {"train": (609, 153), "val": (57, 19), "test": (112, 37)}


def test_both_sides_of_a_person_are_in_one_split():
    rows = csv.DictReader((MANIFESTS / "hippocampus.csv").read_text().splitlines())
    split = {int(row["image"][-10:-7]): row["split"] for row in rows}
    pairs = [(number, number + 1) for number in split if number % 2 and number + 1 in split]
    assert len(pairs) == 69
    assert all(split[left] == split[right] for left, right in pairs)


@pytest.mark.parametrize("name", LABELS)
def test_the_images_lie_where_the_manifests_say(name, study):
    checked = study(labels=LABELS[name])
    cases = read_manifest(MANIFESTS / f"{name}.csv", checked)
    assert check_cases(cases, real(name.removesuffix("_official")), checked) == []


@needs("busi")
@needs("breastmnist")
@needs("hippocampus")
def test_the_manifests_can_be_made_again(tmp_path):
    for path in MANIFESTS.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes() if path.suffix != ".csv" else b"")
    command = [sys.executable, str(tmp_path / "make.py"), "--data", str(DATA)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    for name in LABELS:
        for suffix in (".csv", ".card.yaml"):
            assert (tmp_path / f"{name}{suffix}").read_bytes() == (MANIFESTS / f"{name}{suffix}").read_bytes()
