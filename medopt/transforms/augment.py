"""Random changes of training images: a geometry, an appearance, an erased box. Validation and test never pass here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medopt.config import Augment
from medopt.core.telemetry import without_telemetry
from medopt.transforms.appearance import Appearance, draw_field, draw_seed, is_visible, log_uniform, render
from medopt.transforms.noise import Random, Uniforms
from medopt.transforms.shift import draw_scanner
from medopt.transforms.spatial import Geometry, apply_geometry, draw_geometry

with without_telemetry():
    from monai.transforms import Randomizable, Transform

_AT_ONCE = 2**18  # numbers that a CPU changes at once: what fits its cache
_LEAST = 2.0**-64  # what the black of a scan is raised to


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """All that was drawn for one image; `box` holds (start, stop) fractions of each spatial axis."""

    geometry: Geometry
    look: Appearance
    box: tuple[tuple[float, float], ...] = ()


def draw(config: Augment, spatial_dims: int, generator: np.random.Generator) -> AugmentParams:
    """Draw one image's changes; the same generator state gives the same changes."""
    random = Uniforms(generator)
    geometry = draw_geometry(config, spatial_dims, random)
    if config.shift != "none" and random.uniform() < config.shift_probability:
        look = draw_scanner(config.shift, spatial_dims, random)
    else:
        look = _draw_look(config, spatial_dims, random)
    box: tuple[tuple[float, float], ...] = ()
    if config.erase and random.uniform() < config.probability:
        sides = random.uniform(0.2 * config.erase, config.erase, spatial_dims)
        starts = random.uniform(0, 1, spatial_dims) * (1 - sides)
        box = tuple((float(a), float(a + side)) for a, side in zip(starts, sides, strict=True))
    return AugmentParams(geometry, look, box)


def _draw_look(config: Augment, spatial_dims: int, random: Random) -> Appearance:
    """The single effects, each with its own probability, each up to the configured strength."""

    def drawn(strength: float, low: float, high: float, off: float) -> float:
        happens = random.uniform() < config.probability
        value = float(random.uniform(low, high))
        return value if strength and happens else off

    field = draw_field(random, spatial_dims, config.bias_field)
    photons = log_uniform(random, config.photons, 20 * config.photons) if config.photons else 0.0
    return Appearance(
        blur=drawn(config.blur_pixels, 0, config.blur_pixels, 0.0),
        low_resolution=drawn(config.low_resolution - 1, 1, config.low_resolution, 1.0),
        bias_field=field if config.bias_field and random.uniform() < config.probability else (),
        photons=photons if random.uniform() < config.probability else 0.0,
        rician=drawn(config.rician_noise, 0, config.rician_noise, 0.0),
        gaussian=drawn(config.gaussian_noise, 0, config.gaussian_noise, 0.0),
        gamma=float(np.exp(drawn(config.gamma, -config.gamma, config.gamma, 0.0))),
        contrast=1 + drawn(config.contrast, -config.contrast, config.contrast, 0.0),
        brightness=drawn(config.brightness, -config.brightness, config.brightness, 0.0),
        seed=draw_seed(random),
    )


def apply(images: Tensor, drawn: Sequence[AugmentParams]) -> Tensor:
    """Change each of (N, C, *space) in 0..1 as drawn: the same shape, again in 0..1; `images` is left as it was.

    Runs on the device of the images, and an image's result is the same alone and in any batch. Padding, which is rows
    and columns of zeros at the edges and what a geometry brings in from outside, stays zero: a model meets black
    padding in service, too.
    """
    at_once = max(1, _AT_ONCE // images[0].numel()) if images.device.type == "cpu" else len(images)
    if len(images) <= at_once:
        return _apply(images, drawn)
    out = torch.empty_like(images)
    for start in range(0, len(images), at_once):
        part = slice(start, start + at_once)
        out[part] = _apply(images[part], drawn[part])
    return out


def _apply(images: Tensor, drawn: Sequence[AugmentParams]) -> Tensor:
    geometries, looks = [one.geometry for one in drawn], [one.look for one in drawn]
    rendered = [is_visible(look) for look in looks]
    if any(rendered):
        moved = apply_geometry(_lifted(images, rendered), geometries)
        inside = moved.clamp(max=_LEAST).mul_(1 / _LEAST)
        out = render(moved, looks).mul_(inside)
    else:
        out = apply_geometry(images, geometries)
    boxes = [(row, one.box) for row, one in enumerate(drawn) if one.box]
    if boxes and out is images:
        out = out.clone()
    for row, box in boxes:
        spans = zip(box, images.shape[2:], strict=True)
        out[row][(slice(None), *(slice(round(a * n), round(b * n)) for (a, b), n in spans))] = out[row].mean()
    return out


def _lifted(images: Tensor, rows: Sequence[bool]) -> Tensor:
    """Black within the scan is raised by far less than a grey level, so that only padding is zero.

    The scan is the smallest box that holds all that is not zero. `rows` says for each image whether to raise it.
    """
    dims = images.ndim
    floor = torch.tensor(rows, device=images.device).float().mul_(_LEAST).reshape(-1, *[1] * (dims - 1))
    for axis in range(2, dims):
        filled = images.amax([other for other in range(1, dims) if other != axis]) > 0
        inside = filled.float().cummax(1)[0] * filled.flip(1).float().cummax(1)[0].flip(1)
        floor = floor * inside.reshape(len(images), *[-1 if other == axis else 1 for other in range(1, dims)])
    return torch.maximum(images, floor)


class RandomAugment(Randomizable, Transform):
    """The same as a MONAI transform, for use in any MONAI chain: tensor (C, *space) in 0..1 to the same."""

    def __init__(self, config: Augment) -> None:
        self.config = config

    def __call__(self, image: Tensor) -> Tensor:
        """Draw from MONAI's random state and apply."""
        random = np.random.default_rng(int(self.R.randint(2**31)))
        return apply(image[None], [draw(self.config, image.ndim - 1, random)])[0]
