"""Where a network of tiles, or of the slices of a volume, saw evidence: the tiles' own maps, each times its weight.

A tile's weight depends on the whole image: an attention is a softmax over all tiles, and of the best few only these
have one. So the map says what each position adds to the logit as the tiles are weighted in this image. It does not say
what the logit would be without the position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import FloatArray
from medopt.core.telemetry import without_telemetry
from medopt.inference.depth_evidence import LinearPart, spread
from medopt.inference.engines import INPUT, TILE_WEIGHTS, TILES

with without_telemetry():
    import openvino

_TOLERANCE = 1e-3
Floats = NDArray[np.float64]


def tile_outputs(model: openvino.Model) -> list[openvino.Output] | None:
    """What tells the weights of tiles (N, T) and the tiles themselves; None where the network sees whole images."""
    found = {
        name: output
        for node in model.get_ops()
        for output in node.outputs()
        for name in output.get_names() & {TILES, TILE_WEIGHTS}
    }
    return [found[TILE_WEIGHTS], found[TILES]] if len(found) == 2 else None


class TileEvidence:
    """A network of tiles opened a second time with their maps, weights and sizes among its outputs."""

    def __init__(self, compiled: openvino.CompiledModel, parts: Sequence[LinearPart], bias: Any) -> None:
        self._compiled, self._weights, self._bias = compiled, [part.weight for part in parts], bias

    def places(self, image: FloatArray) -> Floats | None:
        """What each position of an image (C, *size) adds to each logit, without the bias: (K, *positions).

        The mean plus the bias is the logit. None where it is not.
        """
        *maps, weights, tiles, logits = self._compiled({INPUT: image[None]}).to_tuple()
        shares = [np.tensordot(linear, each, axes=(1, 1)) for linear, each in zip(self._weights, maps, strict=True)]
        finest = tuple(max(sides) for sides in zip(*(share.shape[2:] for share in shares), strict=True))
        joined = np.sum([_finer(share, finest) for share in shares], axis=0)
        total = _stitched(joined, weights[0], image, tiles.shape)
        mean = total.mean(axis=tuple(range(1, total.ndim)))
        if not np.allclose(mean + self._bias.ravel(), logits[0], atol=_TOLERANCE * max(1.0, float(np.ptp(total)))):
            return None
        return total


def _finer(shares: Floats, sides: Sequence[int]) -> Floats:
    """Shares (K, T, *positions) of a coarser depth with the positions of the finest."""
    if shares.shape[2:] == tuple(sides):
        return shares
    return np.stack([spread(shares[:, tile], sides) for tile in range(shares.shape[1])], axis=1)


def _stitched(shares: Floats, weights: Floats, image: FloatArray, tile: Sequence[int]) -> Floats:
    """Shares (K, T, h, w) of the tiles' logits as one map whose mean is that of the image's."""
    outputs, count, *sides = shares.shape
    weighted = np.asarray(shares, np.float64) * weights[:, None, None]
    if image.ndim == 4:  # groups of slices: each stands for all of its slices
        whole = weighted.repeat(tile[1] // image.shape[0], axis=1)
        return _cut(whole * count, (image.shape[1], *sides))
    rows, columns = (-(-side // step) for side, step in zip(image.shape[1:], tile[2:], strict=True))
    own = weighted[:, : rows * columns].reshape(outputs, rows, columns, *sides) * (rows * columns)
    grid = own.transpose(0, 1, 3, 2, 4).reshape(outputs, rows * sides[0], columns * sides[1])
    if count > rows * columns:  # the view of the whole image
        grid = grid + weighted[:, -1].repeat(rows, axis=1).repeat(columns, axis=2)
    strides = [step / side for step, side in zip(tile[2:], sides, strict=True)]
    return _cut(grid, [math.ceil(side / stride) for side, stride in zip(image.shape[1:], strides, strict=True)])


def _cut(grid: Floats, sides: Sequence[int]) -> Floats:
    """A map (K, *positions) without the positions beyond the image; what these added is spread over all others."""
    kept = grid[(slice(None), *map(slice, sides))]
    axes = tuple(range(1, grid.ndim))
    return kept + grid.mean(axis=axes, keepdims=True) - kept.mean(axis=axes, keepdims=True)
