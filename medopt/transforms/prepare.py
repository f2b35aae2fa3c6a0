"""The deterministic chain from a file to the model's tensor: built here, for training and service alike.

Its fingerprint goes into the checkpoint, the MLflow run and the release; a release whose chain this version would not
build the same way is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, Transform
from numpy.typing import NDArray
from torch import Tensor

from medopt.config import Intensity, Prepare
from medopt.errors import DataError, MedoptError
from medopt.imaging import read_scan
from medopt.provenance import digest
from medopt.records import FloatArray, Volume
from medopt.transforms.resize import fit, resize

# Raise this whenever the chain gives other values for the same configuration.
CHAIN_VERSION = 1
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PS3.3 C.7.6.3.1.2 (YBR_FULL)
_EXACT_BELOW = 200_000
_BINS = 4096
_COUNTED = 2**17


class ReadScan(Transform):
    """A path (file, series folder or `.npz` member) to a Volume."""

    def __call__(self, path: str | Path) -> Volume:
        """Read the scan; raises DataError naming the file and the reason."""
        return read_scan(path)


class CheckAxes(Transform):
    """The scan has as many axes as the study's input; the first step."""

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def __call__(self, volume: Volume) -> Volume:
        """The volume as it is; raises DataError where it is an image and the study takes volumes, or the reverse."""
        if volume.spatial_dims != self.axes:
            kind = "a volume" if volume.spatial_dims == 3 else "a single image"
            raise DataError(f"The scan is {kind}, and this study takes {self.axes}-D input (prepare.size).")
        return volume


class SetChannels(Transform):
    """One channel (luminance of colour) or three (grey repeated)."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to (channels, *space)."""
        have = volume.array.shape[0]
        if have == self.channels:
            return volume
        if have == 3 and self.channels == 1:
            grey = np.tensordot(np.asarray(LUMINANCE, np.float32), volume.array, axes=1)[None]
            return replace(volume, array=grey)
        if have == 1:
            return replace(volume, array=np.repeat(volume.array, self.channels, axis=0))
        raise DataError(f"A scan has {have} channels; this study takes 1 or 3.")


class MapIntensity(Transform):
    """Stored values to 0..1, clipped."""

    def __init__(self, config: Intensity) -> None:
        self.config = config

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to the same shape; raises DataError where the scan gives no range."""
        least, most = float(volume.array.min()), float(volume.array.max())
        if not np.isfinite([least, most]).all():
            raise DataError("The scan holds values that are not finite numbers; export it again or leave it out.")
        low, high = self._range(volume)
        if high <= low:
            if least < most:
                raise DataError(
                    f"The scan has values from {least:g} to {most:g}, but its range for 0 to 1 is empty ({low:g} to "
                    f"{high:g}), so all of it would become black; map intensities in another way (intensity.method)."
                )
            return replace(volume, array=np.zeros_like(volume.array))
        out = np.subtract(volume.array, np.float32(low))
        out *= np.float32(1 / (high - low))
        return replace(volume, array=np.clip(out, 0, 1, out=out))

    def _range(self, volume: Volume) -> tuple[float, float]:
        method = self.config.method
        if method == "range":
            return self.config.low, self.config.high
        if method == "window":
            if volume.window is None:
                raise DataError("The scan names no window, and the study maps intensities by it (intensity.method).")
            center, width = volume.window
            return center - width / 2, center + width / 2
        if method == "minmax":
            return float(volume.array.min()), float(volume.array.max())
        return percentiles(volume.array, self.config.low, self.config.high)


class ResampleSpacing(Transform):
    """Bring the voxels to a spacing in millimetres."""

    def __init__(self, spacing_mm: list[float]) -> None:
        self.spacing_mm = spacing_mm

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to (C, *round(space * have / wanted)); raises DataError where the scan names no spacing."""
        if volume.source.get("spacing", "").startswith("unknown"):
            raise DataError("The scan does not say how large its pixels are, and this study resamples to spacing_mm.")
        shape = volume.array.shape[1:]
        wanted = zip(shape, volume.spacing_mm, self.spacing_mm, strict=True)
        size = [max(1, round(n * have / want)) for n, have, want in wanted]
        array = resize(torch.from_numpy(volume.array), size).numpy()
        return replace(volume, array=array, spacing_mm=tuple(self.spacing_mm))


