"""Batches for training (shuffled or balanced, augmented, mixed) and for prediction (in order, untouched).

Which images make a step, what is drawn for each, and which of several processes takes which, all follow from the seed
and the epoch: an interrupted run, other workers and more processes see the same images, changed in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.records import Case, label_table
from medopt.data.cache import as_tensor
from medopt.transforms.augment import apply, draw
from medopt.transforms.restore import restore_masks

Key = tuple[int, int, int]  # (epoch, index, how often that image came before in this epoch); epoch -1: not augmented


class KeyedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Prepared images by key; an item is (image (C, *size), target (K,), index).

    K is 1 for a binary study, else one number a label: zeros and a one for a class; NaN where a label is not known,
    also where it is not of one of two images that are mixed. With `training.mixup` an augmented
    image and its target are mixed with another's (Zhang et al. 2018), in proportions from Beta(mixup, mixup).
    """

    def __init__(self, study: Study, cases: Sequence[Case], files: Sequence[Path]) -> None:
        self.study, self.cases, self.files = study, cases, files

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        epoch, index, before = key
        if epoch < 0:
            return as_tensor(self.files[index]), self._target(index), index
        random = np.random.default_rng((self.study.seed, epoch, index) + ((before,) if before else ()))
        image, target = self._augmented(index, random), self._target(index)
        if mixup := self.study.training.mixup:
            share, other = float(random.beta(mixup, mixup)), int(random.integers(len(self)))
            image = share * image + (1 - share) * self._augmented(other, random)
            target = share * target + (1 - share) * self._target(other)
        return image, target, index

    def _augmented(self, index: int, random: np.random.Generator) -> Tensor:
        image = as_tensor(self.files[index])
        changed = apply(image, draw(self.study.augment, self.study.spatial_dims, random))
        return restore_masks(self.study.prepare, image, changed)

    def _target(self, index: int) -> Tensor:
        case = self.cases[index]
        if self.study.data.task == "multiclass":
            return torch.eye(self.study.data.outputs)[case.class_index]
        return torch.from_numpy(label_table([case])[0]).float()


class StepSampler(Sampler[list[Key]]):
    """The micro-batches of one epoch for one of `world` processes; `epoch` says which comes next.

    Every `size` images make one step of the optimizer. They are dealt out to the processes, and each one's share is
    cut into `parts` micro-batches of at most `micro` images, as many for each process. Training leaves out the last
    incomplete step (batch statistics of one or two images are noise), unless it is the only one.
    """

    def __init__(self, study: Study, cases: Sequence[Case], size: int, micro: int, rank: int, world: int) -> None:
        self.study, self.cases, self.rank, self.world = study, cases, rank, world
        self.size, self.epoch = min(size, len(cases)), -1
        self.parts = -(-self.size // (world * micro))
        self.steps = len(cases) // self.size

    def __iter__(self) -> Iterator[list[Key]]:
        keys = self._keys()
        for step in range(self.steps):
            share = keys[step * self.size : (step + 1) * self.size][self.rank :: self.world]
            yield from _cut(share, self.parts)

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


def _cut(keys: list[Key], parts: int) -> Iterator[list[Key]]:
    """As many parts, none longer than another by more than one."""
    yield from (keys[len(keys) * part // parts : len(keys) * (part + 1) // parts] for part in range(parts))


class OrderedSampler(Sampler[list[Key]]):
    """Every image once, in order, untouched: each process takes every `world`-th, so none comes twice.

    All processes have as many batches, for models whose forward pass needs them all; an empty one is left out where
    there are fewer images than processes.
    """

    def __init__(self, count: int, size: int, rank: int, world: int) -> None:
        mine = [(-1, index, 0) for index in range(rank, count, world)]
        self.batches = [part for part in _cut(mine, -(-count // (world * size))) if part]

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def train_loader(
    study: Study, cases: Sequence[Case], files: Sequence[Path], rank: int = 0, world: int = 1
) -> tuple[DataLoader[tuple[Tensor, Tensor, int]], StepSampler]:
    """A loader of micro-batches and the sampler whose `epoch` says which epoch comes next.

    Raises ConfigError where a process would get a single image at once: batch normalization needs two.
    """
    size, micro = study.training.resolved_sizes
    if min(size, len(cases)) < 2 * world and world > 1:
        raise ConfigError(
            f"A step of {min(size, len(cases))} images cannot be shared by {world} processes: each needs two. Ask for "
            "fewer --devices, or a larger training.batch_size."
        )
    sampler = StepSampler(study, cases, size, micro, rank, world)
    if sampler.size // world // sampler.parts < 2 and sampler.size > 1:
        raise ConfigError(
            f"A step of {sampler.size} images, at most {micro} at once on {_processes(world)}, leaves a single image "
            "to batch normalization, which needs two. Let training.batch_size be a multiple of "
            f"{micro * world} (training.micro_batch times the processes), or training.micro_batch at least "
            f"{-(-sampler.size // world)}."
        )
    return _loader(study, cases, files, sampler), sampler


def _processes(world: int) -> str:
    return "one process" if world == 1 else f"each of {world} processes"


def predict_loader(
    study: Study, cases: Sequence[Case], files: Sequence[Path], rank: int = 0, world: int = 1
) -> DataLoader[tuple[Tensor, Tensor, int]]:
    """A loader of one process's share of the images, in order and untouched."""
    sampler = OrderedSampler(len(cases), study.training.resolved_sizes[1], rank, world)
    return _loader(study, cases, files, sampler)


def _loader(
    study: Study, cases: Sequence[Case], files: Sequence[Path], sampler: Sampler[list[Key]]
) -> DataLoader[tuple[Tensor, Tensor, int]]:
    return DataLoader(
        KeyedDataset(study, cases, files),
        batch_sampler=sampler,
        num_workers=study.training.workers,
        pin_memory=torch.cuda.is_available() and study.training.accelerator != "cpu",
        generator=torch.Generator().manual_seed(study.seed),
    )
