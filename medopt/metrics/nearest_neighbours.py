"""How well the nearest neighbours of an image say what it shows: what frozen features are worth, without training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS, TEMPERATURE = 20, 0.07


def neighbour_scores(
    features: NDArray[np.float64], targets: NDArray[np.float64], queries: NDArray[np.float64],
    same: NDArray[np.bool_] | None = None, neighbours: int = NEIGHBOURS,
) -> NDArray[np.float64]:  # fmt: skip
    """Scores (M, K) of M queries: the targets (N, K) of their nearest neighbours, each weighted by how near it is.

    targets: NaN where a label is not known, which has no vote. features: (N, D). queries: (M, D). same: (M, N), true
    where a neighbour must not vote, as one of the same patient. Nearness is exp(cosine / 0.07) of features less their
    mean (Wu et al. 2018).
    """
    mean = features.mean(0)
    near = _unit(queries - mean) @ _unit(features - mean).T
    if same is not None:
        near = np.where(same, -np.inf, near)
    count = min(neighbours, near.shape[1])
    nearest = np.argpartition(-near, count - 1, axis=1)[:, :count]
    weights = np.exp((np.take_along_axis(near, nearest, 1) - 1) / TEMPERATURE)[:, :, None]
    known = ~np.isnan(targets)
    total = (weights * known[nearest]).sum(1)
    votes = (weights * np.nan_to_num(targets)[nearest]).sum(1)
    mean = np.nan_to_num(targets).sum(0) / np.maximum(known.sum(0), 1)
    return np.divide(votes, total, out=np.full_like(votes, mean), where=total > 0)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
