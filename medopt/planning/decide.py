"""The rules that turn a fingerprint of the data into settings. Each decision has its reason."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from medopt.config import Training
from medopt.core.format import count_text
from medopt.models.geometry import fit_geometry
from medopt.planning.fingerprint import Fingerprint
from medopt.planning.size import EXPOSED, MAX_SIDE, MAX_VOXELS, Decision, Effort, Network, plan_size

__all__ = ["MAX_SIDE", "MAX_STEPS", "MAX_VOXELS", "SHIFTS", "Decision", "decide"]

SHIFTS = dict.fromkeys(EXPOSED, "radiograph") | {"CT": "ct", "MR": "mr", "US": "ultrasound", "IVUS": "ultrasound"}
MIN_STEPS = 1000
"""Training steps that a small network needs, as measured."""
MAX_STEPS = {"cpu": 10_000, "cuda": 30_000}
"""Steps after which large data bring little more, or a CPU takes too long."""
MEMORY = {"cpu": 8 * 10**9, "cuda": 16 * 10**9}
"""Bytes that are taken for free where nobody says how many are."""
WIDE_HU = 1000
"""From here on a range of HU holds lung and soft tissue, or soft tissue and dense bone."""
WINDOWS = [[-600.0, 1500.0], [50.0, 400.0], [400.0, 1800.0]]
"""Center and width in HU for lung, soft tissue and bone, as on any CT console."""
_USUAL = Training()


def decide(fingerprint: Fingerprint, device: str, modality: str = "", memory: int | None = None) -> list[Decision]:
    """Settings for the data, in the order of the study file.

    `device` is cpu or cuda, and `memory` the bytes that are free there; `modality` (CT, MR, DX, ...) replaces that of
    the scans.

    >>> decisions = decide(take_fingerprint(cases, labels, "binary", folder), "cpu")  # doctest: +SKIP
    """
    modality = modality or fingerprint.modality
    values = list(_values(fingerprint, modality))
    network, effort = _network(fingerprint, device), _effort(fingerprint, device, memory)
    prepare = {one.key.partition(".")[2]: one.value for one in values}
    plan = plan_size(fingerprint, modality, prepare, network, effort)
    return [
        *plan.decisions,
        *values,
        *_augmentation(fingerprint, modality),
        *_model(fingerprint, network, plan.size, plan.spacing),
        *_training(fingerprint, effort, plan.micro_batch),
    ]


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
        how, why = _hounsfield(fingerprint)
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


def _hounsfield(fingerprint: Fingerprint) -> tuple[dict[str, object], str]:
    """One range of HU for all scans; where it spans lung and bone, the usual windows, each a channel."""
    tissue = [image.tissue or (image.low, image.high) for image in fingerprint.sample]
    low, high = np.median(tissue, axis=0)
    low, high = 50 * np.floor(low / 50), 50 * np.ceil(high / 50)
    if high - low >= WIDE_HU:
        why = f"the scans reach from {low:g} to {high:g} HU: a channel each for lung, soft tissue and bone"
        return {"method": "windows", "windows": WINDOWS}, why
    why = "HU mean the same on every scanner: one range for all, from the 0.5 to the 99.5 percentile"
    why += " of the voxels that are not air" if any(image.tissue for image in fingerprint.sample) else ""
    return {"method": "range", "low": float(max(low, -1024)), "high": float(max(high, low + 100))}, why


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


def _network(fingerprint: Fingerprint, device: str) -> Network:
    """Depth and width for so many training images; of volumes half the width. A CPU has no time for a wide network."""
    count = fingerprint.train
    width = 0.25 if count < 2_000 else 0.5 if count < 50_000 or device == "cpu" else 1.0
    return Network(26 if count < 10_000 else 50, width / 2 if fingerprint.dims == 3 else width)


def _effort(fingerprint: Fingerprint, device: str, memory: int | None) -> Effort:
    """Images of a step, and how often training goes through all: medopt's own recipe within bounds of steps."""
    largest = 8 if fingerprint.dims == 3 else int(_USUAL.batch_size)
    batch = int(np.clip(fingerprint.train // 8, 2, largest))
    steps = max(1, fingerprint.train // batch)
    least = min(-(-MIN_STEPS // steps), 200 if fingerprint.dims == 2 else 100)
    epochs = max(1, min(max(_USUAL.epochs, least), MAX_STEPS[device] // steps))
    return Effort(device, memory or MEMORY[device], fingerprint.train, batch, epochs)


def _model(
    fingerprint: Fingerprint, network: Network, size: list[int], spacing: list[float] | None
) -> Iterator[Decision]:
    why = "a deeper network would overfit" if network.depth == 26 else "enough for 50 layers"
    yield Decision("model.depth", network.depth, f"{count_text(fingerprint.train, 'training image')}: {why}")
    yield Decision("model.width", network.width, "of the published channels, for the same reason")
    geometry = fit_geometry(size, spacing)
    chosen = geometry.settings()
    yield Decision("model.stem", geometry.stem, f"the longest side is {max(size)}: {_STEMS[geometry.stem]}")
    if chosen["strides"] != "isotropic":
        last = " x ".join(str(round(side)) for side in np.divide(size, np.prod(geometry.strides, axis=0)))
        why = f"stem, its pooling, layer2 to layer4, an axis: {_coarse(size, spacing)}; {last} positions are left"
        yield Decision("model.strides", chosen["strides"], why)
    if chosen["kernels"] != "isotropic":
        why = "stem, layer1 to layer4, an axis: slices are mixed once the plane is as coarse"
        yield Decision("model.kernels", chosen["kernels"], why)


def _coarse(size: list[int], spacing: list[float] | None) -> str:
    if spacing and max(spacing) >= 2 * min(spacing):
        return f"a step of {max(spacing):g} mm is not halved before those of {min(spacing):g} mm have caught up"
    return f"an axis of {min(size)} is halved less often than one of {max(size)}"


_STEMS = {
    "small": "no early halving",
    "medium": "halved once before the blocks",
    "large": "halved twice before the blocks, as published",
}


def _training(fingerprint: Fingerprint, effort: Effort, micro_batch: int | None) -> Iterator[Decision]:
    total = effort.epochs * effort.steps
    yield Decision("training.batch_size", effort.batch, f"{effort.steps} steps an epoch")
    if micro_batch is not None:
        why = f"this many images at once fit into {effort.memory / 1e9:.0f} GB; gradients add up to the same step"
        yield Decision("training.micro_batch", micro_batch, why)
    bound = MAX_STEPS[effort.device] // effort.steps
    why = f"{total} steps"
    if effort.epochs > _USUAL.epochs:
        why += f", as {_USUAL.epochs} epochs of so few images have less than {MIN_STEPS}"
    elif effort.epochs == max(1, bound):
        more = "take a CPU too long" if effort.device == "cpu" else "bring little"
        why += f"; more than {MAX_STEPS[effort.device]} {more}, however many images there are"
    yield Decision("training.epochs", effort.epochs, why)
    yield Decision("training.patience", effort.epochs, "the cycle ends near zero rate; its last third brings the gain")
    ema = _USUAL.ema_decay if total >= MIN_STEPS else 0.98
    yield Decision("training.ema_decay", ema, f"averages the last {round(1 / (1 - ema))} steps")
    where = " of which it is known" if fingerprint.rarest is not None else ""
    why = f"the rarest class is {fingerprint.rarest_share:.0%} of the training images{where}"
    yield Decision("training.class_weights", "none", f"{why}; weights would shift every probability")
    optimizer = _USUAL.optimizer.model_dump(include={"name", "lr", "weight_decay"})
    yield Decision("training.optimizer", optimizer, "medopt's own recipe, as in its benchmarks")
    schedule = _USUAL.schedule.model_dump(include={"name", "warmup"})
    yield Decision("training.schedule", schedule, "the rate rises, then falls to near zero")
