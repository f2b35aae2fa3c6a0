"""Random changes of training images: a geometry, an appearance, an erased box. Validation and test never pass here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medopt.config import Augment
from medopt.core.telemetry import without_telemetry
from medopt.transforms.appearance import Appearance, apply_appearance, draw_field, draw_seed, log_uniform
from medopt.transforms.shift import draw_scanner
from medopt.transforms.spatial import Geometry, apply_geometry, draw_geometry

with without_telemetry():
    from monai.transforms import Randomizable, Transform


@dataclass(frozen=True, slots=True)
class AugmentParams:
    """All that was drawn for one image; `box` holds (start, stop) fractions of each spatial axis."""

    geometry: Geometry
    look: Appearance
    box: tuple[tuple[float, float], ...] = ()


def draw(config: Augment, spatial_dims: int, random: np.random.Generator) -> AugmentParams:
    """Draw one image's changes; the same generator state gives the same changes."""
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


def _draw_look(config: Augment, spatial_dims: int, random: np.random.Generator) -> Appearance:
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


def apply(image: Tensor, drawn: AugmentParams) -> Tensor:
    """Apply drawn changes to (C, *space) in 0..1: the same shape, again in 0..1; the image itself is left as it was."""
    out = apply_appearance(apply_geometry(image, drawn.geometry), drawn.look)
    if drawn.box:
        out = out.clone()
        spans = zip(drawn.box, image.shape[1:], strict=True)
        out[(slice(None), *(slice(round(a * n), round(b * n)) for (a, b), n in spans))] = out.mean()
    return out


class RandomAugment(Randomizable, Transform):
    """The same as a MONAI transform, for use in any MONAI chain: tensor (C, *space) in 0..1 to the same."""

    def __init__(self, config: Augment) -> None:
        self.config = config

    def __call__(self, image: Tensor) -> Tensor:
        """Draw from MONAI's random state and apply."""
        random = np.random.default_rng(int(self.R.randint(2**31)))
        return apply(image, draw(self.config, image.ndim - 1, random))
