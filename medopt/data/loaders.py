"""Batches for training (shuffled or balanced, augmented, mixed) and for prediction (in order, untouched).

Which images make a step, what is drawn for each, and which of several processes takes which, all follow from the seed
and the epoch: an interrupted run, other workers and more processes see the same images, changed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.records import Case, is_exclusive, label_table
from medopt.data.cache import as_tensor
from medopt.transforms.augment import AugmentParams, apply, draw
from medopt.transforms.restore import restore_masks

T = TypeVar("T")
CPU = torch.device("cpu")
Key = tuple[int, int, int]  # (epoch, index, how often that image came before in this epoch); epoch -1: not augmented


Batch = tuple[Tensor, Tensor, Tensor]  # images (N, C, *size), targets (N, K), indices (N,)


@dataclass(frozen=True, slots=True)
class Changes:
    """All that was drawn for the images of a micro-batch; `shares` are each image's own share where they are mixed."""

    drawn: tuple[AugmentParams, ...]
    shares: tuple[float, ...] = ()


class KeyedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Prepared images by key; an item is (image (C, *size), target (K,), index), and `__getitems__` makes batches.

    K is 1 for a binary study, else one number a label: zeros and a one for a class; NaN where a label is not known,
    also where it is not of one of two images that are mixed. Of a number it is the output that it would be. Where
    `changes` is False, images are read untouched and their changes are drawn only, for `change` to do them on another
    device.
    """

    def __init__(self, study: Study, cases: Sequence[Case], files: Sequence[Path], changes: bool = True) -> None:
        self.study, self.cases, self.files, self.changes = study, cases, files, changes

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        images, targets, _ = self._changed([key])
        return images[0], targets[0], key[1]

    def __getitems__(self, keys: Sequence[Key]) -> Batch | tuple[Batch, Changes]:
        """A micro-batch, changed; where `changes` is False, what was read and what was drawn."""
        return self._changed(keys) if self.changes or keys[0][0] < 0 else (self._read(keys), self._draw(keys))

    def _changed(self, keys: Sequence[Key]) -> Batch:
        batch = self._read(keys)
        return batch if keys[0][0] < 0 else change(self.study, batch, self._draw(keys))

    def _read(self, keys: Sequence[Key]) -> Batch:
        indices = [index for _, index, _ in keys]
        images = torch.stack([as_tensor(self.files[index]) for index in indices])
        return images, torch.stack([self._target(index) for index in indices]), torch.tensor(indices)

    def _draw(self, keys: Sequence[Key]) -> Changes:
        drawn, shares, mixup = [], [], self.study.training.mixup
        for epoch, index, before in keys:
            random = np.random.default_rng((self.study.seed, epoch, index) + ((before,) if before else ()))
            if mixup:
                shares.append(float(random.beta(mixup, mixup)))
            drawn.append(draw(self.study.augment, self.study.spatial_dims, random))
        return Changes(tuple(drawn), tuple(shares))

    def _target(self, index: int) -> Tensor:
        case = self.cases[index]
        if self.study.data.task == "regression":
            return torch.from_numpy(self.study.data.number.as_scale().outputs([case.number])).float()
        if is_exclusive(self.study.data.task):
            return torch.eye(self.study.data.outputs)[case.class_index]
        return torch.from_numpy(label_table([case])[0]).float()


def change(study: Study, batch: Batch, changes: Changes) -> Batch:
    """Augment a micro-batch where it lies and, with `training.mixup`, mix it (Zhang et al. 2018).

    Each augmented image is mixed with its neighbour of the same step, and so is its target, in a share drawn from
    Beta(mixup, mixup): a balanced sampler's shares of the classes stay as they are.
    """
    images, targets, indices = batch
    images = restore_masks(study.prepare, images, apply(images, changes.drawn))
    if changes.shares:
        other = torch.tensor(_neighbours(len(images)), device=images.device)
        share = torch.tensor(changes.shares, dtype=images.dtype, device=images.device)
        images = torch.lerp(images[other], images, share.reshape(-1, *[1] * (images.ndim - 1)))
        targets = share[:, None] * targets + (1 - share[:, None]) * targets[other]
    return images, targets, indices


def _neighbours(count: int) -> list[int]:
    """With whom each of a micro-batch is mixed: in pairs, the last three in a ring where their number is odd."""
    places = [place ^ 1 for place in range(count)]
    if count % 2:
        places[-3:] = [count - 2, count - 1, count - 3][-count:] if count > 1 else [0]
    return places


class StepSampler(Sampler[list[Key]]):
    """The micro-batches of one epoch for one of `world` processes; `epoch` says which comes next.

    Every `size` images make one step of the optimizer. They are dealt out to the processes in pairs, which mixup mixes,
    and each process's share is cut into `parts` micro-batches of at most `micro` images, as many for each. None is a
    single image: where `micro` is 2 or 3 and a step cannot be shared evenly, one has up to two images more. Training
    leaves out the last incomplete step (batch statistics of one or two images are noise), unless it is the only one.
    """

    def __init__(self, study: Study, cases: Sequence[Case], size: int, micro: int, rank: int, world: int) -> None:
        self.study, self.cases, self.rank, self.world = study, cases, rank, world
        self.size, self.epoch = min(size, len(cases)), -1
        pairs, at_once = max(1, self.size // 2), max(1, (micro - self.size % 2) // 2)
        self.parts = max(1, min(-(-pairs // world // at_once), pairs // world))
        self.steps = len(cases) // self.size

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._keys()
        for step in range(self.steps):
            pairs = _pairs(keys[step * self.size : (step + 1) * self.size])[self.rank :: self.world]
            for part in _cut(pairs, self.parts):
                yield [key for pair in part for key in pair]

    def __len__(self) -> int:
        return self.steps * self.parts

    def _keys(self) -> list[Key]:
        random, count = np.random.default_rng((self.study.seed, self.epoch)), len(self.cases)
        if self.study.training.sampling == "shuffled":
            return [(self.epoch, int(index), 0) for index in random.permutation(count)]
        seen: dict[int, int] = {}
        keys = []
        for index in random.choice(count, count, p=balanced_chances(self.study, self.cases)).tolist():
            keys.append((self.epoch, index, seen.get(index, 0)))
            seen[index] = seen.get(index, 0) + 1
        return keys


def balanced_chances(study: Study, cases: Sequence[Case]) -> NDArray[np.float64]:
    """How often each of N cases is to be drawn (N,), summing to 1: each class as often as any other.

    With several labels a case counts as the rarest of those that it has, or as one that has none. A case without any
    known label is never drawn.
    """
    labels = label_table(cases)  # (N, 1) classes, or (N, K) zeros and ones
    if study.data.task != "multilabel":
        classes = labels[:, 0].astype(np.int64)
        weights = 1 / np.bincount(classes)[classes]
    else:
        none = ~(labels == 1).any(axis=1) & (labels == 0).any(axis=1)
        has = np.column_stack([labels == 1, none])
        weights = np.where(has, 1 / np.maximum(has.sum(axis=0), 1), 0).max(axis=1)
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


def _pairs(keys: list[Key]) -> list[list[Key]]:
    """In twos; the last are three where their number is odd."""
    ends = [*range(2, len(keys) - 1, 2), len(keys)]
    return [keys[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _cut(items: Sequence[T], parts: int) -> Iterator[Sequence[T]]:
    """As many parts, none longer than another by more than one."""
    yield from (items[len(items) * part // parts : len(items) * (part + 1) // parts] for part in range(parts))


class OrderedSampler(Sampler[list[Key]]):
    """Every image once, in order, untouched: each process takes every `world`-th, so none comes twice.

    All processes have as many batches, for models whose forward pass needs them all; an empty one is left out where
    there are fewer images than processes.
    """

    def __init__(self, count: int, size: int, rank: int, world: int) -> None:
        mine = [(-1, index, 0) for index in range(rank, count, world)]
        self.batches = [list(part) for part in _cut(mine, -(-count // (world * size))) if part]

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Finished(Generic[T]):
    """A loader whose batches are finished here, one by one: what its processes did not do."""

    def __init__(self, loader: DataLoader[Any], finish: Callable[[Any], T]) -> None:
        self.loader, self.finish = loader, finish

    def __iter__(self) -> Iterator[T]:
        return map(self.finish, self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def train_loader(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path],
    rank: int = 0,
    world: int = 1,
    device: torch.device = CPU,
) -> tuple[DataLoader[Batch] | Finished[Batch], StepSampler]:
    """A loader of micro-batches and the sampler whose `epoch` says which epoch comes next.

    Images are changed on a GPU where `device` is one, else where they are read. Raises ConfigError where a step has
    fewer images than two a process.
    """
    size, micro = study.training.resolved_sizes
    if min(size, len(cases)) < 2 * world and world > 1:
        raise ConfigError(
            f"A step of {min(size, len(cases))} images cannot be shared by {world} processes: each needs two. Ask for "
            "fewer --devices, or a larger training.batch_size."
        )
    sampler = StepSampler(study, cases, size, micro, rank, world)
    if device.type != "cuda":
        return batch_loader(study, KeyedDataset(study, cases, files), sampler), sampler
    return on_device(study, KeyedDataset(study, cases, files, changes=False), sampler, device), sampler


def on_device(study: Study, data: KeyedDataset, sampler: Sampler[list[Key]], device: torch.device) -> Finished[Batch]:
    """Micro-batches of a dataset that only reads and draws, changed on `device`."""

    def finish(read: tuple[Batch, Changes]) -> Batch:
        (images, targets, indices), changes = read
        moved = images.to(device, non_blocking=True), targets.to(device, non_blocking=True), indices
        return change(study, moved, changes)

    return Finished(batch_loader(study, data, sampler), finish)


def predict_loader(
    study: Study, cases: Sequence[Case], files: Sequence[Path], rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """A loader of one process's share of the images, in order and untouched."""
    sampler = OrderedSampler(len(cases), study.training.resolved_sizes[1], rank, world)
    return batch_loader(study, KeyedDataset(study, cases, files), sampler)


def batch_loader(study: Study, data: Dataset[Any], sampler: Sampler[Any]) -> DataLoader[Any]:
    """A loader of what the `__getitems__` of a dataset makes of each list of keys."""
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=study.training.workers,
        pin_memory=torch.cuda.is_available() and study.training.accelerator != "cpu",
        generator=torch.Generator().manual_seed(study.seed),
        collate_fn=_as_it_is,
    )


def _as_it_is(batch: T) -> T:
    return batch
