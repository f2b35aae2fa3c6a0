from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medopt.config import Study
from medopt.core.records import Case
from medopt.data import residence
from medopt.data.loaders import KeyedDataset, on_device, predict_loader, train_loader
from medopt.data.samplers import StepSampler, balanced_chances
from medopt.training.job import PreparedSplit


@pytest.fixture
def made(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., Any]:
    def make(count: int = 11, train: bool = True, epoch: int = 0, **sections: Any) -> list[Any]:
        study = tiny_study(**sections)
        cases = tiny_set(tmp_path, study, count)
        if not train:
            return list(predict_loader(study, cases.cases, cases.files))
        loader, sampler = train_loader(study, cases.cases, cases.files)
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
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study()
    cases = tiny_set(tmp_path, study, 6)
    dataset = KeyedDataset(study, cases.cases, cases.files)
    forward = [dataset[(5, index, 0)][0] for index in range(6)]
    backward = [dataset[(5, index, 0)][0] for index in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(dataset[(6, 0, 0)][0], forward[0])


def test_images_of_one_epoch_are_augmented_apart(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study(augment={"probability": 1})
    cases = tiny_set(tmp_path, study, 1)
    dataset = KeyedDataset(study, [*cases.cases] * 5, [*cases.files] * 5)
    images = {dataset[(0, index, 0)][0].numpy().tobytes() for index in range(len(dataset))}
    assert len(images) == 5


def test_prediction_reads_images_in_order_and_untouched(
    tmp_path: Path,
    tiny_study: Callable[..., Study],
    tiny_set: Callable[..., PreparedSplit],
    stacked: Callable[[PreparedSplit], np.ndarray],
) -> None:
    study = tiny_study(augment={"probability": 1, "shift": "mr", "shift_probability": 1, "erase": 0.5})
    cases = tiny_set(tmp_path, study, 11)
    loader = predict_loader(study, cases.cases, cases.files)
    for _ in range(2):
        batches = list(loader)
        assert indices(batches) == list(range(11))
        assert torch.equal(torch.cat([image for image, _, _ in batches]), torch.from_numpy(stacked(cases)))


def test_training_drops_an_incomplete_batch_unless_it_is_the_only_one(made: Callable[..., Any]) -> None:
    assert [len(image) for image, _, _ in made(11)] == [4, 4]
    assert [len(image) for image, _, _ in made(3)] == [3]
    assert [len(image) for image, _, _ in made(11, train=False)] == [3, 4, 4]


def test_every_image_has_its_turn(tiny_study: Callable[..., Study]) -> None:
    cases = [Case(str(k), str(k), "", (k % 2,), "train") for k in range(48)]
    sampler = StepSampler(tiny_study(), cases, 4, 4, 0, 1)
    sampler.epoch = 1
    keys = [key for batch in sampler for key in batch]
    assert len(sampler) == 12 and sorted(index for _, index, _ in keys) == list(range(48))
    assert {epoch for epoch, _, _ in keys} == {1}


@pytest.mark.parametrize(
    ("task", "labels", "shape", "kind"),
    [
        ("binary", 2, (3, 1), torch.float32),
        ("multiclass", 3, (3, 3), torch.float32),
        ("multilabel", 3, (3, 3), torch.float32),
    ],
)
def test_targets_fit_the_loss_of_the_task(
    made: Callable[..., Any], task: str, labels: int, shape: tuple[int, ...], kind: torch.dtype
) -> None:
    batch = made(train=False, epoch=-1, data={"task": task, "labels": [str(k) for k in range(labels)]})[0]
    assert batch[1].shape == shape and batch[1].dtype == kind
    expected = [index % labels for index in range(3)]
    assert (batch[1].flatten().tolist() if task == "binary" else batch[1].argmax(1).tolist()) == expected


def rare(count: int, positive: int) -> list[Case]:
    return [Case(str(k), str(k), "", (int(k < positive),), "train") for k in range(count)]


def keys(study: Study, cases: list[Case], epoch: int, rank: int = 0, world: int = 1, micro: int = 16) -> list[Any]:
    sampler = StepSampler(study, cases, study.training.resolved_sizes[0], micro, rank, world)
    sampler.epoch = epoch
    return list(sampler)


def test_balanced_sampling_draws_a_rare_class_as_often_as_the_other(tiny_study: Callable[..., Study]) -> None:
    cases = rare(400, 20)
    study = tiny_study(training={"sampling": "balanced", "batch_size": 16})
    drawn = [key for epoch in range(5) for batch in keys(study, cases, epoch) for key in batch]
    assert np.mean([cases[index].label[0] for _, index, _ in drawn]) == pytest.approx(0.5, abs=0.04)
    assert len(set(drawn)) == len(drawn)  # one that comes twice in an epoch is augmented in two ways
    assert max(before for _, _, before in drawn) > 3
    assert keys(study, cases, 3) == keys(study, cases, 3) != keys(study, cases, 4)


def test_balanced_chances_of_several_labels_follow_the_rarest(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(data={"task": "multilabel", "labels": ["a", "b"]})
    labels = [(1, 0)] * 8 + [(1, 1)] * 2 + [(0, 0)] * 5
    chances = balanced_chances(study, [Case(str(k), "p", "", label, "train") for k, label in enumerate(labels)])
    assert chances.sum() == pytest.approx(1)
    assert chances[8] / chances[0] == pytest.approx(5) and chances[-1] / chances[0] == pytest.approx(2)


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 16), (2, 3), (3, 2)])
def test_processes_and_micro_batches_share_each_step_without_loss_or_double(
    tiny_study: Callable[..., Study], world: int, micro: int
) -> None:
    cases, study = rare(50, 25), tiny_study(training={"batch_size": 12})
    whole = keys(study, cases, 2)
    parts = [keys(study, cases, 2, rank, world, micro) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1  # as many forward passes on each
    per_step = len(parts[0]) // len(whole)
    for step, batch in enumerate(whole):
        shared = [key for part in parts for one in part[step * per_step : (step + 1) * per_step] for key in one]
        assert sorted(shared) == sorted(batch) and len(batch) == 12
    assert all(2 <= len(one) <= micro for part in parts for one in part)


def test_mixup_mixes_neighbours_of_a_step_image_and_target_in_the_same_share(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    still = {"probability": 0, "flip": []}
    study = tiny_study(augment=still, training={"mixup": 1.0}, data={"task": "multiclass", "labels": ["a", "b", "c"]})
    cases = tiny_set(tmp_path, study, 3)
    flat = [tmp_path / f"flat{k}.npy" for k in range(3)]
    for k, path in enumerate(flat):
        np.save(path, np.full((1, 16, 16), 0.5 * k, np.float32))
    dataset, shares = KeyedDataset(study, cases.cases, flat), []
    for epoch in range(30):
        images, targets, indices = dataset.__getitems__([(epoch, 1, 0), (epoch, 2, 0), (epoch, 0, 0)])
        assert indices.tolist() == [1, 2, 0]
        torch.testing.assert_close(targets.sum(1), torch.ones(3))
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.tensor([0.0, 0.5, 1.0]))
        assert (
            not targets[0, 0] and not targets[1, 1] and not targets[2, 2]
        )  # a ring of three: 1 with 2, 2 with 0, 0 with 1
        shares.append(float(targets[0, 1]))
    assert 0.3 < np.mean(shares) < 0.7 and len(set(shares)) > 10
    untouched = dataset[(-1, 1, 0)]
    assert untouched[1].tolist() == [0, 1, 0] and float(untouched[0].mean()) == 0.5


def test_mixup_reads_and_changes_each_image_once_and_keeps_the_balance_of_the_classes(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit], monkeypatch: Any
) -> None:
    study = tiny_study(training={"sampling": "balanced", "mixup": 0.4, "batch_size": 16})
    one = tiny_set(tmp_path, study, 1).files[0]
    loader, sampler = train_loader(study, rare(400, 20), [one] * 400)
    read: list[Path] = []
    original = residence.load_stored
    monkeypatch.setattr(residence, "load_stored", lambda path: (read.append(path), original(path))[1])
    targets = []
    for sampler.epoch in range(4):
        targets += [target for _, target, _ in loader]
    assert len(read) == sum(map(len, targets)) == 1600
    assert float(torch.cat(targets).mean()) == pytest.approx(0.5, abs=0.04)
    assert ((torch.cat(targets) > 0.02) & (torch.cat(targets) < 0.98)).float().mean() > 0.2


