"""How large the images become: by what they are, what fits into memory, and what trains in reasonable time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.models.cost import Cost, study_cost
from medopt.models.geometry import fit_geometry
from medopt.planning.fingerprint import Fingerprint

EXPOSED = {"CR", "DX", "MG", "RG", "XA", "RF", "IO", "PX"}
MAX_SIDE = {"cpu": 256, "cuda": 1024}
"""Longest side of an image in pixels. Small findings of a radiograph need 512 to 1024, which a CPU has no time for."""
USUAL_SIDE = 512
"""Longest side of an image that is no radiograph."""
MIN_SIDE = 128
MAX_VOXELS = {"cpu": 96**3, "cuda": 192**3}
BUDGET = {"cpu": 6e14, "cuda": float("inf")}
"""Multiply-adds of a whole training: about six hours of two cores at 30 billion a second."""
PASSES = 3
"""The backward pass costs twice as much as the forward pass."""
BYTES = {"cpu": 6, "cuda": 4}
"""A kept value in float32, or in mixed precision, with what lies beside it."""
SHARE = 0.6
"""Share of the free memory that training may take."""
LARGE, SMALL_FINDING = 2_000_000, 3
"""Pixels from which on shrinking is worth a word; and what is left of a finding that a network may still see."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One setting of the study file, and the reason for it."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Network:
    """Depth and width of the network, as in a study's `model` section."""

    depth: int
    width: float


