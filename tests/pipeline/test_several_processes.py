"""The same command under torchrun, and with --devices: one run, one release; values left `auto` are found once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic
from clinic_fixtures import Done, call, environment, only_folder, run_words
from mlflow import MlflowClient

from medopt.config.study_file import load_study
from medopt.core.reporter import SilentReporter
from medopt.pipeline.run import train_study


def torchrun(*words: object) -> Done:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "medopt", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=400, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.long
def test_torchrun_trains_one_run_and_a_finished_one_lets_the_helpers_go(clinic: Clinic, tmp_path: Path) -> None:
    words = [*run_words(clinic, tmp_path), "--set", "training.epochs=2"]
    first = torchrun(*words)
    assert first.code == 0, first.stderr
    shown = [line for line in first.stderr.splitlines() if line.startswith("  epoch")]
    assert len(shown) == 2 and (only_folder(tmp_path, "clinic") / "release").is_dir()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = first.summary["mlflow_run_id"]
    assert [point.step for point in client.get_metric_history(run_id, "curves/loss_train")] == [1, 2]
    again = torchrun(*words)
    assert again.code == 0 and "unchanged, skipped" in again.stderr
    assert again.summary["test"] == first.summary["test"]


def test_several_devices_train_one_model_only(clinic: Clinic, tmp_path: Path) -> None:
    call(*run_words(clinic, tmp_path), "--seeds", 2, "--devices", 2).refused(2, "Several devices train one model")


@pytest.fixture
def trained(clinic: Clinic, tmp_path: Path) -> Any:
    overrides = [
        "training.epochs=2",
        "training.optimizer.lr=auto",
        "training.batch_size=18",
        "training.micro_batch=auto",
    ]
    study = load_study(clinic.study_file, overrides)

    def go() -> Path:
        train_study(study, clinic.study_file, clinic.data, tmp_path, SilentReporter(), "", lambda history: None)
        return only_folder(tmp_path, "clinic")

    return go


@pytest.mark.long
def test_what_is_left_auto_is_found_once_and_kept_for_the_run(trained: Any, tmp_path: Path) -> None:
    folder = trained()
    found = json.loads((folder / "stages" / "tune.json").read_text())["facts"]["training"]
    size, rate = found["batch_size"], found["optimizer"]["lr"]
    assert size == 18 and 2 <= found["micro_batch"] <= 18 and 1e-5 < rate < 1
    history = json.loads((folder / "stages" / "train.json").read_text())["facts"]["history"]
    before = (folder / "stages" / "tune.json").read_bytes()
    assert max(record["learning_rate"] for record in history) <= rate
    trained()
    assert (folder / "stages" / "tune.json").read_bytes() == before
    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(
        json.loads((folder / "run.json").read_text())["mlflow_run_id"]
    )
    assert run.data.metrics["tuned/lr"] == rate and run.data.metrics["tuned/batch_size"] == size
    assert run.data.params["training.optimizer.lr"] == "auto"
