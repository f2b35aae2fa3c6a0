from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.core.records import PretrainingRecord
from medopt.training.job import PreparedSplit
from medopt.training.neighbour_probe import NeighbourProbe
from medopt.training.pretrain import Pretrained, Pretraining, pretrain


@pytest.fixture
def run(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., Pretrained]:
    def make(folder: str = "run", epochs: int = 3, lr: float = 0.01, **options: Any) -> Pretrained:
        schedule = {"name": "constant", "warmup": 0.0}
        study = tiny_study(training={"epochs": epochs, "schedule": schedule, "optimizer": {"lr": lr}})
        images = tiny_set(tmp_path / "data", study, 12)
        probe = NeighbourProbe.of(images.cases, images.files, ("no", "yes"), "binary", 0)
        job = {"facts": {"key": "a"}, "probe": probe, "probe_every": 2} | options
        return pretrain(Pretraining(study, images.files, tmp_path / folder, **job))

    return make


def equal(first: Pretrained, second: Pretrained) -> bool:
    return all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())


class Stop(Exception):
    pass


def stop_after(epochs: int) -> Callable[[Sequence[PretrainingRecord]], None]:
    def on_epoch(history: Sequence[PretrainingRecord]) -> None:
        if len(history) == epochs:
            raise Stop

    return on_epoch


def test_an_interrupted_pretraining_ends_with_the_same_weights(run: Callable[..., Pretrained]) -> None:
    whole = run("whole")
    with pytest.raises(Stop):
        run("cut", on_epoch=stop_after(2))
    went_on = run("cut")
    assert equal(whole, went_on)
    kept = [(one.train_loss, one.rank, one.deviation, one.neighbours) for one in whole.history]
    assert kept == [(one.train_loss, one.rank, one.deviation, one.neighbours) for one in went_on.history]
    assert "fc.weight" not in whole.weights
    # Asked in every second epoch and after the last.
    assert [one.neighbours is None for one in whole.history] == [True, False, False]
    assert whole.before is not None


def test_a_finished_one_is_not_repeated(run: Callable[..., Pretrained]) -> None:
    first, second = run(), run()
    assert equal(first, second)
    assert first.history == second.history  # the seconds, too


def test_a_damaged_checkpoint_falls_back_to_the_one_before(run: Callable[..., Pretrained], tmp_path: Path) -> None:
    whole = run()
    newest = tmp_path / "run" / "epoch-0003.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert equal(whole, run())
    for path in (tmp_path / "run").glob("epoch-*"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match="None of the 2 checkpoints"):
        run()


def test_checkpoints_of_other_images_are_refused(run: Callable[..., Pretrained]) -> None:
    run(epochs=1)
    with pytest.raises(TrainingError, match="belongs to other settings or images; start anew with --fresh"):
        run(epochs=1, facts={"key": "b"})


def test_a_collapse_stops_with_its_reason_and_is_not_gone_on_from(run: Callable[..., Pretrained]) -> None:
    """A loss that sends all embeddings the same way, so that soon they differ by nothing."""

    def same_way(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return -first.mean() - second.mean()

    for _ in range(2):
        with pytest.raises(TrainingError, match=r"The embeddings have collapsed in epoch \d+: they differ by 0\.0"):
            run(epochs=20, loss=same_way)


def test_a_loss_that_is_no_number_stops(run: Callable[..., Pretrained]) -> None:
    with pytest.raises(TrainingError, match=r"not a finite number in epoch 1, step 1.*training.optimizer.lr=0.001"):
        run(loss=lambda first, second: (first - second).sum() * float("nan"))


def test_the_probe_takes_no_neighbour_of_the_same_patient_and_judges_validation_by_training(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study()
    train, val = tiny_set(tmp_path, study, 12), tiny_set(tmp_path, study, 8, "val", seed=1)
    probe = NeighbourProbe.of([*train.cases, *val.cases], [*train.files, *val.files], ("no", "yes"), "binary", 0)
    assert probe is not None

    class Halves(torch.nn.Module):
        """Features that tell what the label is: the left half less the right."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = x[..., :8].mean((1, 2, 3)), x[..., 8:].mean((1, 2, 3))
            return torch.stack([left - right, torch.ones_like(left)], 1)

    told = probe.score(Halves(), torch.device("cpu"))
    assert told is not None and told > 0.7
    assert NeighbourProbe.of(train.cases[:1], train.files[:1], ("no", "yes"), "binary", 0) is None


def test_the_probe_counts_known_labels_alone(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    """Of several findings: a case of which none is known is no labelled one; a finding that all have says nothing."""
    part = tiny_set(tmp_path, tiny_study(), 12)

    def probe(labels: Sequence[tuple[int | None, ...]]) -> NeighbourProbe | None:
        cases = [replace(case, label=label) for case, label in zip(part.cases, labels, strict=True)]
        return NeighbourProbe.of(cases, part.files, ("mass", "fluid"), "multilabel", 0)

    class Pixels(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    assert probe([(None, None)] * 11 + [(1, 0)]) is None
    found = probe([(at % 2, 1) for at in range(12)])
    assert found is not None and found.score(Pixels(), torch.device("cpu")) is not None
    always = probe([(1, 1 if at % 2 else None) for at in range(12)])
    assert always is not None and always.score(Pixels(), torch.device("cpu")) is None


def test_nothing_is_left_of_the_variance_that_normalizations_begin_with(run: Callable[..., Pretrained]) -> None:
    """A start is read in evaluation; after these 18 batches a seventh of that 1 would be left."""
    weights = run().weights
    batches = int(weights["bn1.num_batches_tracked"])
    assert batches == 18
    assert float(weights["bn1.running_var"].min()) < 0.9**batches
