"""`medopt bench` as a user runs it: with a study and without, to JSON and to a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from clinic_fixtures import call
from pictures import write_manifest, write_set

STUDY = {
    "name": "small",
    "question": "?",
    "data": {"manifest": "m.csv", "labels": ["benign", "malignant"]},
    "prepare": {"size": [16, 16]},
    "model": {"depth": 26, "width": 0.125, "stem": "small"},
    "training": {"batch_size": 4, "optimizer": {"lr": "auto"}},
}
STAGES = [
    "read and decode",
    "prepare",
    "augment on the CPU",
    "forward pass",
    "step, images in memory",
    "training, with its data",
]


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "m.csv", write_set(tmp_path))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path / "study.yaml"


def test_every_stage_of_a_study_is_measured_and_kept(study_file: Path) -> None:
    from mlflow import MlflowClient

    runs = study_file.parent / "runs"
    words = (study_file, "--data", study_file.parent, "--runs", runs, "--seconds", 0.01, "--log", "--json")
    done = call("bench", *words, "--set", "training.residence=host")
    assert done.code == 0, done.stderr
    found = done.summary
    assert [stage["name"] for stage in found["stages"]] == STAGES
    assert all(stage["images_per_second"] > 0 for stage in found["stages"])
    shares = {stage["name"]: stage["share"] for stage in found["stages"]}
    assert shares["read and decode"] is None and 0 < shares["step, images in memory"] < 1.5
    assert found["tera_operations"] > 0 and found["copied_gb"] > 0 and found["device"] == "cpu"
    assert "training.residence=host training.augment_on=cpu training.compile=false training.workers=0" in done.stdout
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["bench.json"]
    assert any("forward" in name for name in run.data.metrics) and run.info.status == "FINISHED"


def test_without_a_study_drawn_radiographs_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("bench", "--seconds", 0.01, "--set", "prepare.size=[32, 32]", "--json")
    assert done.code == 0, done.stderr
    assert done.summary["study"] == "phantom" and len(done.summary["stages"]) == len(STAGES)
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_an_unknown_study_is_refused() -> None:
    done = call("bench", "fantom")
    assert done.code == 2 and "Did you mean phantom?" in done.stderr
