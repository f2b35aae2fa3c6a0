"""Frozen features of a network: the means of what its stem and its blocks give for each image, mirrored and not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medopt.core.records import FloatArray
from medopt.data.cache import as_tensor, load_prepared
from medopt.manifest.duplicates import thumbnail
from medopt.models.depth_heads import DepthHeads
from medopt.models.resnet import BottleneckResNet
from medopt.training.covariates import put_coefficients
from medopt.training.linear_model import LinearModel

BATCH = 16
_NUMBERS = 2**25  # of a batch, at most: 128 MB


@torch.no_grad()
def pooled_features(
    network: nn.Module,
    files: Sequence[Path],
    device: torch.device,
    *,
    mirrored: bool = False,
    advance: Callable[[int], object] = lambda count: None,
) -> FloatArray:
    """Features (N, V, F) of prepared images that the network's head reads: of the last block, or of every depth.

    V is 2 with `mirrored`, the image and its mirror from left to right, else 1.
    """
    model = cast(BottleneckResNet, network.eval().to(device))
    rows = []
    size = max(1, min(BATCH, _NUMBERS // as_tensor(files[0]).numel()))
    for start in range(0, len(files), size):
        part = files[start : start + size]
        images = torch.stack([as_tensor(file) for file in part]).to(device)
        views = [images, images.flip(-1)] if mirrored else [images]
        rows.append(torch.stack([_read(model, view) for view in views], dim=1).cpu().numpy())
        advance(len(part))
    return np.concatenate(rows)


def _read(model: BottleneckResNet, images: Tensor) -> Tensor:
    features = model.features(images)
    return torch.cat(features if isinstance(model.fc, DepthHeads) else features[-1:], dim=1)


def put_head(network: nn.Module, linear: LinearModel) -> None:
    """Make a linear model on the features of the network, and the covariates behind them, its last layer, in place."""
    weight, bias = torch.from_numpy(linear.weight).float(), torch.from_numpy(linear.bias).float()
    head = network.fc[1] if isinstance(network.fc, nn.Sequential) else network.fc
    layers = [*head.heads] if isinstance(head, DepthHeads) else [head]
    sizes = [cast(nn.Linear, layer).in_features for layer in layers]
    *parts, rest = weight.split([*sizes, weight.shape[1] - sum(sizes)], dim=1)
    with torch.no_grad():
        for layer, part in zip(layers, parts, strict=True):
            cast(nn.Linear, layer).weight.copy_(part)
        cast(nn.Linear, layers[-1]).bias.copy_(bias)
    if rest.shape[1]:
        put_coefficients(network, linear.weight[:, sum(sizes) :])


def thumbnail_features(files: Sequence[Path]) -> NDArray[np.float64]:
    """The gray values (N, F) of prepared images made as small as those that duplicates are looked for in."""
    return np.stack([thumbnail(load_prepared(file)).ravel() for file in files]).astype(np.float64)
