from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medopt.config import Study
from medopt.data.loaders import EpochSampler, PreparedDataset, make_loader
from medopt.training.loop import Prepared


@pytest.fixture
def made(tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., Prepared]) -> Callable[..., Any]:
    def make(count: int = 11, train: bool = True, epoch: int = 0, **sections: Any) -> list[Any]:
        study = tiny_study(**sections)
        cases = tiny_set(tmp_path, study, count)
        loader, sampler = make_loader(study, cases.cases, cases.files, train=train)
        sampler.epoch = epoch
        return list(loader)

    return make


def indices(batches: list[Any]) -> list[int]:
    return torch.cat([index for _, _, index in batches]).tolist()


def test_the_order_follows_from_seed_and_epoch(made: Callable[..., Any]) -> None:
    first = indices(made(epoch=3))
    assert indices(made(epoch=3)) == first
    assert indices(made(epoch=4)) != first and indices(made(epoch=3, seed=1)) != first
    torch.manual_seed(77)
    assert indices(made(epoch=3)) == first


def test_images_follow_from_seed_and_epoch_and_not_from_the_workers(made: Callable[..., Any]) -> None:
    alone = made(epoch=2)
    helped = made(epoch=2, training={"workers": 2})
    assert len(alone) == len(helped) == 2
    for one, two in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(alone[0][0], made(epoch=3)[0][0])


def test_an_image_is_augmented_the_same_way_wherever_it_stands(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., Prepared]
) -> None:
    study = tiny_study()
    cases = tiny_set(tmp_path, study, 6)
    dataset = PreparedDataset(study, cases.cases, cases.files)
    forward = [dataset[(5, index)][0] for index in range(6)]
    backward = [dataset[(5, index)][0] for index in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(dataset[(6, 0)][0], forward[0])


def test_images_of_one_epoch_are_augmented_apart(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., Prepared]
) -> None:
    study = tiny_study(augment={"probability": 1})
    cases = tiny_set(tmp_path, study, 1)
    dataset = PreparedDataset(study, [*cases.cases] * 5, [*cases.files] * 5)
    images = {dataset[(0, index)][0].numpy().tobytes() for index in range(len(dataset))}
    assert len(images) == 5


def test_prediction_reads_images_in_order_and_untouched(
    tmp_path: Path,
    tiny_study: Callable[..., Study],
    tiny_set: Callable[..., Prepared],
    stacked: Callable[[Prepared], np.ndarray],
) -> None:
    study = tiny_study(augment={"probability": 1, "shift": "mr", "shift_probability": 1, "erase": 0.5})
    cases = tiny_set(tmp_path, study, 11)
    loader, _ = make_loader(study, cases.cases, cases.files, train=False)
    for _ in range(2):
        batches = list(loader)
        assert indices(batches) == list(range(11))
        assert torch.equal(torch.cat([image for image, _, _ in batches]), torch.from_numpy(stacked(cases)))


def test_training_drops_an_incomplete_batch_unless_it_is_the_only_one(made: Callable[..., Any]) -> None:
    assert [len(image) for image, _, _ in made(11)] == [4, 4]
    assert [len(image) for image, _, _ in made(3)] == [3]
    assert [len(image) for image, _, _ in made(11, train=False)] == [4, 4, 3]


def test_every_image_has_its_turn() -> None:
    sampler = EpochSampler(50, seed=0)
    sampler.epoch = 1
    assert len(sampler) == 50 and sorted(index for _, index in sampler) == list(range(50))
    assert {epoch for epoch, _ in sampler} == {1}


@pytest.mark.parametrize(
    ("task", "labels", "shape", "kind"),
    [
        ("binary", 2, (4, 1), torch.float32),
        ("multiclass", 3, (4,), torch.int64),
        ("multilabel", 3, (4, 3), torch.float32),
    ],
)
def test_targets_fit_the_loss_of_the_task(
    made: Callable[..., Any], task: str, labels: int, shape: tuple[int, ...], kind: torch.dtype
) -> None:
    batch = made(train=False, epoch=-1, data={"task": task, "labels": [str(k) for k in range(labels)]})[0]
    assert batch[1].shape == shape and batch[1].dtype == kind
    expected = [index % labels for index in range(4)]
    assert (batch[1].argmax(1).tolist() if task == "multilabel" else batch[1].flatten().tolist()) == expected
