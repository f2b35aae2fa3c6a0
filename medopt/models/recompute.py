"""Gradient checkpointing of a block: its inner values are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Out = TypeVar("Out", Tensor, list[Tensor])


def run_again(block: nn.Module, x: Tensor, run: Callable[[Tensor], Out]) -> Out:
    """What `run` gives of `x`, a part of a block without randomness, of which the backward pass needs `x` alone.

    The batch counts once in the running statistics. Source: Chen et al., Training Deep Nets with Sublinear Memory Cost
    (2016).
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_running_statistics(block)

    out: Out = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextmanager
def _without_running_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch normalizations normalize by the batch, as before, and remember nothing of it."""
    norms = [one for one in block.modules() if isinstance(one, _BatchNorm) and one.training]
    before = [(one.momentum, one.num_batches_tracked) for one in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
