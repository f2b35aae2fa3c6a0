"""Where prepared images lie while a network trains: in files, in main memory or on the device. The same to the bit.

They stay as they are stored, mostly as 16-bit levels, and become float32 where they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from medopt.core.errors import ConfigError
from medopt.data.cache import load_stored
from medopt.transforms.prepare import LEVELS

Residence = Literal["device", "host", "disk"]
SHARE = 0.4
"""Share of the free memory that images may take where nobody asked for it: the network needs the rest."""
_AT_ONCE = 64


class Images(Protocol):
    """The prepared images of a split."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Tensor:
        """Those of these numbers (N, C, *size), as they are stored; levels as the bits of int16."""


class FileImages:
    """Images that are read from their files each time."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Read them; raises StorageError where a file vanished."""
        return torch.stack([_stored(self.files[index]) for index in indices])


class HeldImages:
    """All images in one tensor, in main memory or on a device."""

    def __init__(self, files: Sequence[Path], device: torch.device, *, pins: bool = False) -> None:
        """Read all files onto `device`; `pins` prepares what is taken for a GPU to copy by itself."""
        first = _stored(files[0])
        self.stored, self.pins = torch.empty((len(files), *first.shape), dtype=first.dtype, device=device), pins
        for start in range(0, len(files), _AT_ONCE):
            part = torch.stack([_stored(path) for path in files[start : start + _AT_ONCE]])
            self.stored[start : start + len(part)] = part.to(device)

    def __len__(self) -> int:
        return len(self.stored)

    def take(self, indices: Sequence[int]) -> Tensor:
        """Gather them where they lie."""
        taken = self.stored.index_select(0, torch.tensor(indices, device=self.stored.device))
        return taken.pin_memory() if self.pins else taken


def images_of(files: Sequence[Path] | Images) -> Images:
    """Images, of which there may be only the files."""
    return files if hasattr(files, "take") else FileImages(files)


def _stored(path: Path) -> Tensor:
    values = load_stored(path)
    return torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)


def as_images(stored: Tensor) -> Tensor:
    """Stored images as float32 in 0..1, on their device: what `load_prepared` reads, to the bit."""
    if stored.dtype != torch.int16:
        return stored
    if stored.device.type == "cpu":
        return stored.view(torch.uint16).float().mul_(1 / LEVELS)
    return widened(stored).mul_(1 / LEVELS)


def widened(levels: Tensor) -> Tensor:
    """The bits of int16, read as numbers from 0 to 65535, in float32; for devices that do not know uint16."""
    return levels.int().bitwise_and_(LEVELS).float()


def stored_bytes(files: Sequence[Path]) -> int:
    """What all images of one size take in memory."""
    return _stored(files[0]).nbytes * len(files) if files else 0


def choose_residence(
    setting: Literal["auto"] | Residence, needed: int, device: int | None, host: int
) -> tuple[Residence, str]:
    """Where images of `needed` bytes go, and why; `device` and `host` are the free bytes there (None: a CPU trains).

    Raises ConfigError where they do not fit the place that was asked for.
    """
    free = {"device": host if device is None else device, "host": host}
    if setting == "disk":
        return "disk", "as the study says"
    if setting != "auto":
        if needed > free[setting]:
            raise ConfigError(
                f"training.residence is {setting}, but the prepared images take {needed / 2**30:.1f} GiB and "
                f"{free[setting] / 2**30:.1f} GiB are free there. Set training.residence: auto."
            )
        return setting, "as the study says"
    if device is None:
        return "disk", "a CPU trains, and the system keeps files in memory"
    if needed <= SHARE * device:
        return "device", f"{needed / 2**30:.1f} GiB of images, {device / 2**30:.1f} GiB free on the GPU"
    if needed <= SHARE * host:
        return "host", f"{needed / 2**30:.1f} GiB of images are too many for the GPU; main memory has room"
    return "disk", f"{needed / 2**30:.1f} GiB of images are too many for the memory"
