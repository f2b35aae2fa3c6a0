"""Batches for training (shuffled or balanced, augmented, mixed) and for prediction (in order, untouched).

Which images make a step, what is drawn for each, and which of several processes takes which, all follow from the seed
and the epoch: an interrupted run, other workers and more processes see the same images, changed in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medopt.config import Study, Training
from medopt.core.errors import ConfigError
from medopt.core.provenance import usable_cores
from medopt.core.records import Case, is_exclusive, label_table
from medopt.data.residence import HeldImages, Images, as_images, images_of
from medopt.data.samplers import Key, OrderedSampler, StepSampler
from medopt.manifest.covariates import encoder_of
from medopt.transforms.augment import AugmentParams, apply, draw
from medopt.transforms.restore import restore_masks

T = TypeVar("T")
CPU = torch.device("cpu")
MAX_WORKERS = 16
Batch = tuple[Tensor, Tensor, Tensor]  # images (N, C, *size), targets (N, K), indices (N,)


@dataclass(frozen=True, slots=True)
class Changes:
    """All that was drawn for the images of a micro-batch; `shares` are each image's own share where they are mixed."""

    drawn: tuple[AugmentParams, ...]
    shares: tuple[float, ...] = ()


Read = tuple[Tensor | None, Tensor, Tensor, Changes | None]
"""Images as they are stored, or None where they lie in memory; targets; indices; what was drawn, or None."""


class KeyedDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Prepared images by key; an item is (image (C, *size), target (K,), index), and `__getitems__` makes batches.

    K is 1 for a binary study, else one number a label: zeros and a one for a class; NaN where a label is not known,
    also where it is not of one of two images that are mixed. Of a number it is the output that it would be. Behind them
    stand the encoded covariates of a study that has some (K + F): mixed as the images are, which is exact for a linear
    term. Where
    `changes` is False, images are read as they are stored and their changes are drawn only, for `finisher` to go on
    with on a device; None in place of the images leaves reading to it, too.
    """

    def __init__(
        self, study: Study, cases: Sequence[Case], files: Sequence[Path] | Images | None, changes: bool = True
    ) -> None:
        self.study, self.cases, self.changes = study, cases, changes
        self.images = None if files is None else images_of(files)
        encoder = encoder_of(study)
        self.table = None if encoder is None else torch.from_numpy(encoder.table(cases)).float()

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor, int]:
        images, targets, _ = self._changed([key])
        return images[0], targets[0], key[1]

    def __getitems__(self, keys: Sequence[Key]) -> Batch | Read:
        """A micro-batch, changed; where `changes` is False, what was read and what was drawn."""
        if self.changes:
            return self._changed(keys)
        return self._stored(keys), *self._labels(keys), self._draw(keys) if keys[0][0] >= 0 else None

    def _changed(self, keys: Sequence[Key]) -> Batch:
        stored = self._stored(keys)
        assert stored is not None
        batch = (as_images(stored), *self._labels(keys))
        return batch if keys[0][0] < 0 else change(self.study, batch, self._draw(keys))

    def _stored(self, keys: Sequence[Key]) -> Tensor | None:
        return None if self.images is None else self.images.take([index for _, index, _ in keys])

    def _labels(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        indices = [index for _, index, _ in keys]
        return torch.stack([self._target(index) for index in indices]), torch.tensor(indices)

    def _draw(self, keys: Sequence[Key]) -> Changes:
        drawn, shares, mixup = [], [], self.study.training.mixup
        for epoch, index, before in keys:
            random = np.random.default_rng((self.study.seed, epoch, index) + ((before,) if before else ()))
            if mixup:
                shares.append(float(random.beta(mixup, mixup)))
            drawn.append(draw(self.study.augment, self.study.spatial_dims, random))
        return Changes(tuple(drawn), tuple(shares))

    def _target(self, index: int) -> Tensor:
        target = target_of(self.study, self.cases[index])
        return target if self.table is None else torch.cat([target, self.table[index]])


def target_of(study: Study, case: Case) -> Tensor:
    """What a network's outputs (K,) are to come to for a case."""
    if study.data.task == "regression":
        return torch.from_numpy(study.data.number.as_scale().outputs([case.number])).float()
    if is_exclusive(study.data.task):
        return torch.eye(study.data.outputs)[case.class_index]
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


