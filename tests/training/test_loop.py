from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medopt.config import Study
from medopt.core.errors import ConfigError, TrainingError
from medopt.core.records import EpochRecord
from medopt.core.reporter import SilentReporter
from medopt.data.loaders import KeyedDataset
from medopt.training import epoch as epoch_module
from medopt.training import step as state_module
from medopt.training.job import PreparedSplit, Trained, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.schedules import learning_rate


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: list[tuple[int, str]] = []
        self.advanced = 0

    def message(self, text: str) -> None:
        self.said.append(text)

    def progress(self, total: int, what: str) -> Callable[..., None]:
        self.bars.append((total, what))

        def advance(n: int = 1, **fields: Any) -> None:
            self.advanced += n

        return advance


def scores(*values: float) -> Callable[..., float]:
    """A validation metric that takes these values, one an epoch."""
    left = list(values)
    return lambda logits, targets: left.pop(0)


def separation(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(logits[targets == 1].mean() - logits[targets == 0].mean())


@pytest.fixture
def run(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., Trained]:
    def make(training: dict[str, Any], score: Callable[..., float] = separation, **options: Any) -> Trained:
        sections = {key: options.pop(key) for key in ("data", "model", "augment", "prepare") if key in options}
        study = tiny_study(training=training, **sections)
        sets = tiny_set(tmp_path / "data", study, 12), tiny_set(tmp_path / "data", study, 8, "val", seed=1)
        return train(TrainingJob(study, *sets, tmp_path / "run", {}), TrainingCallbacks(score, **options))

    return make


def test_it_learns(run: Callable[..., Trained]) -> None:
    trained = run({"epochs": 6, "optimizer": {"lr": 0.02}}, augment={"probability": 0.2, "flip": []})
    first, last = trained.history[0], trained.history[-1]
    assert last.train_loss < 0.5 * first.train_loss and trained.history[trained.best].val_metric > 1
    assert all(0 <= record.data_wait <= 1 and record.images_per_second > 0 for record in trained.history)
    assert trained.device == "cpu" and trained.weights.is_file()


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 3), ("multilabel", 3)])
def test_every_task_trains(run: Callable[..., Trained], task: str, outputs: int) -> None:
    shapes: list[Any] = []

    def score(logits: np.ndarray, targets: np.ndarray) -> float:
        shapes.append((logits.shape, targets.shape))
        return 0.5

    trained = run({"epochs": 1}, score, data={"task": task, "labels": ["a", "b", "c"]})
    assert shapes == [((8, outputs), (8, outputs))]
    assert math.isfinite(trained.history[0].train_loss)


