"""The rules that turn a fingerprint of the data into settings. Each decision has its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from medopt.core.format import count_text
from medopt.planning.fingerprint import Fingerprint

MAX_SIDE = {"cpu": 256, "cuda": 512}
"""Longest side of an image in pixels, so that training takes minutes to an hour."""
MAX_VOXELS = {"cpu": 64**3, "cuda": 128**3}
_EXPOSED = {"CR", "DX", "MG", "RG", "XA", "RF", "IO", "PX"}
SHIFTS = dict.fromkeys(_EXPOSED, "radiograph") | {"CT": "ct", "MR": "mr", "US": "ultrasound", "IVUS": "ultrasound"}
STEPS = 1400
"""Training steps that a small network needs, as measured."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One setting of the study file, and the reason for it."""

    key: str
    value: Any
    reason: str


def decide(fingerprint: Fingerprint, device: str, modality: str = "") -> list[Decision]:
    """Settings for the data, in the order of the study file.

    `device` is cpu or cuda; `modality` (CT, MR, DX, ...) replaces that of the scans.

    >>> decisions = decide(take_fingerprint(cases, labels, "binary", folder), "cpu")  # doctest: +SKIP
    """
    size, decisions = _size(fingerprint, device)
    batch = _batch(fingerprint)
    return [
        *decisions,
        *_values(fingerprint, modality or fingerprint.modality),
        *_augmentation(fingerprint, modality or fingerprint.modality),
        *_model(fingerprint, size),
        *_training(fingerprint, batch),
    ]


def _size(fingerprint: Fingerprint, device: str) -> tuple[list[int], list[Decision]]:
    return _image_size(fingerprint, device) if fingerprint.dims == 2 else _volume_size(fingerprint, device)


def _image_size(fingerprint: Fingerprint, device: str) -> tuple[list[int], list[Decision]]:
    """Images keep their size where it is small enough; else the longest side is reduced."""
    shapes = fingerprint.square_sizes()
    low, middle, high = (tuple(np.quantile(shapes, quantile, axis=0).tolist()) for quantile in (0, 0.5, 1))
    max_side = MAX_SIDE[device]
    if low == high and max(middle) <= max_side:
        size, fit = [round(side) for side in middle], "stretch"
        why = "all images have this size already"
    else:
        aspect = float(np.median(shapes[:, 1] / shapes[:, 0]))
        longest = min(max_side, _multiple(max(middle), 32))
        size = [_multiple(longest * min(1, 1 / aspect), 32), _multiple(longest * min(1, aspect), 32)]
        same = float(np.ptp(shapes[:, 1] / shapes[:, 0])) < 0.05
        fit = "stretch" if same and 0.95 < aspect / (size[1] / size[0]) < 1.05 else "pad"
        span = f"{_joined(low)} to {_joined(high)}" if low != high else _joined(low)
        square = " square" if any(image.aspect != 1 for image in fingerprint.sample) else ""
        why = f"images are {span}{square} pixels; at most {max_side} on a side for {_device_text(device)}"
    shape_why = "all have one shape" if fit == "stretch" else "shapes differ: the aspect is kept, the rest is filled"
    return size, [Decision("prepare.size", size, why), Decision("prepare.fit", fit, shape_why)]


def _volume_size(fingerprint: Fingerprint, device: str) -> tuple[list[int], list[Decision]]:
    """Volumes keep their median spacing where they fit as a whole; else the finest axes become coarser first."""
    spacing, max_voxels = fingerprint.spacing_mm(), MAX_VOXELS[device]
    if spacing is None:
        size = [_multiple(side, 4) for side in _reduced(np.array(fingerprint.sizes(0.5)), max_voxels)]
        median = _joined(fingerprint.sizes(0.5))
        why = f"not all volumes give a spacing; the median is {median} voxels, at most {max_voxels} are kept"
        return size, [
            Decision("prepare.size", size, why),
            Decision("prepare.fit", "stretch", "without a spacing, volumes are only comparable as a whole"),
        ]
    extent, step = np.array(fingerprint.extents_mm(0.95)), np.array(spacing)
    while np.prod(np.ceil(extent / step)) > max_voxels:
        finest = step < 1.05 * step.min()
        step[finest] *= 1.03
    rounded = [float(f"{value:.3g}") for value in step]
    size = [_multiple(np.ceil(side), 4) for side in extent / rounded]
    coarser = "" if np.allclose(rounded, spacing, rtol=0.01) else f", made coarser to stay near {max_voxels} voxels"
    return size, [
        Decision("prepare.size", size, f"19 of 20 volumes fit: they span {_joined(extent.tolist())} mm"),
        Decision("prepare.spacing_mm", rounded, f"the median is {_joined(spacing)} mm{coarser}"),
        Decision("prepare.fit", "crop_or_pad", "a millimetre stays a millimetre in all volumes"),
    ]


def _reduced(size: Any, max_voxels: int) -> list[float]:
    while np.prod(size) > max_voxels:
        size = np.where(size > 0.95 * size.max(), size * 0.97, size)
    return [float(side) for side in size]


