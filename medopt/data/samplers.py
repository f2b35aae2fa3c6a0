"""Which images make a step or a batch, and which of several processes takes which: by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from medopt.config import Study
from medopt.core.records import Case, label_table

T = TypeVar("T")
Key = tuple[int, int, int]  # (epoch, index, how often that image came before in this epoch); epoch -1: not augmented


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
