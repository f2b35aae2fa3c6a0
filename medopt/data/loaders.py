"""Batches for training (shuffled, augmented) and for prediction (in order, untouched)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medopt.config import Study
from medopt.data.cache import as_tensor
from medopt.records import Case
from medopt.transforms.augment import apply, draw

Key = tuple[int, int]  # (epoch, index): workers need no other state to augment the same image the same way


class PreparedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Prepared images by (epoch, index); epoch -1 is without augmentation.

    An item is (image (C, *size), target, index): target (1,) or (K,) floats, a scalar class index in a multi-class
    study. What is drawn depends on seed, epoch and index alone: not on the order, the workers, or an interruption.
    """

    def __init__(self, study: Study, cases: Sequence[Case], files: Sequence[Path]) -> None:
        self.study, self.cases, self.files = study, cases, files

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        epoch, index = key
        image = as_tensor(self.files[index])
        if epoch >= 0:
            random = np.random.default_rng((self.study.seed, epoch, index))
            image = apply(image, draw(self.study.augment, self.study.spatial_dims, random))
        return image, self._target(self.cases[index]), index

    def _target(self, case: Case) -> Tensor:
        if self.study.data.task == "multiclass":
            return torch.tensor(case.label[0])
        return torch.tensor(case.label, dtype=torch.float32)


class EpochSampler(Sampler[Key]):
    """Keys of one epoch: shuffled by (seed, epoch) for training, in order for prediction (epoch -1)."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, -1

    def __iter__(self) -> Iterator[Key]:
        order = np.arange(self.count)
        if self.epoch >= 0:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        return iter([(self.epoch, int(index)) for index in order])

    def __len__(self) -> int:
        return self.count


def make_loader(
    study: Study, cases: Sequence[Case], files: Sequence[Path], *, train: bool
) -> tuple[DataLoader[tuple[Tensor, Tensor, int]], EpochSampler]:
    """A loader and the sampler whose `epoch` says which epoch comes next.

    Training drops the last incomplete batch (batch statistics of one or two images are noise), unless it is the only
    one.
    """
    sampler = EpochSampler(len(cases), study.seed)
    size = study.training.batch_size
    loader = DataLoader(
        PreparedDataset(study, cases, files),
        batch_size=size,
        sampler=sampler,
        num_workers=study.training.workers,
        drop_last=train and len(cases) >= size,
        generator=torch.Generator().manual_seed(study.seed),
    )
    return loader, sampler
