"""Corruptions of a prepared image: eight families, five levels each, to measure what a model bears.

After ImageNet-C (Hendrycks & Dietterich 2019) and MedMNIST-C (Di Salvo et al. 2024); the code and the levels are
medopt's own, set by eye on radiographs, ultrasound and MR: level 1 is just visible, level 5 is severe, yet a reader
still knows what the picture shows. What the chain padded (rows and columns of zeros at the edges) stays zero, as it
would if the scan itself were bad. The same case and family draw the same change at every
level, only weaker or stronger.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medopt.transforms.appearance import Appearance, apply_appearance, draw_seed

LEVELS = 5
# What each number is stands with the function of its family. Lengths are in pixels of an image of SIDE pixels a side.
SIDE = 96
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.015, 0.03, 0.055, 0.09, 0.14),
    "blur": (0.5, 0.9, 1.4, 2.0, 2.8),
    "contrast": (0.12, 0.25, 0.38, 0.51, 0.64),
    "low_resolution": (1.25, 1.7, 2.3, 3.1, 4.2),
    "bias_field": (0.35, 0.7, 1.2, 1.9, 3.0),
    "motion": (2.0, 3.5, 5.5, 8.0, 11.0),
    "compression": (35, 20, 13, 9, 6),
    "detector": (0.2, 0.4, 0.6, 0.8, 1.0),
}
FAMILIES = tuple(STRENGTHS)


def corrupt(image: Tensor, family: str, level: int, case: str) -> Tensor:
    """The image (C, *space) in 0..1 after one corruption, again (C, *space) in 0..1; `image` is left as it was.

    `family` is one of FAMILIES, `level` from 1 to LEVELS. `case` (any stable name of the case) fixes what is random.
    """
    if not 1 <= level <= LEVELS:
        raise ValueError(f"level {level} is none of 1 to {LEVELS}")
    return _corrupted(image, _filled(image), family, STRENGTHS[family][level - 1], case)


def corrupt_all(image: Tensor, families: Sequence[str], case: str) -> dict[tuple[str, int], Tensor]:
    """The image after every corruption of `families`, by family and level: what `corrupt` gives for each."""
    box = _filled(image)
    return {
        (family, level): _corrupted(image, box, family, strength, case)
        for family in families
        for level, strength in enumerate(STRENGTHS[family], start=1)
    }


def _corrupted(image: Tensor, box: tuple[slice, ...], family: str, strength: float, case: str) -> Tensor:
    inside, out = image[box], image.clone()
    if inside.numel() == 0:  # a black image has nothing to spoil
        return out
    random = _generator(case, family)
    if family == "compression":
        out[box] = _jpeg(inside, int(strength))
    elif family == "motion":
        out[box] = _motion(inside, strength * _scale(image), random)
    else:
        out[box] = apply_appearance(inside[None], [_look(family, strength, image, random)])[0]
    return out


def _generator(case: str, family: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{family}|{case}".encode()).digest()[:8], "big"))


def _filled(image: Tensor) -> tuple[slice, ...]:
    """The smallest box that holds all that is not zero."""
    spans = [slice(None)]
    for axis in range(1, image.ndim):
        others = [other for other in range(image.ndim) if other != axis]
        (places,) = torch.nonzero(image.amax(dim=others), as_tuple=True)
        spans.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0))
    return tuple(spans)


def _scale(image: Tensor) -> float:
    """What lengths are multiplied with.

    A blur of one pixel is a larger part of a small image, but a small image holds less that it could hide; the square
    root of the size lies between "the same pixels" and "the same part of the patient", and looks alike at 28 and 224.
    """
    sides = image.shape[1:]
    return math.sqrt(math.prod(sides) ** (1 / len(sides)) / SIDE)


def _look(family: str, strength: float, image: Tensor, random: np.random.Generator) -> Appearance:
    """The families that a scanner's physics makes.

    noise: standard deviation at full intensity, half of its variance quantum, half electronic. blur: standard deviation
    of the point spread, pixels. contrast: lost share of the range, with a tone curve bent either way. low_resolution:
    factor of coarser sampling. bias_field: largest relative deviation. detector: share of `_other_detector`.
    """
    dims, scale = image.ndim - 1, _scale(image)
    if family == "noise":
        return Appearance(photons=2 / strength**2, gaussian=strength / math.sqrt(2), seed=draw_seed(random))
    if family == "blur":
        return Appearance(blur=strength * scale)
    if family == "contrast":
        return Appearance(contrast=1 - strength, gamma=math.exp(_sign(random) * strength))
    if family == "low_resolution":
        return Appearance(low_resolution=1 + (strength - 1) * scale)
    if family == "bias_field":
        return Appearance(bias_field=_field(random, dims, strength))
    return _other_detector(random, dims, strength, scale)


def _other_detector(random: np.random.Generator, dims: int, share: float, scale: float) -> Appearance:
    """Another scanner, which differs in all its traits at once, as in `shift`; here each trait has its full strength.

    Only the directions are drawn (brighter or darker, steeper or flatter), so that a level is as hard for every case.
    """
    return Appearance(
        blur=1.2 * share * scale,
        low_resolution=1 + 0.6 * share * scale,
        bias_field=_field(random, dims, 0.6 * share),
        photons=200 / share**2,
        gamma=math.exp(_sign(random) * 0.5 * share),
        contrast=math.exp(_sign(random) * 0.3 * share),
        brightness=_sign(random) * 0.08 * share,
        seed=draw_seed(random),
    )


def _sign(random: np.random.Generator) -> int:
    return 1 if random.random() < 0.5 else -1


def _field(random: np.random.Generator, dims: int, largest: float) -> tuple[float, ...]:
    """Coefficients of a smooth field in a random direction whose largest deviation from 1 is about `largest`."""
    drawn = random.uniform(-1, 1, 2 * dims)
    peak = np.abs(drawn[::2]).sum() + 2 / 3 * np.abs(drawn[1::2]).sum()
    return tuple(float(value) for value in drawn * math.log1p(largest) / peak)


def _motion(image: Tensor, length: float, random: np.random.Generator) -> Tensor:
    """The mean of the images along a straight path of `length` pixels: the patient moved during the exposure."""
    direction = random.standard_normal(image.ndim - 1)
    weights = _path(direction / np.linalg.norm(direction), length)
    reach = [side // 2 for side in weights.shape]
    padded = F.pad(image[None], [side for way in reversed(reach) for side in (way, way)], mode="replicate")[0]
    out = torch.zeros_like(image)
    for place in np.argwhere(weights):
        part = padded
        for axis, (start, side) in enumerate(zip(place.tolist(), image.shape[1:], strict=True), start=1):
            part = part.narrow(axis, start, side)
        out.add_(part, alpha=float(weights[tuple(place)]))
    return out.clamp_(0, 1)


def _path(direction: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Weights of a straight path through the middle of a small grid, linearly shared out to neighbours; sum 1."""
    reach = np.ceil(np.abs(direction) * length / 2).astype(int)
    weights = np.zeros(2 * reach + 1)
    steps = np.linspace(-length / 2, length / 2, 2 * math.ceil(length) + 1)
    at = np.clip(reach + steps[:, None] * direction, 0, 2 * reach)
    low = np.minimum(np.floor(at).astype(int), np.maximum(2 * reach - 1, 0))
    for corner in itertools.product((0, 1), repeat=len(direction)):
        share = np.where(corner, at - low, 1 - (at - low)).prod(axis=1)
        inside = share > 0
        np.add.at(weights, tuple((low + corner)[inside].T), share[inside])
    return weights / weights.sum()


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """JPEG at `quality` (1 to 95), each plane of the last two axes for itself; a volume is stored slice by slice."""
    planes = (255 * image).round().to(torch.uint8).reshape(-1, *image.shape[-2:]).numpy()
    back = np.stack([_through_jpeg(plane, quality) for plane in planes])
    return torch.from_numpy(back).reshape(image.shape).float() / 255


def _through_jpeg(plane: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(plane).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