def test_a_diverging_loss_names_epoch_and_step_and_the_way_out(run: Callable[..., Trained], tmp_path: Path) -> None:
    settings = {"epochs": 3, "clip_norm": 0, "optimizer": {"name": "sgd", "lr": 1e30}, "schedule": {"name": "constant"}}
    with pytest.raises(TrainingError, match=r"not a finite number in epoch \d, step \d.*training.optimizer.lr=1e\+29"):
        run(settings)
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_gradient_that_is_not_a_number_is_found_though_the_loss_is_one(
    run: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def build_loss(*_: Any) -> Any:
        return lambda logits, target: (logits * 0).sum(1).sqrt()  # 0, and its gradient is 0 times infinity

    monkeypatch.setattr(epoch_module, "build_loss", build_loss)
    for clip in (0, 1):
        with pytest.raises(TrainingError, match="The gradient is not a finite number in epoch 1, step 1"):
            run({"epochs": 1, "clip_norm": clip})
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_a_number_is_no_progress(run: Callable[..., Trained]) -> None:
    trained = run({"epochs": 4, "keep": "best"}, scores(math.nan, 0.6, math.nan, 0.5))
    assert trained.best == 1 and math.isnan(trained.history[2].val_metric)


def test_no_defined_metric_at_all_is_an_error(run: Callable[..., Trained], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No epoch gave a defined validation metric"):
        run({"epochs": 2}, scores(math.nan, math.nan))
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_it_stops_early_and_stays_stopped(run: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener()
    settings = {"epochs": 9, "patience": 2}
    trained = run(settings, scores(0.5, 0.7, 0.6, 0.7), reporter=listener)
    assert len(trained.history) == 4 and trained.best == 3  # the highest mean of so many epochs as there are
    assert listener.said[-2] == "Stopped early: no progress in 2 epochs."
    assert listener.said[-1] == (
        "The weights of epoch 4 of 4 are kept: the best by validation AUC as the mean of 5 epochs, as training stopped "
        "before the schedule one_cycle ended."
    )
    monkeypatch.setattr(epoch_module.Epochs, "train", lambda *args: pytest.fail("trained again"))
    assert run(settings, scores()).history == trained.history


def test_the_loss_can_be_the_metric(run: Callable[..., Trained]) -> None:
    trained = run({"epochs": 2, "metric": "loss"}, score=lambda *_: pytest.fail("the score is not asked"))
    assert all(record.val_metric == -record.val_loss for record in trained.history)


def test_the_caller_hears_the_history_before_and_after_every_epoch(run: Callable[..., Trained], tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []

    def on_epoch(history: Sequence[EpochRecord]) -> None:
        heard.append((len(history), len(list((tmp_path / "run").glob("epoch-*")))))

    listener = Listener()
    run({"epochs": 2}, on_epoch=on_epoch, reporter=listener)
    assert heard == [(0, 0), (1, 1), (2, 2)]  # its checkpoint is on disk by then
    assert listener.bars == [(12, "epoch 1/2"), (12, "epoch 2/2")] and listener.advanced == 24
    assert any(line.startswith("epoch   2/2") and "val auc" in line for line in listener.said)


def test_the_rate_is_the_schedules(run: Callable[..., Trained], tiny_study: Callable[..., Study]) -> None:
    config = tiny_study(training={"epochs": 3, "optimizer": {"lr": 0.02}}).training
    trained = run({"epochs": 3, "optimizer": {"lr": 0.02}})
    expected = [learning_rate(config.schedule, 0.02, 3 * epoch + 2, 3, 3) for epoch in range(3)]
    assert [record.learning_rate for record in trained.history] == expected


def test_the_plateau_hears_the_scores_of_validation(run: Callable[..., Trained]) -> None:
    schedule = {"name": "plateau", "patience": 1, "factor": 0.5}
    trained = run({"epochs": 4, "optimizer": {"lr": 0.02}, "schedule": schedule}, scores(0.5, 0.6, 0.4, 0.7))
    assert [record.learning_rate for record in trained.history] == [0.02, 0.02, 0.02, 0.01]


def test_every_epoch_shuffles_and_augments_anew(run: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[int, int, int]] = []
    original = KeyedDataset.__getitems__
    monkeypatch.setattr(KeyedDataset, "__getitems__", lambda self, some: (keys.extend(some), original(self, some))[1])
    run({"epochs": 2})
    first, second = ([index for epoch, index, _ in keys if epoch == wanted] for wanted in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12)) and first != second
    assert [index for epoch, index, _ in keys if epoch == -1] == [*range(8)] * 2  # validation, untouched


def test_validation_images_are_not_augmented(run: Callable[..., Trained]) -> None:
    """Without learning, every epoch must give the same validation loss, whatever is drawn for training."""
    still = {"epochs": 3, "ema_decay": 0.0, "optimizer": {"name": "sgd", "lr": 1e-12, "momentum": 0}}
    losses: list[list[float]] = []

    def score(logits: np.ndarray, targets: np.ndarray) -> float:
        losses.append(logits.flatten().tolist())
        return 0.5

    def frozen(module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0

    original = state_module.build_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_module, "build_model", lambda study: original(study).apply(frozen))
        run(still, score, augment={"probability": 1, "shift": "mr", "shift_probability": 1})
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, atol=1e-6)


def test_bfloat16_trains_where_it_is_asked_for(run: Callable[..., Trained]) -> None:
    trained = run({"epochs": 1, "precision": "bf16-mixed"})
    assert math.isfinite(trained.history[0].train_loss)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that must be missing here")
def test_a_device_that_is_not_there_is_a_wrong_setting(run: Callable[..., Trained]) -> None:
    with pytest.raises(ConfigError, match=r"Training on cuda .* is not possible here"):
        run({"epochs": 1, "accelerator": "cuda"})
