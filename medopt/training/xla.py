"""Training on the device that XLA finds: a TPU, or the processor (PJRT_DEVICE=CPU), to try the same path without one.

Never run on a TPU yet. XLA compiles a step for its shapes: all steps of a training have the same, and validation's
last batch another. Fabric marks the end of each step after the optimizer (Lightning's `XLAPrecision`).
torch counts its devices at the first gradient of a process, so that one on the CPU must not come before XLA is opened.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators import XLAAccelerator

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