@pytest.mark.parametrize("sections", [{}, {"training": {"mixup": 0.4}}, {"prepare": {"size": [8, 10, 12]}}])
def test_images_do_not_depend_on_their_batch_nor_on_where_they_are_changed(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit], sections: dict[str, Any]
) -> None:
    """Over one process and two, over large micro-batches and small ones, where read and after, all images are equal."""
    strong = {
        "probability": 0.8,
        "elastic": 0.03,
        "shift": "mr",
        "erase": 0.3,
        "low_resolution": 2,
        "flip": ["up_down"],
    }
    study = tiny_study(augment=strong, **sections)
    cases = tiny_set(tmp_path, study, 14)

    def images(batch_size: int, micro: int | None, world: int, later: bool = False) -> dict[int, torch.Tensor]:
        settings = {"batch_size": batch_size, "micro_batch": micro, "workers": int(later)}
        changed = study.training.model_copy(update=settings)
        own, found = study.model_copy(update={"training": changed}), {}
        for rank in range(world):
            loader, sampler = train_loader(own, cases.cases, cases.files, rank, world)
            sampler.epoch = 1
            if later:
                loader = on_device(own, cases.cases, cases.files, sampler, torch.device("cpu"))
            for batch in loader:
                found |= {int(index): image for image, index in zip(batch[0], batch[2], strict=True)}
        return found

    whole = images(14, None, 1)
    assert len(whole) == 14
    for other in (images(14, 2, 1), images(14, 4, 2), images(14, None, 1, later=True)):
        assert other.keys() == whole.keys()
        for index, image in whole.items():
            torch.testing.assert_close(other[index], image, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "world", "micro"), [(5, 2, 4), (5, 1, 2), (7, 3, 2), (6, 2, 2), (2, 1, 2), (9, 1, 4)])
