"""A sweep that is killed, goes on, gives up what is hopeless, and shares MLflow's database with it."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from clinic import STUDY, Clinic, write_study
from clinic_fixtures import Done, call, start, wait
from mlflow import MlflowClient
from optuna.trial import TrialState

from medopt.config import Study
from medopt.core.errors import Pruned
from medopt.core.records import EpochRecord
from medopt.experiments.optuna_store import Store, Trials, Watcher, sweep_url
from medopt.experiments.search_space import Parameter
from medopt.pipeline.stages.compress import CompressStage
from medopt.tracking.tracker import Tracker

SPACE = ["--param", "training.optimizer.lr=1e-4..1e-2:log", "--param", "training.ema_decay=0,0.5"]


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep of three trials whose second was killed, and what it then became."""

    runs: Path
    words: list[object]
    killed: Done
    seconds: list[float]  # of the epochs that trial 1 had trained when it was killed
    done: Done

    @property
    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.done.summary["trials"]
        return found


def newest(runs: Path) -> list[dict[str, Any]]:
    from medopt.training.checkpoint import read_tensors

    folder = sorted(runs.glob("clinic/2*"))[-1]
    history: list[dict[str, Any]] = read_tensors(sorted(folder.glob("checkpoints/epoch-*"))[-1])[1]["history"]
    return history