@dataclass(frozen=True, slots=True)
class Effort:
    """What trains, with how many bytes of memory, on how many images; images of a step, and epochs."""

    device: str
    memory: int
    images: int
    batch: int
    epochs: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return max(1, self.images // self.batch)

    @property
    def device_text(self) -> str:
        """The device in words."""
        return "a CPU" if self.device == "cpu" else "a GPU"

    def at_once(self, cost: Cost) -> int:
        """How many images of that cost fit into memory together; at most a step's."""
        room = SHARE * self.memory - 16 * cost.parameters  # weights, gradients, two moments
        count = int(np.clip(room // (BYTES[self.device] * cost.kept_values), 0, self.batch))
        return count if count in (0, self.batch) else 2 ** (count.bit_length() - 1)

    def allows(self, cost: Cost) -> str:
        """Empty, or what speaks against images of that cost: memory or time."""
        least = max(2, self.batch // 4)  # batch normalization needs some
        if self.at_once(cost) < least:
            return f"{least} at once do not fit into {self.memory / 1e9:.0f} GB"
        if PASSES * cost.multiply_adds * self.images * self.epochs > BUDGET[self.device]:
            return f"training on {self.device_text} would take more than about six hours"
        return ""


@dataclass(frozen=True, slots=True)
class SizePlan:
    """The size of the prepared images, their spacing where it is fixed, and the images at once where not all fit."""

    size: list[int]
    spacing: list[float] | None
    micro_batch: int | None
    decisions: tuple[Decision, ...]


def plan_size(
    fingerprint: Fingerprint, modality: str, prepare: Mapping[str, Any], network: Network, effort: Effort
) -> SizePlan:
    """The largest size that the data have use for, memory holds and time allows."""

    def cost(size: Sequence[int], spacing: Sequence[float] | None) -> Cost:
        return study_cost(_study(prepare, network, size, spacing))

    if fingerprint.dims == 2:
        size, decisions, found = _image_size(fingerprint, modality, effort, cost)
        spacing = None
    else:
        size, spacing, decisions, found = _volume_size(fingerprint, effort, cost)
    at_once = max(2, effort.at_once(found))
    return SizePlan(size, spacing, at_once if at_once < effort.batch else None, tuple(decisions))


def _study(prepare: Mapping[str, Any], network: Network, size: Sequence[int], spacing: Sequence[float] | None) -> Study:
    """A study of which only the network is looked at."""
    return Study.model_validate(
        {
            "name": "planned",
            "question": "?",
            "data": {"manifest": "manifest.csv", "labels": ["no", "yes"]},
            "prepare": {**prepare, "size": [*size], "spacing_mm": [*spacing] if spacing else None},
            "model": {"depth": network.depth, "width": network.width, **fit_geometry(size, spacing).settings()},
        }
    )


def _image_size(
    fingerprint: Fingerprint, modality: str, effort: Effort, cost: Callable[..., Cost]
) -> tuple[list[int], list[Decision], Cost]:
    """Images keep their size where it is small enough; else the longest side is reduced."""
    shapes = fingerprint.square_sizes()
    low, middle, high = (tuple(np.quantile(shapes, quantile, axis=0).tolist()) for quantile in (0, 0.5, 1))
    aspect = float(np.median(shapes[:, 1] / shapes[:, 0]))
    limit = MAX_SIDE[effort.device] if modality in EXPOSED else min(MAX_SIDE[effort.device], USUAL_SIDE)
    whole, against = limit, ""
    while True:
        size, same = _of_side(low, middle, high, aspect, limit)
        found = cost(size, None)
        reason = effort.allows(found)
        if not reason or limit <= MIN_SIDE:
            break
        against, limit = against or f"at {max(size)} {reason}", max(MIN_SIDE, min(limit, max(size)) - 64)
    if same:
        why = "all images have this size already"
        fit = "stretch"
    else:
        even = float(np.ptp(shapes[:, 1] / shapes[:, 0])) < 0.05
        fit = "stretch" if even and 0.95 < aspect / (size[1] / size[0]) < 1.05 else "pad"
        span = f"{joined(low)} to {joined(high)}" if low != high else joined(low)
        square = " square" if any(image.aspect != 1 for image in fingerprint.sample) else ""
        why = f"images are {span}{square} pixels; {_limit_text(modality, effort, whole, max(middle), against)}"
    shape_why = "all have one shape" if fit == "stretch" else "shapes differ: the aspect is kept, the rest is filled"
    return size, [Decision("prepare.size", size, why), Decision("prepare.fit", fit, shape_why)], found


def tile_notes(fingerprint: Fingerprint, size: Sequence[int]) -> list[str]:
    """What shrinking loses of large images, and how a network sees them whole; empty for others."""
    if fingerprint.dims == 3:
        return []
    height, width = np.quantile(fingerprint.square_sizes(), 0.5, axis=0)
    factor = max(height, width) / max(size)
    if height * width < LARGE or factor < 2:
        return []
    return [
        f"Half of the images have {height * width / 1e6:.1f} megapixels or more and are shrunk by {factor:.1f}: a "
        f"finding of fewer than about {SMALL_FINDING * factor:.0f} pixels is lost. Where findings may be that small, "
        "tiles see the whole image, in more time: a larger prepare.size, model.pooling: attention and model.tile: "
        "[512, 512].",
    ]


def _limit_text(modality: str, effort: Effort, whole: int, longest: float, against: str) -> str:
    """Why the size is limited: by the modality, by memory or by time."""
    if against:
        return f"{against} (estimate)"
    if longest <= whole:
        return f"up to {whole} on a side train on {effort.device_text}"
    if effort.device == "cpu":
        more = "; 512 to 1024 on a GPU (--device cuda) show small findings" if modality in EXPOSED else ""
        return f"at most {whole} on a side on a CPU, as twice the side is four times the work{more}"
    if modality in EXPOSED:
        return f"at most {whole} on a side, enough for the small findings of a radiograph ({modality})"
    radiograph = "" if modality else f"; radiographs get up to {MAX_SIDE['cuda']}: say so with --modality DX"
    return f"at most {whole} on a side on a GPU{radiograph}"


def _of_side(
    low: tuple[float, ...], middle: tuple[float, ...], high: tuple[float, ...], aspect: float, limit: int
) -> tuple[list[int], bool]:
    """The size whose longest side is `limit` at most, and whether it is that of all images."""
    if low == high and max(middle) <= limit:
        return [round(side) for side in middle], True
    longest = min(limit, multiple(max(middle), 32))
    return [multiple(longest * min(1, 1 / aspect), 32), multiple(longest * min(1, aspect), 32)], False


def _volume_size(
    fingerprint: Fingerprint, effort: Effort, cost: Callable[..., Cost]
) -> tuple[list[int], list[float] | None, list[Decision], Cost]:
    """Volumes keep their median spacing where they fit as a whole; else their axes become coarser, thick slices last.

    In the plane the step becomes half as large as that of thick slices at most; then all become coarser together.
    """
    spacing, voxels = fingerprint.spacing_mm(), MAX_VOXELS[effort.device]
    against = ""
    while True:
        size, step = _at_most(fingerprint, spacing, voxels)
        found = cost(size, step)
        reason = effort.allows(found)
        if not reason or voxels <= 32**3:
            break
        against, voxels = against or reason, int(0.8 * min(voxels, math.prod(size)))
    bound = f"at most {voxels} voxels are kept on {effort.device_text}" + (f": with more {against}" if against else "")
    if step is None or spacing is None:
        why = f"not all volumes give a spacing; the median is {joined(fingerprint.sizes(0.5))} voxels, {bound}"
        fit = Decision("prepare.fit", "stretch", "without a spacing, volumes are only comparable as a whole")
        return size, None, [Decision("prepare.size", size, why), fit], found
    extent = fingerprint.extents_mm(0.95)
    coarser = "" if np.allclose(step, spacing, rtol=0.01) else f", made coarser: {bound}"
    if max(spacing) >= 2 * min(spacing):
        coarser += "; slices stay thick, so that the plane keeps its detail"
    decisions = [
        Decision("prepare.size", size, f"19 of 20 volumes fit: they span {joined(extent)} mm"),
        Decision("prepare.spacing_mm", step, f"the median is {joined(spacing)} mm{coarser}"),
        Decision("prepare.fit", "crop_or_pad", "a millimetre stays a millimetre in all volumes"),
    ]
    return size, step, decisions, found


def _at_most(
    fingerprint: Fingerprint, spacing: tuple[float, ...] | None, voxels: int
) -> tuple[list[int], list[float] | None]:
    """The size and the spacing with about that many voxels at most; None where the spacing is not known."""
    if spacing is None:
        size = np.array(fingerprint.sizes(0.5))
        while np.prod(size) > voxels:
            size = np.where(size > 0.95 * size.max(), size * 0.97, size)
        return [multiple(side, 4) for side in size.tolist()], None
    extent = np.array(fingerprint.extents_mm(0.95))
    step = _coarser(extent, np.array(spacing), voxels)
    rounded = [float(f"{value:.3g}") for value in step]
    return [multiple(np.ceil(side), 4) for side in extent / rounded], rounded


def _coarser(extent: NDArray[np.float64], step: NDArray[np.float64], voxels: int) -> NDArray[np.float64]:
    thickest = step.max()
    until = thickest / 2 if thickest >= 2 * step.min() else thickest
    while np.prod(np.ceil(extent / step)) > voxels:
        finest = (step < 1.05 * step.min()) & (step < until)
        step = np.where(finest, np.minimum(step * 1.03, until), step) if finest.any() else step * 1.03
    return step


def multiple(value: float, of: int) -> int:
    """The nearest multiple; of a smaller value the value, at least 8."""
    return max(8, of * round(value / of)) if value >= of else max(8, round(value))


def joined(values: Any) -> str:
    """Numbers of the axes for a sentence."""
    return " x ".join(f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values)
