"""The deterministic chain from a file to the model's tensor: built here, for training and service alike.

Its fingerprint goes into the checkpoint, the MLflow run and the release; a release whose chain this version would not
build the same way is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medopt.config import Intensity, Prepare
from medopt.core.errors import DataError, MedoptError
from medopt.core.provenance import digest
from medopt.core.records import FloatArray, Volume
from medopt.core.telemetry import without_telemetry
from medopt.imaging import read_scan
from medopt.imaging.background import nan_as_background
from medopt.imaging.channels import LUMINANCE, ScanPath, read_case, scan_name, split_channels
from medopt.transforms.percentiles import percentiles
from medopt.transforms.resize import crop_or_pad, fitted, is_too_large, needed_part, resampled, resize

with without_telemetry():
    from monai.transforms import Compose, Transform

# Raise this whenever the chain gives other values for the same configuration.
CHAIN_VERSION = 2
WINDOW_VERSION = 2  # the same for intensity.method: window alone; 2: VOILUTFunction, and LINEAR's half pixel
MIN_VOXELS = 4  # along an axis of a resampled scan
LEVELS = 65535


class ReadScan(Transform):
    """A path (file, series folder or `.npz` member), or those of a case's channels, to a Volume."""

    def __init__(self, config: Prepare) -> None:
        self.config, self.names = config, config.channel_names

    def __call__(self, path: ScanPath) -> Volume:
        """Read the scan; raises DataError naming the file and the reason."""
        if isinstance(path, tuple):
            return read_case(path, self.config)
        if self.names:
            raise DataError(f"{path} is one image, and a case of this study has {len(self.names)}: {self.names_text}.")
        return read_scan(path)

    @property
    def names_text(self) -> str:
        """The names of the channels, for a sentence."""
        return ", ".join(self.names)


class CheckAxes(Transform):
    """The scan has as many axes as the study's input; the first step."""

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def __call__(self, volume: Volume) -> Volume:
        """The volume as it is; raises DataError where it is an image and the study takes volumes, or the reverse."""
        if volume.spatial_dims != self.axes:
            what = "a volume" if volume.spatial_dims == 3 else "a single image"
            raise DataError(f"The scan is {what}, and this study takes {self.axes}-D input (prepare.size).")
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


class ClipIntensity(Transform):
    """Choose which stored values become 0 and 1, and clip to them in place; the volume's window is then that range."""

    def __init__(self, config: Intensity) -> None:
        self.config = config

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to the same array; raises DataError where the scan gives no range. The background is black."""
        lowest, highest = (float(edge) for edge in torch.aminmax(torch.from_numpy(volume.content)))
        if not np.isfinite([lowest, highest]).all():
            raise DataError(
                "The scan holds values that are not finite numbers; export it again or leave it out. Where they are "
                "NaN outside of the body, prepare.nan: background takes them for background."
            )
        low, high = self._range(volume, lowest, highest)
        if high <= low:
            if lowest < highest:
                raise DataError(
                    f"The scan has values from {lowest:g} to {highest:g}, but its range for 0 to 1 is empty ({low:g} "
                    f"to {high:g}), so all of it would become black; map intensities in another way (intensity.method)."
                )
            low, high = lowest, lowest + 1  # a constant image is black
        torch.from_numpy(volume.array).clamp_(low, high)
        if volume.background is not None:
            volume.array[:, volume.background] = low
        return replace(volume, window=((low + high) / 2, high - low), window_function="LINEAR_EXACT", background=None)

    def _range(self, volume: Volume, lowest: float, highest: float) -> tuple[float, float]:
        method = self.config.method
        if method == "range":
            return self.config.low, self.config.high
        if method == "window":
            return _apply_window(volume)
        if method == "minmax":
            return lowest, highest
        return percentiles(volume.content, self.config.low, self.config.high)


def _apply_window(volume: Volume) -> tuple[float, float]:
    """The range of the scan's own window; a curve or a step (PS3.3 C.11.2.1) is applied in place, to 0 to 1."""
    if volume.window is None:
        raise DataError("The scan names no window, and the study maps intensities by it (intensity.method).")
    center, width = volume.window
    if volume.window_function == "SIGMOID":
        torch.from_numpy(volume.array).sub_(center).mul_(4 / width).sigmoid_()
        return 0.0, 1.0
    if volume.window_function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:  # black up to the centre, and white above
        np.greater(volume.array, center, out=volume.array, casting="unsafe")
        return 0.0, 1.0
    return center - width / 2, center + width / 2


