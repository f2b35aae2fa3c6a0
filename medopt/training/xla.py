"""Training on the device that XLA finds: a TPU, or the processor (PJRT_DEVICE=CPU), to try the same path without one.

Never run on a TPU yet. XLA compiles a step for its shapes: all steps of a training have the same, and validation's
last batch another. Fabric marks the end of each step after the optimizer (Lightning's `XLAPrecision`).
torch counts its devices at the first gradient of a process, so that one on the CPU must not come before XLA is opened.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import XLAAccelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medopt.core.errors import ConfigError

_PRECISIONS = ("auto", "32-true")


class _AnyXlaDevice(XLAAccelerator):
    """Whatever device XLA has; Lightning's own takes TPUs alone."""

    @staticmethod
    def is_available() -> bool:  # type: ignore[override]  # Lightning's is cached
        return True

    @staticmethod
    def auto_device_count() -> int:  # type: ignore[override]
        return 1

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device("xla", 0)]


def open_xla(precision: str, devices: int = 1) -> Fabric:
    """Fabric on one XLA device, in float32 tensors (which a TPU multiplies in bfloat16 passes by default).

    Raises ConfigError where no torch_xla is installed, where it finds no device, and for several devices.
    """
    if find_spec("torch_xla") is None:
        raise ConfigError(
            "training.accelerator is tpu, and torch_xla is not installed. Install it with the torch of the same "
            "version (pip install torch==2.9.0 torch_xla==2.9.0), or let training.accelerator be auto."
        )
    if precision not in _PRECISIONS:
        raise ConfigError(
            f"training.precision is {precision}, but on an XLA device medopt trains in 32-true only; let it be auto."
        )
    if devices > 1:
        raise ConfigError(f"Training on {devices} XLA devices is not done; give one (--devices 1).")
    try:
        return Fabric(accelerator=_AnyXlaDevice(), devices=1, precision="32-true")
    except (RuntimeError, ValueError, OSError, AssertionError) as error:
        raise ConfigError(
            f"XLA finds no device ({' '.join(str(error).split())[:200]}). PJRT_DEVICE says which it looks for (TPU or "
            "CPU); or let training.accelerator be auto."
        ) from error


def correct_running_variances(model: nn.Module, device: torch.device) -> None:
    """Let batch normalizations remember unbiased variances on a device whose own kernel remembers biased ones.

    torch_xla 2.9 adds a batch's variance over n values to the running one, torch that over n - 1. A small image's last
    blocks have so few values that validation differed by a hundredth. Elsewhere the model stays as it is.
    """
    if device.type == "xla" and remembers_biased_variance(device):
        for norm in model.modules():
            if isinstance(norm, _BatchNorm):
                norm.register_forward_pre_hook(_keep_variance)
                norm.register_forward_hook(_add_missing_variance)


def remembers_biased_variance(device: torch.device) -> bool:
    """Whether batch normalization takes the variance of (0, 2) for 1, not for 2, in its running statistics."""
    norm = nn.BatchNorm1d(1, momentum=1.0).to(device)
    with torch.no_grad():
        norm(torch.tensor([[0.0], [2.0]], device=device))
    assert norm.running_var is not None
    return bool(norm.running_var.item() < 1.5)


def _keep_variance(norm: _BatchNorm, _inputs: tuple[Tensor, ...]) -> None:
    if norm.training and norm.running_var is not None:
        norm.variance_before = norm.running_var.clone()


@torch.no_grad()
def _add_missing_variance(norm: _BatchNorm, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
    """Make the batch's part of the running variance n / (n - 1) times as large; a momentum of 0 left none."""
    if norm.training and norm.running_var is not None and norm.momentum:
        count, before = inputs[0].numel() // norm.num_features, cast(Tensor, norm.variance_before)
        part = norm.running_var - (1 - norm.momentum) * before
        norm.running_var.data.add_(part / (count - 1))  # training's backward pass keeps but does not read it
        del norm.variance_before