def test_no_micro_batch_is_a_single_image(tiny_study: Callable[..., Study], size: int, world: int, micro: int) -> None:
    study = tiny_study(training={"batch_size": size})
    parts = [keys(study, rare(size, 1), 0, rank, world, micro) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(key for part in parts for one in part for key in one) == [(0, index, 0) for index in range(size)]
    assert all(len(one) >= 2 for part in parts for one in part)


def test_prediction_is_shared_by_processes_each_case_once(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study()
    cases = tiny_set(tmp_path, study, 7)
    parts = [list(predict_loader(study, cases.cases, cases.files, rank, 2)) for rank in range(2)]
    assert sorted(indices(parts[0]) + indices(parts[1])) == list(range(7))
    assert len(parts[0]) == len(parts[1])


def test_a_label_that_is_not_known_is_nan_also_in_a_mix(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study(data={"task": "multilabel", "labels": ["a", "b"]}, training={"mixup": 0.4})
    made = tiny_set(tmp_path, study, 8)
    cases = [replace(case, label=(None, case.label[1])) for case in made.cases]
    dataset = KeyedDataset(study, cases, made.files)
    for epoch in (-1, 0, 1):
        targets = dataset.__getitems__([(epoch, index, 0) for index in range(8)])[1]
        assert targets[:, 0].isnan().all() and (targets[:, 1] >= 0).all() and (targets[:, 1] <= 1).all()


def test_balanced_sampling_leaves_out_cases_without_a_known_label(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(data={"task": "multilabel", "labels": ["a", "b"]}, training={"sampling": "balanced"})
    rows: list[tuple[int | None, ...]] = [(1, None), (0, 1), (0, 0), (0, 0), (None, 0), (None, None)]
    cases = [Case(str(k), str(k), "", row, "train") for k, row in enumerate(rows)]
    assert balanced_chances(study, cases) == pytest.approx(np.array([3, 3, 1, 1, 1, 0]) / 9)