def _values(fingerprint: Fingerprint, modality: str) -> Iterator[Decision]:
    prepare = fingerprint.prepare
    names = list(prepare.channel_names) if prepare else []
    colour = sum(image.colour for image in fingerprint.sample)
    yield Decision(
        "prepare.channels",
        names or (3 if colour > len(fingerprint.sample) / 2 else 1),
        f"{colour} of {len(fingerprint.sample)} sampled images have colour"
        if not names
        else "the manifest's columns image:NAME; each image is scaled by its own intensities",
    )
    if prepare and prepare.missing_channel == "zeros":
        yield Decision("prepare.missing_channel", "zeros", "some cases lack an image; the network is told which")
    if names:
        how, why = {"method": "percentiles", "low": 0.5, "high": 99.5}, "each channel has a unit of its own"
    elif modality == "CT":
        low = 50 * np.floor(np.median([image.low for image in fingerprint.sample]) / 50)
        high = 50 * np.ceil(np.median([image.high for image in fingerprint.sample]) / 50)
        how = {"method": "range", "low": float(max(low, -1024)), "high": float(max(high, low + 100))}
        why = "HU mean the same on every scanner: one range for all, from the 0.5 to the 99.5 percentile"
    elif all(image.eight_bit and not image.modality for image in fingerprint.sample):
        how, why = {"method": "range", "low": 0.0, "high": 255.0}, "8-bit images as they are"
    else:
        how = {"method": "percentiles", "low": 0.5, "high": 99.5}
        lows, highs = [image.low for image in fingerprint.sample], [image.high for image in fingerprint.sample]
        why = f"values have no unit and run to {min(highs):g} in one scan, {max(highs):g} in another" + (
            f", from {min(lows):g}" if min(lows) < 0 else ""
        )
    yield Decision("prepare.intensity", how, why)
    if unknown := sum(image.nan for image in fingerprint.sample):
        why = f"{unknown} of {len(fingerprint.sample)} sampled images have NaN, as SPM writes outside the body"
        yield Decision("prepare.nan", "background", why)


def _augmentation(fingerprint: Fingerprint, modality: str) -> Iterator[Decision]:
    sided = modality in {"CR", "DX", "RG"}
    yield Decision(
        "augment.flip",
        [] if sided else ["left_right"],
        "a mirrored radiograph shows the heart on the other side" if sided else "a mirrored image is as likely",
    )
    if modality in SHIFTS:
        yield Decision("augment.shift", SHIFTS[modality], f"the scans are {modality}: other scanners are simulated")
        share = 0.25 if fingerprint.train < 1000 else 0.5
        why = "few images: most of them as they are" if share < 0.5 else "every second image"
        yield Decision("augment.shift_probability", share, why)
    else:
        why = f"no simulated scanner for {modality}" if modality else "the scans do not say what made them (--modality)"
        yield Decision("augment.shift", "none", why)


def _model(fingerprint: Fingerprint, size: list[int]) -> Iterator[Decision]:
    count = fingerprint.train
    depth = 26 if count < 10_000 else 50
    width = 0.25 if count < 2_000 else 0.5 if count < 50_000 else 1.0
    stem = "small" if min(size) < 48 else "medium" if min(size) < 96 else "large"  # as model.stem: auto does
    if fingerprint.dims == 3:
        width, stem = width / 2, "large" if min(size) >= 64 else "medium"
    why = "a deeper network would overfit" if depth == 26 else "enough for 50 layers"
    yield Decision("model.depth", depth, f"{count_text(count, 'training image')}: {why}")
    yield Decision("model.width", width, "of the published channels, for the same reason")
    yield Decision("model.stem", stem, f"the shortest side is {min(size)}: " + _STEMS[stem])


_STEMS = {
    "small": "no early halving",
    "medium": "halved once before the blocks",
    "large": "halved twice before the blocks, as published",
}


def _batch(fingerprint: Fingerprint) -> int:
    most = 8 if fingerprint.dims == 3 else 32 if fingerprint.train >= 5_000 else 16
    return int(np.clip(fingerprint.train // 8, 2, most))


def _training(fingerprint: Fingerprint, batch: int) -> Iterator[Decision]:
    steps = max(1, fingerprint.train // batch)
    epochs = int(np.clip(round(STEPS / steps), 10, 100 if fingerprint.dims == 2 else 60))
    yield Decision("training.batch_size", batch, f"{steps} steps an epoch")
    yield Decision("training.epochs", epochs, f"about {epochs * steps} steps")
    yield Decision("training.patience", epochs, "the cycle ends near zero rate; its last third is where the gain is")
    ema = 0.99 if epochs * steps > 1000 else 0.98
    yield Decision("training.ema_decay", ema, f"averages the last {round(1 / (1 - ema))} steps")
    where = " of which it is known" if fingerprint.rarest is not None else ""
    why = f"the rarest class is {fingerprint.rarest_share:.0%} of the training images{where}"
    yield Decision("training.class_weights", "none", f"{why}; weights would shift every probability")
    yield Decision("training.optimizer", {"name": "adamw", "lr": 0.002, "weight_decay": 0.05}, "a sound start")
    yield Decision("training.schedule", {"name": "one_cycle", "warmup": 0.2}, "the rate rises, then falls to near zero")


def _multiple(value: float, of: int) -> int:
    return max(8, of * round(value / of)) if value >= of else max(8, round(value))


def _joined(values: Any) -> str:
    return " x ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)


def _device_text(device: str) -> str:
    return "training on a CPU" if device == "cpu" else "training on a GPU"
