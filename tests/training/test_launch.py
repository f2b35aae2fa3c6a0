"""One process and several give the same metrics and the same weights; a lost one stops the training with one error."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from medopt.config import Study
from medopt.core.errors import ConfigError, TrainingError
from medopt.core.records import EpochRecord
from medopt.training.checkpoint import read_tensors
from medopt.training.hardware import Hardware
from medopt.training.job import PreparedSplit, Trained, TrainingCallbacks, TrainingJob
from medopt.training.launch import train

JUDGED = ("epoch", "train_loss", "val_loss", "val_metric", "learning_rate")


class Pair:
    """The same small training on one process and on two, 7 cases in validation."""

    def __init__(self, folder: Path, study: Study, tiny_set: Callable[..., PreparedSplit]) -> None:
        self.folder, self.study, self.seen = folder, study, {}
        self.sets = tiny_set(folder / "data", study, 20), tiny_set(folder / "data", study, 7, "val", seed=1)

    def run(self, name: str, hardware: Hardware, **options: Any) -> Trained:
        seen = self.seen.setdefault(name, [])

        def score(logits: np.ndarray, targets: np.ndarray) -> float:
            seen.append(logits)
            return float(logits[targets == 1].mean() - logits[targets == 0].mean())

        return train(
            TrainingJob(self.study, *self.sets, self.folder / name, {}), TrainingCallbacks(score, **options), hardware
        )

    def tensors(self, name: str, epoch: int) -> dict[str, torch.Tensor]:
        return read_tensors(self.folder / name / f"epoch-{epoch:04d}.safetensors")[0]


@pytest.fixture
def pair(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., Pair]:
    def make(**training: Any) -> Pair:
        # Plain SGD: Adam divides by a gradient's own size, and would make a rounding of a tiny one as large as any.
        settings = {
            "epochs": 3,
            "batch_size": 8,
            "ema_decay": 0.5,
            "optimizer": {"name": "sgd", "lr": 0.05},
            "mixup": 0.4,
        }
        study = tiny_study(training=settings | training, augment={"elastic": 0.02, "shift": "mr"})
        return Pair(tmp_path, study, tiny_set)

    return make


def helpers() -> list[psutil.Process]:
    return [process for process in psutil.Process().children() if "medopt.training.launch" in process.cmdline()]


def agree(made: Pair, one: Trained, two: Trained, name: str) -> None:
    for first, second in zip(one.history, two.history, strict=True):
        assert {k: asdict(first)[k] for k in JUDGED} == pytest.approx({k: asdict(second)[k] for k in JUDGED}, abs=2e-4)
    for alone, together in zip(made.seen["one"], made.seen[name], strict=True):
        assert alone.shape == together.shape == (7, 1)  # each case once, none from filling up a batch
        np.testing.assert_allclose(together, alone, atol=2e-4)
    # Roundings grow: one that takes a unit over the edge of its ReLU changes a gradient by a thousandth.
    for epoch, kinds, most in ((2, ("",), 1e-4), (3, ("model.", "average."), 5e-4)):
        left, right = made.tensors("one", epoch), made.tensors(name, epoch)
        assert left.keys() == right.keys() and any(key.startswith("average.") for key in left)
        for key, value in left.items():
            if key.startswith(kinds):
                torch.testing.assert_close(right[key], value, atol=most, rtol=1e-3, msg=key)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_processes_give_the_same_metrics_and_weights(pair: Callable[..., Pair], strategy: Any) -> None:
    made = pair()
    one = made.run("one", Hardware(1))
    agree(made, one, made.run("two", Hardware(2, 1, strategy)), "two")
    assert not torch.distributed.is_initialized() and "LOCAL_RANK" not in os.environ


@pytest.mark.long
def test_a_lost_process_stops_training_with_one_error_and_the_same_command_goes_on(
    pair: Callable[..., Pair], capfd: pytest.CaptureFixture[str]
) -> None:
    made = pair()
    one = made.run("one", Hardware(1))

    def kill_the_other(history: Sequence[EpochRecord]) -> None:
        if len(history) == 1:
            (worker,) = helpers()
            worker.send_signal(signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"process 1 of this node of 2 went away.*goes on at the last whole epoch"):
        made.run("two", Hardware(2), on_epoch=kill_the_other)
    assert "Traceback" not in capfd.readouterr().err
    assert not helpers()
    made.seen["two"].clear()
    made.seen["one"].pop(0)  # the epoch that was done before the loss is not done again
    two = made.run("two", Hardware(2))
    agree(made, one, two, "two")


def test_what_stops_all_processes_is_told_once(pair: Callable[..., Pair], capfd: pytest.CaptureFixture[str]) -> None:
    made = pair(optimizer={"name": "sgd", "lr": 1e30}, clip_norm=0, schedule={"name": "constant"})
    with pytest.raises(TrainingError, match="not a finite number in epoch 1"):
        made.run("two", Hardware(2))
    assert capfd.readouterr().err == ""


def test_more_processes_than_a_step_can_feed_are_refused(pair: Callable[..., Pair]) -> None:
    with pytest.raises(ConfigError, match=r"A step of 3 images cannot be shared by 2 processes"):
        pair(batch_size=3).run("two", Hardware(2))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Hardware(4, 2, "fsdp")),
        ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}, Hardware(3, 2, "fsdp")),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}, Hardware(4, 2, "fsdp")),
    ],
    ids=["as asked for", "torchrun", "SLURM"],
)
def test_a_launcher_says_how_many_processes_there_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Hardware
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Hardware.detect(4, 2, "fsdp") == expected
    assert math.prod((expected.devices, expected.nodes)) in (6, 8)
