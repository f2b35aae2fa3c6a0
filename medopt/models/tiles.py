"""One network for all tiles of a large image, or for all slices of a volume, and one answer of what it makes of them.

An image of 3,000 x 2,500 pixels is neither shrunk, which loses what is small, nor held whole by the backward pass,
which takes tens of gigabytes: its tiles pass the network a few at a time, and only their features are kept. The
backward pass computes each few again (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).

A logit stays the mean over all positions of what these add to it, each weighted as its tile is: the linear layer at the
end commutes with both means. So evidence maps hold for tiles, too (`medopt.inference.tile_evidence`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from medopt.config import Study
from medopt.models.recompute import run_again

HIDDEN = 128
"""Numbers that the attention makes of the features of a tile, as in the paper."""
_NEVER = 1e9


class Encoder(Protocol):
    """The network that sees tiles: `means` gives the features (N, F) of images, of the last block or of every depth."""

    @property
    def fc(self) -> nn.Module | None:
        """The last layer."""

    def means(self, x: Tensor, every: bool) -> list[Tensor]:
        """(N, C, H, W) to features (N, F) of each depth, or of the last one alone."""


@dataclass(frozen=True, slots=True)
class TilesRead:
    """The pooled features (N, F) of each depth, the weight of each tile (N, T), and the tiles (N * T, C, H, W)."""

    pooled: list[Tensor]
    weights: Tensor
    tiles: Tensor


class GatedAttention(nn.Module):
    """A score for each tile from its features: (N, F) to (N,). It begins at 0, so that all tiles count alike.

    Source: Ilse, Tomczak & Welling, Attention-based Deep Multiple Instance Learning (2018), equation 9.
    """

    def __init__(self, features: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # a softmax ignores one

    def start_even(self) -> None:
        """Let all tiles have the same score."""
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) to (N,)."""
        out: Tensor = self.score(self.value(features).tanh() * self.gate(features).sigmoid())
        return out.flatten()


