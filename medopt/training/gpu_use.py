"""How busy a GPU is while work is done on it, as nvidia-smi samples it. Never run on a GPU yet."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_EVERY = "200"  # milliseconds


@contextmanager
def watched_utilisation(device: torch.device) -> Iterator[list[float]]:
    """The utilisation of a CUDA device, 0 to 1, sampled until the block ends: only then the list is filled.

    It stays empty for other devices, without nvidia-smi, and where the block is over before the first sample.
    """
    samples: list[float] = []
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        yield samples
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", _EVERY]
    process = subprocess.Popen(
        [*query, "-i", _name(device)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield samples
    finally:
        process.terminate()
        samples += [float(line) / 100 for line in process.communicate()[0].split() if line.isdigit()]


def _name(device: torch.device) -> str:
    """What nvidia-smi calls a device of torch: CUDA_VISIBLE_DEVICES renumbers torch's alone."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def peak_gib(device: torch.device) -> float | None:
    """GiB of a CUDA device that tensors took at most so far; None of another device."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