class Finished(Generic[T]):
    """A loader whose batches are finished here, one by one: what its processes did not do.

    On a GPU that happens a batch ahead, on a stream of its own: while the network computes one batch, the next is
    copied and changed.
    """

    def __init__(self, loader: DataLoader[Any], finish: Callable[[Any], T], device: torch.device) -> None:
        self.loader, self.finish, self.device = loader, finish, device

    def __iter__(self) -> Iterator[T]:
        return self._ahead() if self.device.type == "cuda" else map(self.finish, self.loader)

    def __len__(self) -> int:
        return len(self.loader)

    def _ahead(self) -> Iterator[T]:
        stream, ready = torch.cuda.Stream(self.device), None
        for batch in self.loader:
            with torch.cuda.stream(stream):
                finished = self.finish(batch), stream.record_event()
            if ready is not None:
                yield self._handed_over(*ready)
            ready = finished
        if ready is not None:
            yield self._handed_over(*ready)

    def _handed_over(self, batch: T, event: torch.cuda.Event) -> T:
        """The batch, for the stream that computes."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for value in batch if isinstance(batch, tuple) else ():
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(current)  # its memory is not given away before that stream is done with it
        return batch


Loader = DataLoader[Batch] | Finished[Batch]


def train_loader(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path] | Images,
    rank: int = 0,
    world: int = 1,
    device: torch.device = CPU,
) -> tuple[Loader, StepSampler]:
    """A loader of micro-batches and the sampler whose `epoch` says which epoch comes next.

    Images are changed on `device` where `training.augment_on` says so, or is auto and the device a GPU; else where they
    are read. Raises ConfigError where a step has fewer images than two a process.
    """
    size, micro = study.training.resolved_sizes
    if min(size, len(cases)) < 2 * world and world > 1:
        raise ConfigError(
            f"A step of {min(size, len(cases))} images cannot be shared by {world} processes: each needs two. Ask for "
            "fewer --devices, or a larger training.batch_size."
        )
    sampler = StepSampler(study, cases, size, micro, rank, world)
    where = study.training.augment_on
    if where == "device" or (where == "auto" and device.type == "cuda"):
        return on_device(study, cases, files, sampler, device, world), sampler
    loader = batch_loader(study, KeyedDataset(study, cases, files), sampler, device, world)
    if device.type == "cuda":
        return Finished(loader, lambda batch: _moved(batch, device), device), sampler
    return loader, sampler


def on_device(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path] | Images,
    sampler: Sampler[list[Key]],
    device: torch.device,
    world: int = 1,
) -> Finished[Batch]:
    """Micro-batches whose images become float32, and are changed, on `device`.

    The loader's processes read files; what lies in memory is taken from there by this process.
    """
    images = images_of(files)
    data = KeyedDataset(study, cases, None if isinstance(images, HeldImages) else images, changes=False)

    def finish(read: Read) -> Batch:
        stored, targets, indices, changes = read
        stored = images.take(indices.tolist()) if stored is None else stored
        moved, targets, indices = _moved((stored, targets, indices), device)
        batch = as_images(moved), targets, indices
        return batch if changes is None else change(study, batch, changes)

    return Finished(batch_loader(study, data, sampler, device, world), finish, device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, targets, indices = batch
    return images.to(device, non_blocking=True), targets.to(device, non_blocking=True), indices


def predict_loader(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path] | Images,
    rank: int = 0,
    world: int = 1,
    device: torch.device = CPU,
) -> Loader:
    """A loader of one process's share of the images, in order and untouched; on a GPU they are there already."""
    sampler = OrderedSampler(len(cases), study.training.resolved_sizes[1], rank, world)
    if device.type == "cuda":
        return on_device(study, cases, files, sampler, device, world)
    return batch_loader(study, KeyedDataset(study, cases, files), sampler)


def endless_steps(
    study: Study, cases: Sequence[Case], files: Sequence[Path] | Images, device: torch.device
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The micro-batches of one step of training after the other, over as many epochs as are asked for."""
    loader, sampler = train_loader(study, cases, files, device=device)
    for epoch in count():
        sampler.epoch = epoch
        yield from grouped(loader, sampler.parts)


def grouped(loader: Iterable[Batch], parts: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The micro-batches of each step."""
    batches = iter(loader)
    while batch := [(image, target) for image, target, _ in islice(batches, parts)]:
        yield batch


def batch_loader(
    study: Study, data: Dataset[Any], sampler: Sampler[Any], device: torch.device = CPU, world: int = 1
) -> DataLoader[Any]:
    """A loader of what the `__getitems__` of a dataset makes of each list of keys; its processes live as long as it."""
    workers = worker_count(study.training, device, world)
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(study.seed),
        collate_fn=_as_it_is,
    )


def worker_count(training: Training, device: torch.device, world: int = 1) -> int:
    """How many processes load for one that trains, of `world` altogether: on a GPU all its share of the cores but one.

    A CPU that trains has no core to spare.
    """
    if training.workers != "auto":
        return training.workers
    if device.type != "cuda":
        return 0
    return min(MAX_WORKERS, max(1, usable_cores() // min(world, torch.cuda.device_count() or 1) - 1))


def _as_it_is(batch: T) -> T:
    return batch
