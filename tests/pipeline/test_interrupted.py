"""A run that is killed, then interrupted, then given again: one MLflow run, the same weights to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic
from clinic_fixtures import Done, Finished, call, only_folder, run_words, start, wait
from mlflow import MlflowClient
from mlflow.entities import Run

CHECKPOINTS = "clinic/*/checkpoints/epoch-*.safetensors"


@dataclass(frozen=True, slots=True)
class Broken:
    """The three processes of one run, and what MLflow knew after each."""

    runs: Path
    killed: Done
    interrupted: Done
    ended: Done
    states: list[tuple[str, str, str]]  # run id, status, outcome
    epochs: list[int]  # in the newest checkpoint, when the process had gone


def stop_after(process: subprocess.Popen[str], runs: Path, epoch: int, how: signal.Signals) -> Done:
    """Send the signal as soon as the epoch's checkpoint is there."""
    limit = time.monotonic() + 240
    while not any(path.name >= f"epoch-{epoch:04d}" for path in runs.glob(CHECKPOINTS)):
        assert process.poll() is None, wait(process)
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(how)
    return wait(process)


def state(runs: Path) -> tuple[str, str, str]:
    facts = json.loads((only_folder(runs, "clinic") / "run.json").read_text())
    run = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}").get_run(facts["mlflow_run_id"])
    return facts["mlflow_run_id"], run.info.status, run.data.tags["outcome"]


def newest(runs: Path) -> int:
    return max(int(path.stem.removeprefix("epoch-")) for path in runs.glob(CHECKPOINTS))


@pytest.fixture(scope="module")
def broken(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Broken:
    runs = tmp_path_factory.mktemp("broken")
    states, epochs = [], []
    killed = stop_after(start(*run_words(clinic, runs)), runs, 1, signal.SIGKILL)
    states.append(state(runs))
    epochs.append(newest(runs))
    (only_folder(runs, "clinic") / ".study.yaml.99-1.part").write_text("left by a process that was killed in a write")
    interrupted = stop_after(start(*run_words(clinic, runs)), runs, epochs[0] + 1, signal.SIGINT)
    states.append(state(runs))
    epochs.append(newest(runs))
    ended = wait(start(*run_words(clinic, runs)))
    states.append(state(runs))
    return Broken(runs, killed, interrupted, ended, states, epochs)


def test_kill_9_struck_in_training(broken: Broken) -> None:
    assert broken.killed.code == -signal.SIGKILL
    assert broken.epochs[0] < 4
    assert broken.states[0][1:] == ("RUNNING", "running")


def test_ctrl_c_is_a_killed_run_with_exit_code_130(broken: Broken) -> None:
    broken.interrupted.refused(130, "Interrupted", "same command")
    assert broken.epochs[0] < broken.epochs[1]
    assert broken.states[1][1:] == ("KILLED", "interrupted")


def test_same_command_goes_on_in_the_same_run_to_the_end(broken: Broken) -> None:
    assert broken.ended.code == 0
    assert len({run_id for run_id, _, _ in broken.states}) == 1
    assert broken.states[2][1:] == ("FINISHED", "released")
    shown = [line for line in broken.ended.stderr.splitlines() if line.startswith("  epoch")]
    assert len(shown) == 4 - broken.epochs[1]  # no epoch was trained twice
    assert broken.ended.summary["mlflow_run_id"] == broken.states[0][0]


def test_weights_are_those_of_an_uninterrupted_run_to_the_bit(broken: Broken, finished: Finished) -> None:
    best = "checkpoints/best.safetensors"
    assert (only_folder(broken.runs, "clinic") / best).read_bytes() == (finished.folder / best).read_bytes()


def history(run: Run, client: MlflowClient) -> dict[str, list[tuple[int, float]]]:
    timed = ("epoch/images_per_second", "epoch/data_wait_share", "epoch/seconds")
    names = [name for name in run.data.metrics if name.split("/")[0] in ("curves", "epoch")]
    return {
        name: [(m.step, 0 if name in timed else m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in names
    }


def test_mlflow_has_every_epoch_once(broken: Broken, finished: Finished) -> None:
    found: list[Any] = []
    for runs, run_id in ((broken.runs, broken.states[0][0]), (finished.runs, finished.metrics["mlflow_run_id"])):
        client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
        found.append(history(client.get_run(run_id), client))
    assert len(found[0]) == 7
    assert all([step for step, _ in points] == [1, 2, 3, 4] for points in found[0].values())
    assert found[0] == found[1]
    assert len(MlflowClient(f"sqlite:///{broken.runs / 'mlflow.db'}").search_runs(["1"])) == 1


def test_nothing_half_written_is_left(broken: Broken) -> None:
    assert not list(broken.runs.rglob("*.part"))


def test_release_of_the_broken_run_is_whole(broken: Broken) -> None:
    assert call("verify", only_folder(broken.runs, "clinic") / "release").code == 0


def test_second_process_is_refused_while_one_runs(clinic: Clinic, tmp_path: Path) -> None:
    """The lock is the file system's own, held by an open file: it goes with the process that held it."""
    import fcntl

    from medopt.config.study_file import load_study
    from medopt.pipeline.run_folder import open_run
    from medopt.pipeline.study_cases import read_source

    study = load_study(clinic.study_file)
    source = read_source(study, clinic.study_file, clinic.data)
    with open_run(tmp_path, study, source.training_digest):
        call(*run_words(clinic, tmp_path)).refused(2, "Another process is running in", "--fresh")
    lock = only_folder(tmp_path, "clinic") / ".lock"
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
