"""kill -9 at random moments, again and again: the same weights, the same history, and MLflow without gap or double."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from clinic import Clinic
from clinic_fixtures import only_folder
from killed_runs import train_once
from mlflow import MlflowClient

KILLS = int(os.environ.get("MEDOPT_TEST_KILLS", "2"))
SETTINGS = [
    "training.epochs=12",
    "training.patience=8",
    "training.ema_decay=0.9",
    "training.mixup=0.2",
    "training.schedule={name: cosine_restarts, t_0: 2, t_mult: 2}",
    "training.switch={patience: 4}",
    "augment.elastic=0.02",
    "augment.shift=radiograph",
]
TIMED = ("epoch/images_per_second", "epoch/data_wait_share", "epoch/seconds")


def forks() -> Any:
    """Processes forked from one that has imported everything, and is ready."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medopt.pipeline.run"])
    first = context.Process(target=os.getpid)
    first.start()
    first.join()
    return context


def forked(context: Any, clinic: Clinic, runs: Path, seed: int) -> Any:
    words = (clinic.study_file, clinic.data, runs, [*SETTINGS, f"seed={seed}"])
    process = context.Process(target=train_once, args=words)
    process.start()
    return process


def files(runs: Path) -> dict[str, bytes]:
    """The best weights and the newest checkpoint; times of epochs stand in its header, so only the tensors' bytes."""
    from medopt.training.checkpoint import read_tensors

    folder = only_folder(runs, "clinic") / "checkpoints"
    paths = [folder / "best.safetensors", sorted(folder.glob("epoch-*"))[-1]]
    return {
        f"{path.name} {name}": value.numpy().tobytes()
        for path in paths
        for name, value in read_tensors(path)[0].items()
    }


def logged(runs: Path) -> dict[str, list[tuple[int, float]]]:
    run_id = json.loads((only_folder(runs, "clinic") / "run.json").read_text())["mlflow_run_id"]
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert len(client.search_runs([client.get_run(run_id).info.experiment_id])) == 1
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(("system/", "headline/"))]
    return {
        name: [(point.step, 0 if name in TIMED else point.value) for point in client.get_metric_history(run_id, name)]
        for name in names
    }


@pytest.mark.long
@pytest.mark.skipif(KILLS == 0, reason="MEDOPT_TEST_KILLS is 0")
def test_killed_at_random_moments_a_run_ends_as_if_nothing_had_been(clinic: Clinic, tmp_path: Path) -> None:
    context, moments, kills, seed = forks(), random.Random(4), 0, 0
    while kills < KILLS:
        whole, broken = tmp_path / f"whole-{seed}", tmp_path / f"broken-{seed}"
        begun = time.monotonic()
        process = forked(context, clinic, whole, seed)
        process.join()
        seconds = time.monotonic() - begun
        assert process.exitcode == 0
        code = None
        while code != 0:
            process = forked(context, clinic, broken, seed)
            process.join(moments.uniform(0, seconds) if kills < KILLS else None)
            process.kill()
            process.join()
            code = process.exitcode
            assert code in (0, -9)
            kills += code == -9
        assert files(whole) == files(broken)
        expected, found = logged(whole), logged(broken)
        assert found == expected and len(found) == 7
        epochs = len(found["curves/loss_train"])
        assert all([step for step, _ in points] == list(range(1, epochs + 1)) for points in found.values())
        assert not [path for path in broken.rglob("*.part") if "cache" not in path.parts]
        seed += 1
    assert kills >= KILLS
