"""Runs and parts on a real two-node Ray cluster: one node is killed in the middle, and its jobs go on elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from clinic import Clinic
from clinic_fixtures import Done, Finished, call, start, wait
from mlflow import MlflowClient
from ray_cluster import two_nodes

from medopt.config.study_file import load_study
from medopt.core.errors import TrainingError
from medopt.core.reporter import SilentReporter
from medopt.pipeline.run import train_study
from medopt.training.checkpoint import read_tensors

BEST = "checkpoints/best.safetensors"


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as found:
        yield found


@dataclass(frozen=True, slots=True)
class Killed:
    """Two seeds on two nodes, one of which was killed while it trained; and what its checkpoint then held."""

    runs: Path
    done: Done
    member: Path
    before: list[dict[str, Any]]

    def folder(self, seed: int) -> Path:
        return Path(next(one["folder"] for one in self.done.summary["members"] if one["seed"] == seed))


def member_on(node: Any) -> Path | None:
    """The run folder that a process of this node holds locked."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    with suppress(psutil.Error):  # a process may end while it is looked at
        locks = [Path(file.path) for worker in raylet.children(recursive=True) for file in worker.open_files()]
        return next((path.parent for path in locks if path.name == ".lock" and path.parent.name[0] == "2"), None)
    return None


def trained(folder: Path) -> list[dict[str, Any]]:
    """The epochs that the newest checkpoint holds."""
    with suppress(TrainingError, IndexError):  # the oldest goes while it is looked at
        history: list[dict[str, Any]] = read_tensors(sorted(folder.glob("checkpoints/epoch-*"))[-1])[1]["history"]
        return history
    return []


@pytest.fixture(scope="module")
def killed(clinic: Clinic, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    runs = tmp_path_factory.mktemp("cluster")
    words = ["run", clinic.study_file, "--data", clinic.data, "--runs", runs, "--seeds", 2, "--on", "ray", "--json"]
    process = start(*words, RAY_ADDRESS=cluster[0].address)
    try:
        limit = time.monotonic() + 480  # the processes of a busy machine take long to start
        while (member := member_on(cluster[1])) is None or not (before := trained(member)):
            assert process.poll() is None, wait(process)
            assert time.monotonic() < limit
            time.sleep(0.01)
        cluster[0].remove_node(cluster[1], allow_graceful=False)
        return Killed(runs, wait(process), member, before)
    finally:
        process.kill()


def test_all_members_end_although_a_node_died(killed: Killed) -> None:
    members = killed.done.summary["members"]  # four epochs may leave one that has learned nothing, and no release
    is_released = all(one["outcome"].startswith("released") for one in members)
    assert killed.done.code == (0 if is_released else 5), killed.done.stderr
    assert [one["gate_passed"] for one in members] == [True, True]
    assert "2/2" in killed.done.stderr


def test_job_of_the_dead_node_went_on_from_its_checkpoint(killed: Killed) -> None:
    """Its history still begins with the very epochs that were there before: no two take the same time to the digit."""
    assert 0 < len(killed.before) < 4
    record = json.loads((killed.member / "stages" / "train.json").read_text())
    history = record["facts"]["history"]
    assert [one["seconds"] for one in history[: len(killed.before)]] == [one["seconds"] for one in killed.before]
    assert [one["epoch"] for one in history] == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", [0, 1])
def test_weights_are_those_of_the_local_engine_to_the_bit(
    killed: Killed, clinic: Clinic, tmp_path: Path, seed: int
) -> None:
    study = load_study(clinic.study_file, [f"seed={seed}"])
    local = train_study(study, clinic.study_file, clinic.data, tmp_path, SilentReporter(), "", lambda _: None)
    assert (killed.folder(seed) / BEST).read_bytes() == (local.folder / BEST).read_bytes()


def test_members_stand_below_one_finished_run_in_mlflow(killed: Killed) -> None:
    client = MlflowClient(f"sqlite:///{killed.runs / 'mlflow.db'}")
    parent = client.get_run(killed.done.summary["mlflow_run_id"])
    assert (parent.info.status, parent.data.tags["outcome"]) == ("FINISHED", "done")
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], below)
    assert sorted(run.data.params["seed"] for run in children) == ["0", "1"]
    for run in children:
        assert run.info.status == "FINISHED"
        assert [one.step for one in client.get_metric_history(run.info.run_id, "curves/loss_val")] == [1, 2, 3, 4]


def test_archive_is_predicted_in_parts_as_it_is_in_one(
    finished: Finished, clinic: Clinic, cluster: Any, tmp_path: Path
) -> None:
    words = ["predict", finished.release, clinic.data / "scans", "--engine", "onnxruntime", "--out"]
    assert call(*words, tmp_path / "one.csv").code == 0
    done = wait(start(*words, tmp_path / "parts.csv", "--on", "ray", RAY_ADDRESS=cluster[0].address))
    assert done.code == 0, done.stderr
    assert "2/2 part" in done.stderr
    assert (tmp_path / "parts.csv").read_text() == (tmp_path / "one.csv").read_text()


def test_sweep_runs_on_the_cluster(clinic: Clinic, cluster: Any, tmp_path: Path) -> None:
    words = ["sweep", clinic.study_file, "--data", clinic.data, "--runs", tmp_path, "--set", "training.epochs=1"]
    words += ["--param", "training.optimizer.lr=1e-4..1e-2:log", "--trials", 2, "--on", "ray", "--json"]
    done = wait(start(*words, RAY_ADDRESS=cluster[0].address))
    assert done.code == 0, done.stderr
    assert [row["state"] for row in done.summary["trials"]] == ["complete", "complete"]
    assert done.summary["counts"] == {"complete": 2, "pruned": 0, "fail": 0}
