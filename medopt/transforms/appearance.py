"""How a scanner renders the same anatomy: blur, resolution, bias field, noise, response, on images in 0..1.

One drawn `Appearance` is applied in the order in which the physics happens: the object, the detector's blur and
sampling, the coil's or beam's unevenness, the noise of the signal, and the display response at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medopt.core.telemetry import without_telemetry
from medopt.transforms.resize import resize

with without_telemetry():
    from monai.networks.layers import gaussian_1d


@dataclass(frozen=True, slots=True)
class Appearance:
    """What one scanner does to an image; the defaults do nothing.

    blur: standard deviation of the point spread, pixels. low_resolution: factor of coarser sampling. bias_field:
    logarithm of a smooth field, one coefficient a polynomial term. photons: expected count at full intensity
    (Poisson). rician: standard deviation of either channel of a magnitude image (Gudbjartsson & Patz 1995). speckle:
    standard deviation of a multiplicative noise (ultrasound). gaussian: additive, electronic. sharpen: weight of an
    unsharp mask of one pixel. gamma, contrast, brightness: the display response. `seed` fixes the noise itself.
    """

    blur: float = 0.0
    low_resolution: float = 1.0
    bias_field: tuple[float, ...] = ()
    photons: float = 0.0
    rician: float = 0.0
    speckle: float = 0.0
    gaussian: float = 0.0
    sharpen: float = 0.0
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    seed: int = 0


def apply_appearance(image: Tensor, look: Appearance) -> Tensor:
    """Render (C, *space) in 0..1 as that scanner would; the same shape, again in 0..1."""
    if look == Appearance(seed=look.seed):
        return image
    noise = torch.Generator().manual_seed(look.seed)
    out = image
    if look.blur > 0:
        out = gaussian_blur(out, look.blur)
    if look.low_resolution > 1:
        small = [max(4, round(n / look.low_resolution)) for n in out.shape[1:]]
        out = resize(resize(out, small), image.shape[1:])
    if look.bias_field:
        out = out * smooth_field(image.shape[1:], look.bias_field)
    if look.photons > 0:
        out = photon_noise(out, look.photons, noise)
    if look.rician > 0:
        real = out + look.rician * _normal(out, noise)
        out = torch.hypot(real, look.rician * _normal(out, noise))
    if look.speckle > 0:
        out = out * (1 + look.speckle * _normal(out, noise))
    if look.gaussian > 0:
        out = out + look.gaussian * _normal(out, noise)
    if look.sharpen > 0:
        out = out + look.sharpen * (out - gaussian_blur(out, 1.0))
    if look.gamma != 1:
        out = out.clamp(0, 1) ** look.gamma
    if look.contrast != 1 or look.brightness:
        out = (out - 0.5) * look.contrast + 0.5 + look.brightness
    return out.clamp(0, 1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def photon_noise(image: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Counts of a Poisson process over `photons`, (C, *space): the mean is the image, the variance image / photons.

    The square of a normal variable stands for the count, at an eighth of the cost (square-root transform, Anscombe
    1948): its mean is exact and its variance larger by 1/8 of one photon squared, which only the darkest pixels notice.
    """
    root = (image.clamp_min(0) * photons).sqrt_()
    return root.add_(_normal(image, generator), alpha=0.5).square_().sub_(0.25).div_(photons)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur the spatial axes of (C, *space) by a Gaussian of `sigma` pixels, edges replicated; the mean is kept.

    Sums of shifted images: three to five times faster than a convolution of so few channels.
    """
    kernel = gaussian_1d(torch.tensor(float(sigma)), truncated=3.0, normalize=True).tolist()
    radius = len(kernel) // 2
    out = F.pad(image[None], [radius] * 2 * (image.ndim - 1), mode="replicate")[0]
    for axis, length in enumerate(image.shape[1:], start=1):
        padded, out = out, out.narrow(axis, radius, length) * kernel[radius]
        for start, weight in enumerate(kernel[:radius]):
            pair = padded.narrow(axis, start, length) + padded.narrow(axis, 2 * radius - start, length)
            out.add_(pair, alpha=weight)
    return out


def smooth_field(size: torch.Size | tuple[int, ...], coefficients: tuple[float, ...]) -> Tensor:
    """A smooth multiplicative field exp(polynomial), (*size): linear and squared terms of each axis in turn."""
    exponent = torch.zeros(tuple(size))
    terms = iter(coefficients)
    for axis, length in enumerate(size):
        shape = [1] * len(size)
        shape[axis] = length
        x = torch.linspace(-1, 1, length).reshape(shape)
        exponent = exponent + next(terms, 0.0) * x + next(terms, 0.0) * (x * x - 1 / 3)
    return exponent.exp()


def draw_field(random: np.random.Generator, spatial_dims: int, largest: float) -> tuple[float, ...]:
    """Coefficients of a smooth field that deviates from 1 by at most the fraction `largest`, and often by less."""
    drawn = random.uniform(-1, 1, 2 * spatial_dims)
    peak = np.abs(drawn[::2]).sum() + 2 / 3 * np.abs(drawn[1::2]).sum()
    return tuple(float(value) for value in drawn * random.uniform(0, math.log1p(largest)) / peak)


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    """A draw between two positive bounds, even on a logarithmic scale."""
    return float(math.exp(random.uniform(math.log(low), math.log(high))))


def draw_seed(random: np.random.Generator) -> int:
    """A seed for the noise of one appearance."""
    return int(random.integers(2**31))
