"""Self-supervised learning without labels: two views of an image, and a loss that makes their embeddings agree.

VICReg (Bardes, Ponce & LeCun 2022): the embeddings of two views agree, each of their numbers varies over the batch, and
no two numbers say the same. `benchmarks/pretraining.py` measured it against BYOL at equal processor time: better
neighbours on MedNIST, the same on drawn radiographs, and it needs no second network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from medopt.config import Augment, Study
from medopt.data.cache import as_tensor
from medopt.models import build_model
from medopt.transforms.augment import AugmentParams, apply, draw

AGREEMENT, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
"""Weights of the loss's three terms, those of the paper."""
PROJECTED = 512
LEAST_SPREAD, LEAST_RANK = 0.02, 1.5
"""Below these an epoch's embeddings have collapsed: see `Spread`."""


def view_augment(augment: Augment) -> Augment:
    """The study's augmentation, strong enough that two views of an image share what it shows and little else.

    Flips and the simulated scanner are those of the modality; zoom, shift and grey values are at least these.
    """
    least = {
        "probability": 0.8, "scale": 0.4, "translate": 0.15, "rotate_degrees": 15, "gamma": 0.4, "contrast": 0.4,
        "brightness": 0.2, "gaussian_noise": 0.03, "blur_pixels": 1.0, "erase": 0.3,
    }  # fmt: skip
    return augment.model_copy(update={name: max(value, getattr(augment, name)) for name, value in least.items()})


Views = tuple[Tensor, tuple[AugmentParams, ...], tuple[AugmentParams, ...]]
"""Prepared images (N, C, *size), and what was drawn for the one view of each and for the other."""


class TwoViews(Dataset[tuple[Tensor, Tensor]]):
    """Two views of prepared images, by (epoch, index): what is drawn follows from the seed and the key alone.

    Where `changes` is False, `__getitems__` reads and draws only, for `both_views` to go on with on another device.
    """

    def __init__(self, study: Study, files: Sequence[Path], changes: bool = True) -> None:
        self.seed, self.dims, self.files, self.changes = study.seed, study.spatial_dims, files, changes
        self.augment = view_augment(study.augment)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Both views (C, *size) of an image."""
        first, second = both_views(self._read([key]))
        return first[0], second[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor] | Views:
        """Both views (N, C, *size) of several images."""
        return both_views(self._read(keys)) if self.changes else self._read(keys)

    def _read(self, keys: Sequence[tuple[int, int]]) -> Views:
        images = torch.stack([as_tensor(self.files[index]) for _, index in keys])
        first, second = (tuple(self._drawn(*key, view) for key in keys) for view in (0, 1))
        return images, first, second

    def _drawn(self, *key: int) -> AugmentParams:
        return draw(self.augment, self.dims, np.random.default_rng((self.seed, *key)))


def both_views(views: Views, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Apply what was drawn, on `device` or where the images lie."""
    images = views[0].to(device, non_blocking=True)
    return apply(images, views[1]), apply(images, views[2])


class ViewSampler(Sampler[list[tuple[int, int]]]):
    """The batches of an epoch, shuffled by the seed and `epoch`; the last incomplete one is left out."""

    def __init__(self, seed: int, count: int, size: int) -> None:
        self.seed, self.count, self.size, self.epoch = seed, count, min(size, count), 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count).tolist()
        for start in range(0, len(self) * self.size, self.size):
            yield [(self.epoch, index) for index in order[start : start + self.size]]

    def __len__(self) -> int:
        return self.count // self.size


class Embedder(nn.Module):
    """The study's network without its last layer, and three layers behind it that only pretraining uses.

    Images (N, C, *size) to embeddings (N, 512) of the means of the last block, which are what is kept.
    """

    def __init__(self, study: Study) -> None:
        super().__init__()
        self.backbone = build_model(study)
        inputs = int(self.backbone.fc.in_features)  # type: ignore[union-attr, arg-type]
        self.backbone.fc = nn.Identity()
        self.projector = mlp(inputs, PROJECTED, PROJECTED, layers=3, seed=study.seed)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) to (N, 512)."""
        return self.projector(self.backbone(x))


def mlp(inputs: int, inner: int, outputs: int, layers: int, seed: int) -> nn.Sequential:
    """Linear layers with a normalization and a ReLU between, their weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: list[nn.Module] = []
        for layer in range(layers - 1):
            wide = inputs if layer == 0 else inner
            parts += [nn.Linear(wide, inner, bias=False), nn.BatchNorm1d(inner), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts, nn.Linear(inner, outputs, bias=False))


def vicreg(first: Tensor, second: Tensor) -> Tensor:
    """The loss of the embeddings (N, D) of both views of N images (equation 6 of the paper)."""
    agreement = F.mse_loss(first, second)
    variance = sum((1 - (view.var(0) + 1e-4).sqrt()).clamp_min(0).mean() for view in (first, second)) / 2
    return AGREEMENT * agreement + VARIANCE * variance + COVARIANCE * (_covariance(first) + _covariance(second))


def _covariance(embeddings: Tensor) -> Tensor:
    """Sum of the squared covariances between two different numbers, over D."""
    count, numbers = embeddings.shape
    centred = embeddings - embeddings.mean(0)
    covariance = centred.T @ centred / (count - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / numbers


@dataclass(frozen=True, slots=True)
class Spread:
    """How far N embeddings differ: 0 and 1 where all are the same.

    deviation: standard deviation of the numbers of embeddings of length 1, times the root of their count: 1 where they
    point in all directions alike. rank: the exponential of the entropy of the singular values (Roy & Vetterli 2007), at
    most N - 1.
    """

    deviation: float
    rank: float

    @property
    def has_collapsed(self) -> bool:
        """Whether the embeddings say nothing of the image any more."""
        return self.deviation < LEAST_SPREAD or self.rank < LEAST_RANK


@torch.no_grad()
def spread_of(embeddings: Tensor) -> Spread:
    """The spread of embeddings (N, D)."""
    unit = F.normalize(embeddings.detach().double(), dim=1)
    deviation = float(unit.std(0).mean()) * math.sqrt(unit.shape[1])
    centred = unit - unit.mean(0)
    values = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(1e-12)
    return Spread(deviation, float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum())))
