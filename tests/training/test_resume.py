"""A run that was killed and goes on ends with the same bits as one that was left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medopt.config import Study
from medopt.core.errors import StorageError, TrainingError
from medopt.core.records import EpochRecord
from medopt.core.reporter import SilentReporter
from medopt.training import loop
from medopt.training.checkpoint import read_tensors, write_tensors
from medopt.training.epoch import Epochs
from medopt.training.job import PreparedSplit, Trained, TrainingCallbacks, TrainingJob
from medopt.training.launch import train
from medopt.training.loop import load_best
from medopt.training.step import Stepper

FACTS = {"study": "a", "chain": "b"}
MEASURED = ("train_loss", "val_loss", "val_metric", "learning_rate", "epoch")


class Killed(BaseException):
    """What no `except Exception` stops, like kill -9 as far as the files are concerned."""


def auc(logits: np.ndarray, targets: np.ndarray) -> float:
    return float(roc_auc_score(targets[:, 0], logits[:, 0]))


class Runs:
    """Runs of one tiny study, each in a folder of its own."""

    def __init__(self, folder: Path, study: Study, tiny_set: Callable[..., PreparedSplit]) -> None:
        self.folder, self.study = folder, study
        self.sets = tiny_set(folder / "data", study, 9), tiny_set(folder / "data", study, 8, "val", seed=1)

    def run(self, name: str, kill_after: int | None = None, **options: Any) -> Trained:
        def on_epoch(history: Sequence[EpochRecord]) -> None:
            if kill_after is not None and len(history) == kill_after:
                raise Killed

        facts = options.pop("facts", FACTS)
        lead = TrainingCallbacks(**({"score": auc, "on_epoch": on_epoch} | options))
        return train(TrainingJob(self.study, *self.sets, self.folder / name, facts), lead)


@pytest.fixture
def runs(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., Runs]:
    def make(training: dict[str, Any] | None = None, **sections: Any) -> Runs:
        settings = {"epochs": 4, "optimizer": {"lr": 0.01}} | (training or {})
        return Runs(tmp_path, tiny_study(training=settings, **sections), tiny_set)

    return make


def same(one: Trained, other: Trained) -> None:
    """Histories and all tensors of the last checkpoint and of the best weights agree in every bit."""
    assert one.best == other.best
    for first, second in zip(one.history, other.history, strict=True):
        assert {k: asdict(first)[k] for k in MEASURED} == {k: asdict(second)[k] for k in MEASURED}
    last = f"epoch-{len(one.history):04d}.safetensors"
    for name in (last, "best.safetensors"):
        (left, _), (right, _) = (read_tensors(run.weights.parent / name) for run in (one, other))
        assert left.keys() == right.keys()
        different = [key for key in left if not torch.equal(left[key], right[key])]
        assert not different


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": {"name": "one_cycle"}, "ema_decay": 0.7},
        {"optimizer": {"name": "nadam", "lr": 0.01}, "schedule": {"name": "cosine_restarts", "t_0": 1, "t_mult": 2}},
        {"optimizer": {"name": "sgd", "lr": 0.05}, "schedule": {"name": "plateau", "patience": 1, "factor": 0.5}},
        {"optimizer": {"name": "adam", "lr": 0.01}, "schedule": {"name": "cosine"}, "label_smoothing": 0.1},
        {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0}, "class_weights": "balanced", "clip_norm": 0},
        {"optimizer": {"name": "adam", "lr": 0.01}, "switch": {"patience": 1}, "schedule": {"name": "constant"}},
        {"mixup": 0.4, "sampling": "balanced", "micro_batch": 2, "loss": "focal"},
        {"patience": 2, "ema_decay": 0.7, "schedule": {"name": "cosine_restarts", "t_0": 1}, "epochs": 6},
    ],
    ids=[
        "adamw one-cycle ema",
        "nadam restarts",
        "sgd plateau",
        "adam cosine",
        "sgd without momentum",
        "switch",
        "mixup balanced focal micro-batches",
        "early stop",
    ],
)
def test_a_killed_run_ends_like_one_that_was_left_alone(runs: Callable[..., Runs], training: dict[str, Any]) -> None:
    made = runs(training, model={"dropout": 0.3}, augment={"elastic": 0.03, "shift": "mr"})
    whole = made.run("whole")
    for epoch in (1, 3):
        with pytest.raises(Killed):
            made.run("killed", kill_after=epoch)
    same(whole, made.run("killed"))


def test_a_volume_run_goes_on_as_well(runs: Callable[..., Runs]) -> None:
    made = runs({"epochs": 2}, prepare={"size": [8, 8, 8]})
    whole = made.run("whole")
    with pytest.raises(Killed):
        made.run("killed", kill_after=1)
    same(whole, made.run("killed"))


def test_killed_between_the_best_weights_and_the_checkpoint(
    runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs()
    whole = made.run("whole")
    original = loop.save_epoch

    def dying(folder: Path, state: Any, facts: Any, **options: Any) -> None:
        if len(state.history) == 2:
            raise Killed
        original(folder, state, facts, **options)

    monkeypatch.setattr(loop, "save_epoch", dying)
    with pytest.raises(Killed):
        made.run("killed")
    monkeypatch.undo()
    same(whole, made.run("killed"))


def test_killed_in_the_middle_of_an_epoch(runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs()
    whole = made.run("whole")
    original, calls = Stepper.step, []

    def dying(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:  # two steps an epoch
            raise Killed
        return original(*args, **options)

    monkeypatch.setattr(Stepper, "step", dying)
    with pytest.raises(Killed):
        made.run("killed")
    monkeypatch.undo()
    same(whole, made.run("killed"))


def test_a_finished_run_is_not_trained_again(runs: Callable[..., Runs], monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs({"epochs": 2})
    whole = made.run("whole")
    monkeypatch.setattr(Epochs, "train", lambda *args: pytest.fail("trained again"))
    same(whole, made.run("whole"))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    changed = {
        "cut off": content[:middle],
        "empty": b"",
        "rubbish": b"\xff" * 1000,
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    }
    path.write_bytes(changed[how])


@pytest.mark.parametrize("how", ["cut off", "empty", "rubbish", "one bit"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(runs: Callable[..., Runs], how: str) -> None:
    made, told = runs({"epochs": 3}), []
    whole = made.run("whole")

    class Reporter(SilentReporter):
        def message(self, text: str) -> None:
            told.append(text)

    with pytest.raises(Killed):
        made.run("killed", kill_after=2)
    damage(made.folder / "killed" / "epoch-0002.safetensors", how)
    same(whole, made.run("killed", reporter=Reporter()))
    assert "epoch-0002.safetensors is damaged" in told[0] and "Going on from the one before" in told[0]


def test_only_damaged_checkpoints_are_refused(runs: Callable[..., Runs]) -> None:
    made = runs({"epochs": 2})
    made.run("whole")
    for path in (made.folder / "whole").glob("epoch-*"):
        damage(path, "cut off")
    with pytest.raises(TrainingError, match=r"None of the 2 checkpoints .* remove that folder"):
        made.run("whole")


@pytest.mark.parametrize("facts", [{"study": "other", "chain": "b"}, {"study": "a", "chain": "b", "data": "c"}])
def test_a_checkpoint_of_another_study_is_refused(runs: Callable[..., Runs], facts: dict[str, str]) -> None:
    made = runs({"epochs": 1})
    made.run("whole")
    with pytest.raises(TrainingError, match="belongs to another study or another chain"):
        made.run("whole", facts=facts)


def test_a_checkpoint_of_another_network_is_refused(
    runs: Callable[..., Runs], tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    made = runs({"epochs": 1})
    made.run("whole")
    wider = Runs(made.folder, tiny_study(model={"width": 0.25}), tiny_set)
    with pytest.raises(TrainingError, match="does not fit its network"):
        wider.run("whole")


def test_the_two_newest_checkpoints_are_kept(runs: Callable[..., Runs]) -> None:
    made = runs()
    made.run("whole")
    assert sorted(path.name for path in (made.folder / "whole").iterdir()) == [
        "best.safetensors",
        "epoch-0003.safetensors",
        "epoch-0004.safetensors",
    ]


def test_a_full_disk_stops_the_run_and_leaves_whole_files(
    runs: Callable[..., Runs], tiny_disk: Callable[[int], Path]
) -> None:
    made = runs({"epochs": 3})
    made.run("whole")
    best, *checkpoints = sorted(path.stat().st_size for path in (made.folder / "whole").iterdir())
    disk = tiny_disk((best + 2 * checkpoints[0]) // 1024 + 100)  # room for two checkpoints, not for a third
    with pytest.raises(StorageError, match="disk is full"):
        train(TrainingJob(made.study, *made.sets, disk / "run", FACTS), TrainingCallbacks(auc))
    files = sorted((disk / "run").iterdir())
    assert [path.name for path in files] == ["best.safetensors", "epoch-0001.safetensors", "epoch-0002.safetensors"]
    assert all(read_tensors(path) for path in files)


@pytest.mark.parametrize(
    ("training", "kept", "epochs"),
    [
        ({"epochs": 3}, 2, 3),  # the last of an annealed schedule
        ({"epochs": 3, "keep": "best"}, 1, 3),
        ({"epochs": 4, "patience": 1, "keep": "last"}, 2, 3),  # stopped early, and yet the last
        ({"epochs": 3, "schedule": {"name": "constant"}}, 1, 3),
    ],
)
def test_the_kept_weights_are_those_that_validation_saw(
    runs: Callable[..., Runs],
    stacked: Callable[[PreparedSplit], np.ndarray],
    training: dict[str, Any],
    kept: int,
    epochs: int,
) -> None:
    made = runs({"ema_decay": 0.5} | training)
    seen: list[np.ndarray] = []

    def score(logits: np.ndarray, targets: np.ndarray) -> float:
        seen.append(logits)
        return [0.6, 0.9, 0.2][len(seen) - 1]

    trained = made.run("whole", score=score)
    assert (trained.best, len(trained.history)) == (kept, epochs)
    assert read_tensors(trained.weights)[1]["epoch"] == kept
    model = load_best(made.study, trained.weights)
    with torch.inference_mode():
        logits = model(torch.from_numpy(stacked(made.sets[1]))).numpy()
    np.testing.assert_allclose(logits, seen[kept], atol=1e-5)
    assert min(np.abs(logits - seen[other]).max() for other in range(epochs) if other != kept) > 1e-3
    wider = made.study.model_copy(update={"model": made.study.model.model_copy(update={"width": 0.25})})
    with pytest.raises(TrainingError, match=r"tensors differ.*Train it anew"):
        load_best(wider, trained.weights)


@pytest.mark.parametrize(
    ("name", "kept", "words"), [("constant", 1, "as an earlier version chose it"), ("one_cycle", 5, "the last one")]
)
def test_a_run_goes_on_whose_epoch_was_chosen_by_its_own_metric_alone(
    runs: Callable[..., Runs], name: str, kept: int, words: str
) -> None:
    """Version 0.1.0 kept epoch 2, whose metric was the highest; no file has the weights that would be chosen today."""
    made, scores = runs({"epochs": 6, "schedule": {"name": name}}), [0.5, 0.9, 0.6, 0.8, 0.8, 0.1]
    chosen = made.run("chosen", kill_after=None, score=lambda *_: scores[0])

    def score(*_: Any) -> float:
        return scores.pop(0)

    with pytest.raises(Killed):
        made.run("old", kill_after=5, score=score)
    tensors, notes = read_tensors(chosen.weights)
    write_tensors(made.folder / "old" / "best.safetensors", tensors, {**notes, "epoch": 1})
    trained = made.run("old", score=score)
    assert trained.best == kept == read_tensors(trained.weights)[1]["epoch"] and words in trained.reason


def test_the_second_optimizer_takes_over_when_the_plateau_says_so_and_again_after_a_kill(
    runs: Callable[..., Runs],
) -> None:
    """Said beforehand: epoch 2 brings nothing, so epoch 3 is the other optimizer's."""
    switch = {"patience": 1, "to": {"name": "sgd", "lr": 0.05}}
    made = runs({"optimizer": {"name": "adam", "lr": 0.01}, "switch": switch, "schedule": {"name": "constant"}})

    def score(scores: list[float]) -> Callable[[np.ndarray, np.ndarray], float]:
        return lambda logits, targets: scores.pop(0)

    whole = made.run("whole", score=score([0.6, 0.5, 0.7, 0.8]))
    with pytest.raises(Killed):
        made.run("killed", kill_after=2, score=score([0.6, 0.5]))
    for trained in (whole, made.run("killed", score=score([0.7, 0.8]))):
        assert [epoch.learning_rate for epoch in trained.history] == pytest.approx([0.01, 0.01, 0.05, 0.05])
        assert trained.best == 3


def test_each_epoch_learns_and_the_run_stops_where_it_must(runs: Callable[..., Runs]) -> None:
    """Other weights after each epoch, and the early stop where it must be."""
    made = runs(
        {"optimizer": {"name": "sgd", "lr": 0.05}, "patience": 2, "epochs": 6, "schedule": {"name": "constant"}}
    )
    scores = [0.5, 0.7, 0.6, 0.7, 0.9, 0.95]
    whole = made.run("whole", score=lambda logits, targets: scores.pop(0))
    assert [epoch.val_metric for epoch in whole.history] == [0.5, 0.7, 0.6, 0.7]  # a tie is no progress
    assert whole.best == 3
    weights = [read_tensors(whole.weights.parent / f"epoch-000{n}.safetensors")[0] for n in (3, 4)]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