@pytest.fixture(scope="module")
def swept(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    study = write_study(folder, STUDY | {"training": STUDY["training"] | {"epochs": 3}})
    shutil.copyfile(clinic.data / "manifest.csv", folder / "manifest.csv")
    runs = folder / "runs"
    words: list[object] = ["sweep", study, "--data", clinic.data, "--runs", runs, "--trials", 3, "--json", *SPACE]
    process = start(*words)
    wait_for_second_trial(process, runs)
    process.send_signal(signal.SIGKILL)
    killed = wait(process)
    return Swept(runs, words, killed, [one["seconds"] for one in newest(runs)], call(*words))


def wait_for_second_trial(process: subprocess.Popen[str], runs: Path) -> None:
    limit = time.monotonic() + 240
    while len({path.parents[1] for path in runs.glob("clinic/2*/checkpoints/epoch-*")}) < 2:
        assert process.poll() is None, wait(process)
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_killed_sweep_goes_on_and_repeats_nothing(swept: Swept) -> None:
    assert swept.killed.code == -signal.SIGKILL
    assert swept.done.code == 0, swept.done.stderr
    assert [row["trial"] for row in swept.rows] == [0, 1, 2]
    assert "trial 0:" not in swept.done.stderr
    assert "trial 1:" in swept.done.stderr
    facts = json.loads((Path(swept.rows[1]["folder"]) / "stages" / "train.json").read_text())["facts"]
    assert [one["seconds"] for one in facts["history"][: len(swept.seconds)]] == swept.seconds


def test_first_trial_is_the_study_as_it_is(swept: Swept) -> None:
    assert swept.rows[0]["values"] == {"training.optimizer.lr": 0.003, "training.ema_decay": "0"}


def test_trials_only_train(swept: Swept) -> None:
    """Nothing is compressed, and no trial has looked at the test split."""
    for row in swept.rows:
        folder = Path(row["folder"])
        assert [path.stem for path in (folder / "stages").iterdir()] == ["train"]
        assert not (folder / "predictions.csv").exists()


def test_given_again_it_trains_nothing_and_more_trials_go_on(swept: Swept) -> None:
    again = call(*swept.words)
    assert again.code == 0
    assert "  epoch" not in again.stderr
    assert [row["score"] for row in again.summary["trials"]] == [row["score"] for row in swept.rows]


def test_best_study_runs_from_where_it_stands_with_its_training_done(
    swept: Swept, clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = swept.done.summary
    path = Path(summary["best_study"])
    lr = summary["best"]["values"]["training.optimizer.lr"]
    assert yaml.safe_load(path.read_text())["training"]["optimizer"]["lr"] == lr
    assert summary["command"].startswith(f"medopt run {path} --data ")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CompressStage, "run", interrupt)  # what follows is not asked about here
    done = call("run", path, "--data", clinic.data, "--runs", swept.runs)
    assert done.code == 130
    assert "train      unchanged, skipped" in done.stderr


def test_table_picture_and_mlflow(swept: Swept) -> None:
    folder = Path(swept.done.summary["folder"])
    with (folder / "trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert [float(row["training.optimizer.lr"]) for row in rows] == [
        row["values"]["training.optimizer.lr"] for row in swept.rows
    ]
    assert (folder / "figures" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    client = MlflowClient(f"sqlite:///{swept.runs / 'mlflow.db'}")
    parent = client.get_run(swept.done.summary["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/score"] == max(row["score"] for row in swept.rows if row["score"] is not None)
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 3
    assert "3 trials" in swept.done.stdout
    assert "the test split was not used" in swept.done.stdout


def test_typo_in_a_path_is_refused_before_anything_runs(clinic: Clinic, tmp_path: Path) -> None:
    words = ["sweep", clinic.study_file, "--data", clinic.data, "--runs", tmp_path / "runs"]
    call(*words, "--param", "training.optimizer.rl=1..2").refused(2, "did you mean")
    call(*words, "--param", "model.depth=26,50", "--trials", 0).refused(2, "Invalid value for '--trials'")
    assert not (tmp_path / "runs").exists()


LR = (Parameter("training.optimizer.lr", (), 1e-4, 1e-1, is_log=True),)


@pytest.fixture
def store(tmp_path: Path, tiny_study: Callable[..., Study]) -> Store:
    """In MLflow's own database, as a sweep has it."""
    tracker = Tracker(tiny_study(), tmp_path, None, "one")
    tracker.end("done")
    return Store(sweep_url(tracker.uri, tmp_path), "tiny/sweep", 1)


def epochs(*scores: float) -> list[EpochRecord]:
    return [EpochRecord(number, 0.5, 0.5, score, 0.1, 1.0, 1.0, 0.0) for number, score in enumerate(scores)]


def test_hopeless_trial_is_given_up_and_a_good_one_is_not(store: Store) -> None:
    trials = Trials(store, LR, seed=0, trials=9)
    for _ in range(4):
        number = trials.ask().number
        watch, history = Watcher(store, number, 3), epochs(0.7, 0.8, 0.9)
        for end in range(1, 4):
            watch(history[:end])
        trials.tell(number, "complete", 0.9, folder="a")
    good, bad = (Watcher(store, trials.ask().number, 3) for _ in range(2))
    for watch, step in ((good, 0.85), (bad, 0.6)):
        watch(epochs(step))  # the first epoch is never judged
    good(epochs(0.85, 0.95))
    with pytest.raises(Pruned, match="given up after epoch 2"):
        bad(epochs(0.6, 0.6))
    bad = Watcher(store, 5, 2)
    bad(epochs(0.6, 0.6))  # at its end anyway; and reported before


def test_epoch_without_a_score_is_not_reported(store: Store) -> None:
    trials = Trials(store, LR, seed=0, trials=2)
    Watcher(store, trials.ask().number, 3)(epochs(float("nan"), 0.5))
    assert trials.begun()[0].intermediate_values == {2: 0.5}


def test_proposals_follow_from_the_seed_and_the_finished_trials(tmp_path: Path) -> None:
    """A sweep that was cut off and goes on proposes what the other would have."""
    found = []
    for name in ("one", "two"):
        store = Store(f"sqlite:///{tmp_path / name}.db", "s", None)
        trials, values = Trials(store, LR, 7, 9), []
        for _ in range(6):
            trials = Trials(store, LR, 7, 9) if name == "two" else trials  # as another process opens it
            trial = trials.ask()
            values.append(trial.params["training.optimizer.lr"])
            trials.tell(trial.number, "complete", -abs(values[-1] - 0.01))
        found.append(values)
    assert found[0] == found[1]
    assert len(set(found[0])) == 6


def test_database_is_still_mlflows(store: Store, tmp_path: Path, tiny_study: Callable[..., Study]) -> None:
    """Both libraries keep their version in a table of the same name."""
    trials = Trials(store, LR, seed=0, trials=2)
    trials.tell(trials.ask().number, "fail", reason="the loss is no number")
    Tracker(tiny_study(), tmp_path, None, "two").end("done")
    again = Trials(store, LR, seed=0, trials=2)
    assert [one.state for one in again.begun()] == [TrialState.FAIL]
    assert again.begun()[0].user_attrs == {"reason": "the loss is no number"}


def test_server_of_mlflow_has_no_room_for_trials(tmp_path: Path) -> None:
    assert sweep_url("http://server:5000", tmp_path) == f"sqlite:///{tmp_path / 'sweeps.db'}"
    assert sweep_url("postgresql://db/mlflow", tmp_path) == "postgresql://db/mlflow"
