"""From a folder or a manifest to a start that a study begins with."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from clinic import STUDY
from clinic_fixtures import call
from mlflow import MlflowClient
from pictures import write_manifest, write_set
from PIL import Image
from safetensors import safe_open

from medopt.core.errors import DataError
from medopt.data.images_seen import images_seen, read_content, refuse_seen
from medopt.models.starts.adapt import fit_start
from medopt.models.starts.files import read_start

TINY = {
    "prepare": {"size": [64, 64]},
    "augment": {"flip": []},
    "model": {"depth": 26, "width": 0.125, "variant": "v1.5"},
}
QUICK = ("--set", "training.epochs=2", "--set", "training.batch_size=6", "--probe-every", "1", "--json")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file of 24 pictures, 6 of them for testing, and its manifest, beside the pictures."""
    folder = tmp_path / "data"
    write_manifest(folder / "m.csv", write_set(folder))
    path = tmp_path / "study.yaml"
    data = {"manifest": "data/m.csv", "root": "data", "labels": ["benign", "malignant"]}
    path.write_text(yaml.safe_dump(STUDY | TINY | {"name": "pictures", "data": data}))
    return path


@contextmanager
def interrupted_after_the_first_epoch(runs: Path) -> Iterator[None]:
    """Ctrl-C as soon as the first checkpoint is on the disk."""

    def interrupt() -> None:
        while not list(runs.rglob("epoch-0001.safetensors")):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    yield
    waiting.join(60)


def facts_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as stream:
        found: dict[str, Any] = json.loads(stream.metadata()["medopt"])["facts"]
        return found


def test_a_manifest_becomes_a_start(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medopt.config.study_file import load_study
    from medopt.models import build_model

    monkeypatch.chdir(tmp_path)
    words = ("pretrain", "data/m.csv", "--out", "start.safetensors", "--like", study, *QUICK)
    with interrupted_after_the_first_epoch(tmp_path / "runs"):
        assert call(*words).code == 130
    (folder,) = (tmp_path / "runs" / "pretrain-m").glob("*-*-????????")
    assert json.loads((folder / "run.json").read_text())["outcome"] == "interrupted"
    assert not (tmp_path / "start.safetensors").exists()

    monkeypatch.setattr("medopt.cli.pretrain.HELPS", -2.0)  # any AUC is enough
    done = call(*words)  # goes on
    assert done.code == 0, done.stderr
    assert "may lower the accuracy" not in done.stdout
    assert Path(done.summary["run"]).name == folder.name
    assert (done.summary["images"], done.summary["of_val"], done.summary["of_test"]) == (12, 6, 6)
    assert list(done.summary["neighbours"]) == ["1", "2"]
    assert done.summary["neighbours_before"] is not None

    begun = load_study(study)
    start = read_start(tmp_path / "start.safetensors")
    assert start.architecture() == {"depth": 26, "width": 0.125, "stem": "medium", "variant": "v1.5"}
    assert (start.scaling, start.channels, start.spatial_dims) == (None, 1, 2)
    assert fit_start(start, build_model(begun), "start").share == 1.0

    # The same command trains nothing again, and writes the same bytes.
    before = (tmp_path / "start.safetensors").read_bytes()
    monkeypatch.setattr("medopt.cli.pretrain.HELPS", 2.0)  # no AUC is
    again = call(*words)
    assert again.code == 0, again.stderr
    assert "may lower the accuracy" in again.stdout and "--set model.start=scratch" in again.stdout
    assert (tmp_path / "start.safetensors").read_bytes() == before
    assert again.summary["run"] == done.summary["run"]
    assert again.summary["seconds"] == done.summary["seconds"]
    run_id = json.loads((Path(done.summary["run"]) / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    for name in ("curves/loss_train", "curves/auc_neighbours", "embeddings/rank"):
        assert [one.step for one in client.get_metric_history(run_id, name)] == [1, 2]
    assert client.get_run(run_id).info.status == "FINISHED"

    # Another pretraining does not write over it.
    other = call(*words, "--set", "seed=5")
    other.refused(2, "ConfigError", "start.safetensors is there already", "--out")
    assert (tmp_path / "start.safetensors").read_bytes() == before


def test_a_study_s_test_images_are_left_out_by_content(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hospital's folder holds the study's images, too, as other files."""
    monkeypatch.chdir(tmp_path)
    cases = write_set(tmp_path / "data")
    (tmp_path / "all").mkdir()
    for case in cases:
        Image.open(tmp_path / "data" / case.image).save(tmp_path / "all" / f"export-{case.image[:3]}.tif")
    words = ("pretrain", "all", "--like", study, *QUICK)
    kept = call(*words, "--out", "kept.safetensors", "--leave-out", study)
    assert kept.code == 0, kept.stderr
    assert (kept.summary["images"], kept.summary["left_out"]["copies"]) == (18, 6)
    assert kept.summary["neighbours_before"] is None
    test = [case for case in cases if case.split == "test"]
    refuse_seen(tmp_path / "kept.safetensors", test, tmp_path / "data")
    own = [one.digests for one in read_content(cases[:18], tmp_path / "data")]
    assert all(digests & images_seen(tmp_path / "kept.safetensors") for digests in own)

    saw = call(*words, "--out", "saw.safetensors")
    assert saw.code == 0, saw.stderr
    assert facts_of(tmp_path / "saw.safetensors")["images"] == 24
    with pytest.raises(DataError, match="trained on 6 of the 6 images"):
        refuse_seen(tmp_path / "saw.safetensors", test, tmp_path / "data")


def test_volumes_in_a_folder_without_labels_or_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    for at in range(9):
        volume = np.random.default_rng(at).normal(0, 100, (16, 16, 16)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scans" / f"scan{at}.nii.gz")
    (tmp_path / "scans" / "scan8.nii.gz").write_bytes(b"cut off")
    done = call("pretrain", "scans", "--out", "start.safetensors", "--set", "training.epochs=1", "--json")
    assert done.code == 0, done.stderr
    assert done.summary["images"] == 8
    assert "left out 1: " in done.stderr and "scan8.nii.gz" in done.stderr
    start = read_start(tmp_path / "start.safetensors")
    assert (start.spatial_dims, start.stem, start.channels) == (3, "medium", 1)


def test_what_cannot_be_pretrained_is_refused(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("pretrain", "data/m.csv", "--out", "start.pth").refused(2, "written as .safetensors")
    call("pretrain", "nowhere", "--out", "s.safetensors").refused(3, "There is no file or folder nowhere")
    call(
        "pretrain", "data/m.csv", "--out", "s.safetensors", "--like", study, "--leave-out", study, "--set", "a=1"
    ).refused(2, "unknown key a")
    call("pretrain", "data/m.csv", "--out", "s.safetensors", "--set", "training.batch_size=2").refused(2, "batch_size")
    few = tmp_path / "few.csv"
    few.write_text("image\n000.png\n001.png\n")
    call("pretrain", few, "--data", "data", "--out", "s.safetensors").refused(
        3, "2 images are left to learn from, of 2"
    )
    assert not (tmp_path / "s.safetensors").exists()
