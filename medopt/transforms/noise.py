"""Random numbers: normal noise that is a function of (seed, channel, pixel) alone, and uniform draws, fast.

For noise a counter is hashed instead of drawing from a stream (Salmon et al. 2011), once for two pixels: each takes 15
bits of the hash to one of 32,768 quantiles of the normal distribution. It is the same in any batch, process and order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

_LEVELS = 2**15
_AT_ONCE = 64
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B  # the multipliers of lowbias32 (C. Wellons, public domain)


def normal(seeds: Sequence[int], stream: int, channels: int, space: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal noise (N, channels, *space) of N images by their seeds (32 bits); each stream is another.

    The noise of the first channel does not depend on how many there are.
    """
    codes = _codes(channels, math.prod(space), device)  # (channels, pairs of pixels)
    keys = mix(mix(np.array(seeds, np.uint32)) + np.array([stream], np.uint32))
    x = codes ^ torch.from_numpy(keys.view(np.int32)).to(device)[:, None, None]
    x.mul_(_signed(_FIRST)).bitwise_xor_(
        (x >> 15).bitwise_and_(0x1FFFF)
    )  # the shift of a signed number fills with ones
    x.mul_(_signed(_SECOND)).bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
    places = x.bitwise_and_(0x7FFF7FFF).view(torch.int16).long()
    values = _quantiles(device).index_select(0, places.view(-1)).view(len(seeds), channels, -1)
    return values[..., : math.prod(space)].reshape(len(seeds), channels, *space)


class Uniforms:
    """What a numpy generator's `uniform` would give in turn, drawn many at a time: several times as fast."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random, self._left = random, iter(random.random(_AT_ONCE).tolist())

    @overload
    def uniform(self, low: float = ..., high: float = ...) -> float: ...

    @overload
    def uniform(self, low: float, high: float, size: int | tuple[int, ...]) -> NDArray[np.float64]: ...

    def uniform(
        self, low: float = 0.0, high: float = 1.0, size: int | tuple[int, ...] | None = None
    ) -> float | NDArray[np.float64]:
        """A number from `low` to `high`, or an array of them."""
        if size is not None:
            return low + (high - low) * np.array([self._next() for _ in range(np.prod(size))]).reshape(size)
        return low + (high - low) * self._next()

    def _next(self) -> float:
        for value in self._left:
            return value
        self._left = iter(self._random.random(_AT_ONCE).tolist())
        return self._next()


Random = np.random.Generator | Uniforms


def mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A bijection of 32-bit numbers whose bits all depend on all (lowbias32)."""
    x = (x ^ x >> np.uint32(16)) * np.uint32(_FIRST)
    x = (x ^ x >> np.uint32(15)) * np.uint32(_SECOND)
    return x ^ x >> np.uint32(16)


def _signed(value: int) -> int:
    """The 32-bit pattern as torch's int32 reads it."""
    return value - 2**32 if value >= 2**31 else value


@functools.lru_cache(maxsize=8)
def _codes(channels: int, pixels: int, device: torch.device) -> Tensor:
    """A hashed counter for each pair of pixels of each channel: (channels, pairs), int32."""
    pairs = -(-pixels // 2)
    counters = np.arange(channels * pairs, dtype=np.uint32).reshape(channels, pairs)
    return torch.from_numpy(mix(counters).view(np.int32)).to(device)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    return torch.from_numpy(ndtri((np.arange(_LEVELS) + 0.5) / _LEVELS).astype(np.float32)).to(device)