class FitSize(Transform):
    """Bring the image to the model's size; the last step: gives a tensor."""

    def __init__(self, size: list[int], how: str) -> None:
        self.size, self.how = size, how

    def __call__(self, volume: Volume) -> Tensor:
        """(C, *space) to a float32 tensor (C, *size)."""
        return fit(torch.from_numpy(np.ascontiguousarray(volume.array)), self.size, self.how)


class PrepareChain(Transform):
    """Path or Volume to a float32 tensor (C, *size) with values in 0..1, by MONAI's Compose."""

    def __init__(self, config: Prepare) -> None:
        self.config = config
        self.fingerprint = digest({"chain": CHAIN_VERSION, "prepare": config.model_dump(mode="json")})
        steps: list[Transform] = [
            CheckAxes(len(config.size)),
            SetChannels(config.channels),
            MapIntensity(config.intensity),
        ]
        if config.spacing_mm is not None:
            steps.append(ResampleSpacing(config.spacing_mm))
        self._read = ReadScan()
        self._steps = Compose([*steps, FitSize(config.size, config.fit)])

    def __call__(self, scan: str | Path | Volume) -> Tensor:
        """Prepare one scan; raises DataError naming the file and the reason."""
        volume = scan if isinstance(scan, Volume) else self._read(scan)
        try:
            return self._steps(volume)
        except RuntimeError as error:
            # Compose wraps whatever a step raises; a refusal must keep its own words.
            if isinstance(error.__cause__, MedoptError):
                where = "" if isinstance(scan, Volume) else f"{scan}: "
                raise DataError(f"{where}{error.__cause__}") from None
            raise


def percentiles(array: FloatArray, low: float, high: float) -> tuple[float, float]:
    """Two percentiles of an array, exact below 200 000 values and where all are whole numbers, as stored ones are.

    Else a histogram finds the bin and a second one inside it finds the value: the error stays below 1/4096 of a
    4096th of the range. Either way at a fraction of a sort's cost.
    """
    flat = array.ravel()
    if flat.size < _EXACT_BELOW:
        first, second = np.percentile(flat, [low, high])
        return float(first), float(second)
    tensor = torch.from_numpy(flat)
    bottom, top = (float(edge) for edge in torch.aminmax(tensor))
    if not np.isfinite([bottom, top]).all() or bottom == top:
        return bottom, top
    if top - bottom < _COUNTED and torch.equal(whole := tensor.to(torch.int32), tensor):
        ranks = np.cumsum(np.bincount((whole - int(bottom)).numpy()))
        first, second = (bottom + _counted(ranks, q / 100 * (flat.size - 1)) for q in (low, high))
        return first, second
    return _quantile(tensor, low / 100, bottom, top), _quantile(tensor, high / 100, bottom, top)


def _counted(ranks: NDArray[np.int64], rank: float) -> float:
    """The value at a fractional rank, from cumulated counts, interpolated as numpy does."""
    lower, upper = np.searchsorted(ranks, [np.floor(rank), np.ceil(rank)], side="right")
    return float(lower + (upper - lower) * (rank % 1))


def _quantile(values: Tensor, q: float, bottom: float, top: float) -> float:
    rank = q * (values.numel() - 1)
    below = 0.0
    for _ in range(2):
        counts = torch.histc(values, _BINS, bottom, top).double().cumsum(0) + below
        bin_ = int(torch.searchsorted(counts, rank, right=True).clamp(max=_BINS - 1))
        below = float(counts[bin_ - 1]) if bin_ else below
        width = (top - bottom) / _BINS
        bottom, top = bottom + bin_ * width, bottom + (bin_ + 1) * width
        if top <= bottom:
            break
    return (bottom + top) / 2