class NanAsBackground(Transform):
    """Voxels that are not a number show nothing (prepare.nan: background)."""

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to the same array; raises DataError where nothing else is left."""
        return nan_as_background(volume)


class ResampleSpacing(Transform):
    """Bring the voxels to a spacing in millimetres, of so much of the scan as is needed."""

    def __init__(self, config: Prepare) -> None:
        self.config = config

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to (C, *round(space * have / wanted)).

        Raises DataError where the scan names no spacing, or one with which too much or hardly anything would be left.
        """
        want = self.config.spacing_mm or volume.spacing_mm
        if not volume.has_spacing:
            raise DataError("The scan does not say how large its pixels are, and this study resamples to spacing_mm.")
        array, shape = volume.array, volume.array.shape[1:]
        if part := needed_part(shape, volume.spacing_mm, self.config):
            array = np.ascontiguousarray(array[(slice(None), *part)])
        size = resampled(array.shape[1:], volume.spacing_mm, want)
        too_small = any(new < min(MIN_VOXELS, old) for new, old in zip(size, array.shape[1:], strict=True))
        if too_small or is_too_large(array.shape[1:], size):
            raise DataError(
                f"The scan is {_by(shape)} voxels of {_by(volume.spacing_mm)} mm; at {_by(want)} mm "
                f"(prepare.spacing_mm) it would be {_by(size)}, too {'small' if too_small else 'large'}. Its spacing "
                "is probably wrong: correct it at its source, or leave the scan out."
            )
        return replace(volume, array=resize(torch.from_numpy(array), size).numpy(), spacing_mm=tuple(want))


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


