"""Batch normalization over the images of all processes, so that more processes change nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_context: Any, here: Tensor) -> Tensor:
        return _reduced(here)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return _reduced(gradient)


def _reduced(here: Tensor) -> Tensor:
    whole = here.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(whole)
    return whole


def _summed(here: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(here)
    return total


class SharedBatchNorm(_BatchNorm):
    """Batch normalization over all processes, for CPUs, where torch's SyncBatchNorm refuses to work.

    (N, C, *space) to the same. Same parameters and buffers as BatchNorm; alone or in evaluation it is one. Processes
    may have different numbers of images.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the mean and variance of every process's images."""
        if not self.training or not torch.distributed.is_initialized():
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        here = torch.full((1,), float(x.numel() / x.shape[1]), device=x.device)
        total = _summed(torch.cat([x.sum(axes), here]))
        count = total[-1]
        mean = total[:-1] / count
        centred = x - mean.reshape(shape)
        variance = _summed(centred.square().sum(axes)) / count
        if self.momentum:  # 0 while a block is computed again
            self._remember(mean.detach(), variance.detach() * (count / (count - 1)).detach())
        out = centred * torch.rsqrt(variance + self.eps).reshape(shape)
        return out * self.weight.reshape(shape) + self.bias.reshape(shape)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics that evaluation uses."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, *space), got {input.ndim} axes")


def share_statistics(model: nn.Module) -> nn.Module:
    """`model` with every batch normalization over all processes: torch's own on a GPU, ours elsewhere."""
    if next(model.parameters()).is_cuda:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.__class__ = SharedBatchNorm  # type: ignore[assignment]  # parameters, buffers, settings: the same
    return model
