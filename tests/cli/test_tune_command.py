"""`medopt tune` as a user runs it, on a small study of PNG files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from clinic_fixtures import call
from pictures import write_manifest, write_set
from PIL import Image

STUDY = {
    "name": "small",
    "question": "?",
    "data": {"manifest": "m.csv", "labels": ["benign", "malignant"]},
    "prepare": {"size": [16, 16]},
    "model": {"depth": 26, "width": 0.125, "stem": "small"},
    "training": {"batch_size": 4, "optimizer": {"lr": "auto"}},
}


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    write_manifest(folder / "m.csv", write_set(folder))
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return folder / "study.yaml"


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 300 and not list(path.parent.glob(".*.part"))


def places(study_file: Path) -> list[object]:
    return [study_file, "--data", study_file.parent, "--runs", study_file.parent / "runs", "--json"]


def test_lr_suggests_a_rate_below_the_turn_and_draws_it(study_file: Path) -> None:
    done = call("tune", "lr", *places(study_file), "--steps", 40, "--low", 1e-4)
    assert done.code == 0, done.stderr
    found, picture = done.summary, study_file.parent / "runs" / "small" / "tune" / "lr.png"
    assert is_picture(picture) and found["picture"] == str(picture)
    assert found["suggestion"] is None or found["suggestion"] < found["turn"]
    said = "none" if found["suggestion"] is None else f"--set training.optimizer.lr={found['suggestion']:g}"
    assert f"suggested {said}" in done.stdout and "because" in done.stdout
    assert call("tune", "lr", *places(study_file), "--steps", 40, "--low", 1e-4).summary == found  # deterministic


def test_only_the_training_split_is_prepared(study_file: Path, tmp_path: Path) -> None:
    words = [study_file, "--data", study_file.parent, "--runs", tmp_path]
    assert call("tune", "lr", *words, "--steps", 10).code == 0
    rows = (study_file.parent / "m.csv").read_text().splitlines()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == sum(",train" in row for row in rows) < len(rows) - 1


def test_batch_tries_sizes_and_keeps_the_step(study_file: Path) -> None:
    done = call("tune", "batch", *places(study_file))
    assert done.code == 0, done.stderr
    found = done.summary
    assert [one["micro_batch"] for one in found["trials"]] == [2, 4] and found["batch_size"] == 4
    assert found["micro_batch"] * found["accumulation"] == 4
    assert f"--set training.micro_batch={found['micro_batch']}" in done.stdout and "A step has 4 images" in done.stdout
    assert is_picture(Path(found["picture"]))


def test_init_compares_what_the_net_is_made_of(study_file: Path) -> None:
    done = call("tune", "init", *places(study_file), "--depth", 26, "--steps", 2, "--images", 4)
    assert done.code == 0, done.stderr
    nets = done.summary["nets"]
    assert {(net["init"], net["kind"]) for net in nets} >= {("he", "plain"), ("xavier", "residual, zero start")}
    assert len(nets) == 12 and all(len(net["activation"]) == 8 and len(net["losses"]) == 2 for net in nets)
    assert "(this study)" in done.stdout and is_picture(Path(done.summary["picture"]))


def test_what_cannot_be_meant_is_refused(study_file: Path) -> None:
    call("tune", "init", study_file, "--depth", 30).refused(2, "--depth takes 14, 26, 50, 101 or 152; got 30")
    call("tune", "lr", *places(study_file), "--low", 1, "--high", 0.1).refused(2, "from a lower to a higher rate")
    call("tune", "lr", study_file.with_name("none.yaml")).refused(2, "There is no study file")