class Resize(Transform):
    """Bring the image toward the model's size: each axis to it, or all by one factor so that the image fits."""

    def __init__(self, config: Prepare) -> None:
        self.config = config

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to (C, *resized); raises DataError where the pixels are so far from square that it explodes."""
        image = torch.from_numpy(np.ascontiguousarray(volume.array))
        spacing = volume.spacing_mm if self.config.spacing_mm is None else None  # else the study chose their shape
        size = fitted(image.shape[1:], self.config.size, self.config.fit, spacing)
        if is_too_large(image.shape[1:], size):
            raise DataError(
                f"The scan would be {_by(size)} pixels large: its pixels of {_by(volume.spacing_mm)} are wrong."
            )
        return replace(volume, array=resize(image, size).numpy())


class ToUnitRange(Transform):
    """The chosen range to 0..1, in steps of 1/65535. After resizing: both are linear, and fewer pixels are left.

    The steps are those that the cache keeps, so that a cached image and a served one are the same to the bit.
    """

    def __call__(self, volume: Volume) -> Volume:
        """(C, *space) to the same shape."""
        center, width = volume.window or (0.5, 1.0)
        array = (volume.array - np.float32(center - width / 2)) * np.float32(LEVELS / width)
        return replace(volume, array=from_levels(np.rint(np.clip(array, 0, LEVELS, out=array), out=array)))


class CropOrPad(Transform):
    """Cut or zero-fill what is left around the centre; the last step: gives a tensor."""

    def __init__(self, size: list[int]) -> None:
        self.size = size

    def __call__(self, volume: Volume) -> Tensor:
        """(C, *space) to a float32 tensor (C, *size)."""
        image = crop_or_pad(torch.from_numpy(np.ascontiguousarray(volume.array)), self.size)
        return image.contiguous(memory_format=torch.contiguous_format)


class PrepareChain(Transform):
    """The deterministic chain of a study: a path or a Volume to a float32 tensor (C, *size) with values in 0..1.

    `size` is (H, W) or (D, H, W) and C the channels of the `prepare` section. `fingerprint` is a SHA-256 of the section
    and of the chain's version; two chains with the same fingerprint give the same tensors, to the bit. It is a MONAI
    Transform. Raises DataError naming the file and the reason.

    >>> import medopt
    >>> manifest = medopt.draw_study("phantom-data/phantom", patients=30)
    >>> chain = PrepareChain(Prepare(size=[96, 96]))
    >>> image = chain(manifest.parent / "images/site_a/phantom-a001_1.dcm")
    >>> image.shape, float(image.min()), float(image.max())
    (torch.Size([1, 96, 96]), 0.0, 1.0)
    >>> chain.fingerprint[:16]
    '06b58ec76f3bb2ed'
    """

    def __init__(self, config: Prepare) -> None:
        self.config = config
        self.fingerprint = _fingerprint(config)
        self.read = ReadScan(config)
        self._mappings = [Compose(_steps(config, intensity)) for intensity in config.intensity.parts]

    def __call__(self, scan: ScanPath | Volume) -> Tensor:
        """Prepare one scan, of which a Volume stays as it is; raises DataError naming the file and the reason.

        Where a case has several images, `scan` is a tuple of their paths in the order of `prepare.channels`.
        """
        if isinstance(scan, Volume):
            return self.consume(replace(scan, array=scan.array.copy()))
        return self.consume(self.read(scan), f"{scan_name(scan)}: ")

    def consume(self, volume: Volume, where: str = "") -> Tensor:
        """Prepare a Volume whose array is no longer needed: the steps work in place, and hold a large scan only once.

        Raises DataError, which begins with `where`.
        """
        names = self.config.channel_names
        if not names:
            return self._one(volume, where)
        parts: list[Tensor] = []
        present = split_channels(volume, len(names))
        for name, one in zip(names, present, strict=True):
            if one is None and self.config.missing_channel == "refuse":
                raise DataError(f"{where}The image {name} is missing (prepare.missing_channel: refuse).")
            parts.append(torch.zeros(1, *self.config.size) if one is None else self._one(one, f"{where}{name}: "))
        if self.config.missing_channel == "zeros":
            parts += [torch.full((1, *self.config.size), float(one is not None)) for one in present]
        return torch.cat(parts)

    def _one(self, volume: Volume, where: str) -> Tensor:
        """One image, (1, *size) or with the channels of the study: those of the input, or its windows."""
        *others, last = self._mappings
        try:
            parts = [steps(replace(volume, array=volume.array.copy())) for steps in others]
            return torch.cat([*parts, last(volume)]) if parts else last(volume)
        except RuntimeError as error:
            # Compose wraps whatever a step raises; a refusal must keep its own words.
            if isinstance(error.__cause__, MedoptError):
                raise DataError(f"{where}{error.__cause__}") from None
            raise


def _steps(config: Prepare, intensity: Intensity) -> list[Transform]:
    """The steps from a Volume to a tensor, with one mapping of its intensities."""
    steps: list[Transform] = [CheckAxes(len(config.size))]
    if config.nan == "background":
        steps.append(NanAsBackground())
    of_an_image = 1 if isinstance(config.channels, list) else config.channels
    steps += [SetChannels(of_an_image), ClipIntensity(intensity)]
    if config.spacing_mm is not None:
        steps.append(ResampleSpacing(config))
    return [*steps, Resize(config), ToUnitRange(), CropOrPad(config.size)]


def _fingerprint(config: Prepare) -> str:
    """A chain keeps its fingerprint where a later version of medopt gives the same values for its settings."""
    later = {"nan"} if config.nan == "refuse" else set()  # settings that 0.1.0 did not have
    later |= set() if config.channel_names else {"channel_grid", "missing_channel"}
    later |= {"channel_frames"} if config.channel_frames == "same" else set()
    later |= {"channel_patients"} if config.channel_patients == "same" else set()
    facts = {"chain": CHAIN_VERSION, "prepare": config.model_dump(mode="json", exclude=later)}
    return digest(facts | ({"window": WINDOW_VERSION} if config.intensity.method == "window" else {}))


def from_levels(levels: NDArray[Any]) -> FloatArray:
    """Whole numbers from 0 to LEVELS to float32 in 0..1."""
    return np.multiply(levels, np.float32(1 / LEVELS), dtype=np.float32)