class Tiling(nn.Module):
    """Cuts, and pools what the network makes of the parts.

    Args:
        pooling: mean; attention; or top_k, the mean of the `top_k` tiles with the highest logit.
        features: how many the network makes of a tile at its last depth.
        tile: height and width; None: a volume is cut into groups of `slices`, which become channels.
        global_view: the whole image, shrunk to the size of a tile, is one tile more, the last.
        at_once: how many tiles pass the network together, of all images of a batch; None: all.
        looked: the channels of a tile that are black where there is nothing; None: all.

    A tile of padding alone does not count, nor does the network see it; of a black image all count.
    """

    def __init__(
        self, pooling: Literal["mean", "attention", "top_k"], features: int, tile: Sequence[int] | None = None,
        slices: int = 1, global_view: bool = False, top_k: int = 1, at_once: int | None = None,
        looked: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tile, self.slices, self.global_view, self.at_once = tile, slices, global_view, at_once
        self.looked = looked
        self.top_k = top_k if pooling == "top_k" else 0
        self.attention = GatedAttention(features) if pooling == "attention" else None

    def read(self, x: Tensor, network: Encoder, every: bool) -> TilesRead:
        """Images (N, C, H, W) or volumes (N, C, D, H, W) through the network of their parts."""
        parts = self.cut(x)
        count, tiles = parts.shape[1], parts.flatten(0, 1)
        counted = self._counted(tiles, count, x.shape[2:])
        features = self._encoded(tiles, counted, network, every)
        weights = self._weights(features[-1], counted, network)
        pooled = [(weights.unsqueeze(2) * each.unflatten(0, (-1, count))).sum(1) for each in features]
        return TilesRead(pooled, weights, tiles)

    def cut(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to tiles (N, T, C, height, width), row by row; (N, C, D, H, W) to (N, T, C * slices, H, W).

        What is missing of the last ones is black.
        """
        if self.tile is None:
            groups = -(-x.shape[2] // self.slices)
            whole = pad(x, (0, 0, 0, 0, 0, groups * self.slices - x.shape[2]))
            return whole.unflatten(2, (groups, self.slices)).movedim(2, 1).flatten(2, 3)
        (height, width), (rows, columns) = self.tile, self.grid(x.shape[2:])
        whole = pad(x, (0, columns * width - x.shape[3], 0, rows * height - x.shape[2]))
        tiles = whole.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # N, C, rows, h, columns, w
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        if self.global_view:
            tiles = torch.cat([tiles, avg_pool2d(whole, (rows, columns)).unsqueeze(1)], 1)
        return tiles

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of tiles of an image."""
        assert self.tile is not None
        return -(-size[0] // self.tile[0]), -(-size[1] // self.tile[1])

    def _counted(self, tiles: Tensor, count: int, size: Sequence[int]) -> Tensor:
        """Which tiles (N * T, C, H, W) count: (N, T) ones and zeros.

        Those in the smallest box that holds all that is not zero, as augmentation leaves black only outside of it.
        """
        filled = (tiles[:, : self.looked].amax((1, 2, 3)) > 0).float().view(-1, count)
        if self.tile is None:
            inside = _between(filled)
        else:
            rows, columns = self.grid(size)
            own = filled[:, : rows * columns].unflatten(1, (rows, columns))
            inside = (_between(own.amax(2)).unsqueeze(2) * _between(own.amax(1)).unsqueeze(1)).flatten(1)
        inside = inside + (1 - inside.amax(1, keepdim=True))
        return torch.cat([inside, torch.ones_like(inside[:, :1])], 1) if self.global_view else inside

    def _encoded(self, tiles: Tensor, counted: Tensor, network: Encoder, every: bool) -> list[Tensor]:
        """Features (N * T, F) of the tiles; zeros of those that do not count.

        Each few are taken from all images of the batch and from all over them, as batch normalization sees no others.
        """
        if self.at_once is None or tiles.is_meta or torch.compiler.is_exporting():
            return network.means(tiles, every)
        if self.training and torch.distributed.is_initialized():  # all processes have to do the same, in step
            rows, number = torch.arange(len(tiles), device=tiles.device), counted.shape[1]
        else:
            rows = counted.flatten().nonzero().flatten()
            number = -(-len(rows) // self.at_once)
        shares = [rows[first::number] for first in range(number)]
        read = [self._few(tiles[share], network, every) for share in shares]
        order = torch.cat(shares)
        joined = [torch.cat(depth) for depth in zip(*read, strict=True)]
        return [each.new_zeros(len(tiles), each.shape[1]).index_copy(0, order, each) for each in joined]

    def _few(self, tiles: Tensor, network: Encoder, every: bool) -> list[Tensor]:
        if not torch.is_grad_enabled():
            return network.means(tiles, every)
        assert isinstance(network, nn.Module)
        return run_again(network, tiles, lambda x: network.means(x, every))

    def _weights(self, features: Tensor, counted: Tensor, network: Encoder) -> Tensor:
        """Weights (N, T) of the tiles by their last features (N * T, F); those of an image sum to 1."""
        if self.attention is not None:
            scores = self.attention(features).float().view_as(counted)
            return (scores + (counted - 1) * _NEVER).softmax(1)
        if self.top_k:
            layer = network.fc[-1] if isinstance(network.fc, nn.Sequential) else network.fc  # without its dropout
            assert isinstance(layer, nn.Linear)
            logits = layer(features.detach()).detach().float().view_as(counted) + (counted - 1) * _NEVER
            counted = torch.zeros_like(counted).scatter(1, logits.topk(self.top_k, 1).indices, 1.0) * counted
        return counted / counted.sum(1, keepdim=True)

    def stitched(self, values: Tensor, size: Sequence[int], spread: Callable[[Tensor], Tensor]) -> Tensor:
        """Maps of the tiles of one image (T, 1, h, w) as its own (1, 1, *size).

        `spread` brings them to the size of a tile.
        """
        large = spread(values)[:, 0]
        if self.tile is None:
            return large.repeat_interleave(self.slices, 0)[None, None, : size[0]]
        rows, columns = self.grid(size)
        own = large[: rows * columns].unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        if self.global_view:
            own = own + large[-1].repeat_interleave(rows, 0).repeat_interleave(columns, 1) / (rows * columns)
        return own[None, None, : size[0], : size[1]]


def _between(filled: Tensor) -> Tensor:
    """Ones from the first to the last one of each row (N, L) of ones and zeros."""
    until = filled.cumsum(1)
    return ((until > 0) & (until.amax(1, keepdim=True) - until + filled > 0)).float()


def study_tiling(study: Study, features: int) -> Tiling | None:
    """The tiling of a study's network whose last block gives so many features; None: it sees the whole image."""
    model, seen = study.model, study.network_input
    if model.pooling == "none":
        return None
    at_once = seen.at_once if model.tiles_at_once == "auto" else model.tiles_at_once
    images = len(study.prepare.channel_names) * model.slices or None  # behind them may be masks
    return Tiling(model.pooling, features, model.tile, model.slices, model.global_view, model.top_k, at_once, images)
