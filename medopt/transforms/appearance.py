"""How a scanner renders the same anatomy: blur, resolution, bias field, noise, response, on images in 0..1.

One drawn `Appearance` is applied in the order in which the physics happens: the object, the detector's blur and
sampling, the coil's or beam's unevenness, the noise of the signal, and the display response at the end. A batch is
rendered at once, on the device where it lies; an image's result does not depend on the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import erf
from torch import Tensor

from medopt.transforms.noise import Random, normal
from medopt.transforms.resize import resize


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


def apply_appearance(images: Tensor, looks: Sequence[Appearance]) -> Tensor:
    """Render each of (N, C, *space) in 0..1 as its own scanner would; the same shape, again in 0..1.

    Channels that are equal, as those of a grey scan are, get equal noise and stay equal. `images` is never changed, and
    returned itself where nothing is to be done to any.
    """
    return render(images.clone(), looks) if any(map(is_visible, looks)) else images


def is_visible(look: Appearance) -> bool:
    """Whether it changes an image at all."""
    return look != Appearance(seed=look.seed)


Effect = Callable[[Tensor, Tensor, Sequence[Appearance]], Tensor]
"""Images that it may change, strengths of the same number of axes, all that was drawn; returns images."""


def render(out: Tensor, looks: Sequence[Appearance]) -> Tensor:
    """What `apply_appearance` does, in the memory of the images where it can."""
    for name, off, effect in _EFFECTS:
        rows = [row for row, look in enumerate(looks) if getattr(look, name) != off]
        if not rows:
            continue
        chosen = [looks[row] for row in rows]
        strengths = _column([getattr(look, name) for look in chosen], out) if name != "bias_field" else out
        if len(rows) == len(looks):
            out = effect(out, strengths, chosen)
        else:
            where = torch.tensor(rows, device=out.device)
            out.index_copy_(0, where, effect(out.index_select(0, where), strengths, chosen))
    contrast = _column([look.contrast for look in looks], out)
    offset = _column([0.5 - 0.5 * look.contrast + look.brightness for look in looks], out)
    return out.mul_(contrast).add_(offset).clamp_(0, 1)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """One number an image, to broadcast over it."""
    return torch.tensor(values, dtype=torch.float32, device=like.device).reshape(-1, *[1] * (like.ndim - 1))


def _noise(images: Tensor, looks: Sequence[Appearance], stream: int) -> Tensor:
    """Standard normal, to broadcast over the images; equal in the channels of an image whose channels are equal."""
    seeds, channels, space = [look.seed for look in looks], images.shape[1], images.shape[2:]
    if channels == 1:
        return normal(seeds, stream, 1, space, images.device)
    grey = (images == images[:, :1]).flatten(1).all(1)
    if bool(grey.all()):
        return normal(seeds, stream, 1, space, images.device)
    coloured = normal(seeds, stream, channels, space, images.device)
    return torch.where(grey.reshape(-1, *[1] * (images.ndim - 1)), coloured[:, :1], coloured)


def _photon_noise(images: Tensor, photons: Tensor, looks: Sequence[Appearance]) -> Tensor:
    """Counts of a Poisson process over `photons`: the mean is the image, the variance image / photons.

    The square of a normal variable stands for the count, at an eighth of the cost (square-root transform, Anscombe
    1948): its mean is exact and its variance larger by 1/8 of one photon squared, which only the darkest pixels notice.
    """
    root = images.clamp_(min=0).mul_(photons).sqrt_()
    return root.add_(_noise(images, looks, 0), alpha=0.5).square_().sub_(0.25).div_(photons)


def _rician_noise(images: Tensor, deviation: Tensor, looks: Sequence[Appearance]) -> Tensor:
    imaginary = _noise(images, looks, 2).mul_(deviation)
    return images.add_(_noise(images, looks, 1).mul_(deviation)).hypot_(imaginary.expand_as(images))


def _speckle(images: Tensor, deviation: Tensor, looks: Sequence[Appearance]) -> Tensor:
    return images.mul_(_noise(images, looks, 3).mul_(deviation).add_(1))


def _gaussian_noise(images: Tensor, deviation: Tensor, looks: Sequence[Appearance]) -> Tensor:
    return images.add_(_noise(images, looks, 4).mul_(deviation))


def _sharpened(images: Tensor, weight: Tensor, looks: Sequence[Appearance]) -> Tensor:
    """An unsharp mask of one pixel."""
    return images.add_((images - gaussian_blur(images, [1.0] * len(images))).mul_(weight))


def _power(images: Tensor, exponent: Tensor, looks: Sequence[Appearance]) -> Tensor:
    """x to the power, by logarithms: twice as fast as pow, and 0 stays 0."""
    return images.clamp_(0, 1).log_().mul_(exponent).exp_()


def gaussian_blur(images: Tensor, sigma: Sequence[float]) -> Tensor:
    """Blur the spatial axes of (N, C, *space) by Gaussians of N standard deviations in pixels, edges replicated.

    The mean is kept. A weight is the Gaussian's integral over a pixel, up to three standard deviations.
    """
    width = np.array(sigma, np.float64)[:, None]
    reach = np.floor(np.maximum(3 * width, 0.5) + 0.5)
    offsets = np.arange(-reach.max(), reach.max() + 1)
    edges = erf((np.append(offsets, offsets[-1] + 1) - 0.5) / (width * math.sqrt(2)))
    weights = np.where(np.abs(offsets) <= reach, np.diff(edges), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    band = torch.from_numpy(weights).float().to(images.device)[:, :, None]
    return _filtered(images, [band] * (images.ndim - 2))


def _lower_resolution(images: Tensor, factor: Tensor, looks: Sequence[Appearance]) -> Tensor:
    """Resized to fewer pixels and back, in one pass an axis."""
    bands = []
    for length in images.shape[2:]:
        found = [_there_and_back(length, max(4, round(length / look.low_resolution))) for look in looks]
        radius = max(len(band) for band in found) // 2
        padded = [F.pad(band, [0, 0, radius - len(band) // 2, radius - len(band) // 2]) for band in found]
        bands.append(torch.stack(padded).to(images.device))
    return _filtered(images, bands)


@functools.lru_cache(maxsize=512)
def _there_and_back(length: int, small: int) -> Tensor:
    """Weights (2 R + 1, length) of the neighbours of each pixel of a line that is resized to `small` and back."""
    pulses = torch.eye(length)[None]  # one in each row
    matrix = resize(resize(pulses, (length, small)), (length, length))[0]
    there, back = torch.nonzero(matrix, as_tuple=True)
    radius = int((there - back).abs().max())
    padded = F.pad(matrix, [0, 0, radius, radius])
    places = torch.arange(length)
    return torch.stack([padded[places + offset, places] for offset in range(2 * radius + 1)])


def _filtered(images: Tensor, bands: Sequence[Tensor]) -> Tensor:
    """Weighted sums of neighbours along each spatial axis of (N, C, *space) in turn, edges replicated.

    The weights of an axis are (N, 2 R + 1, 1 or its length). Sums of shifted images: many times faster on a CPU than a
    convolution of so few channels or a product with a matrix.
    """
    out, dims = images, images.ndim - 2
    for axis, band in enumerate(bands):
        length, radius = out.shape[axis + 2], band.shape[1] // 2
        pads = [0] * (2 * dims)
        pads[2 * (dims - 1 - axis)] = pads[2 * (dims - 1 - axis) + 1] = radius
        padded = F.pad(out, pads, mode="replicate")
        shape = [len(band), 1, *(band.shape[2] if other == axis else 1 for other in range(dims))]
        weights = [weight.reshape(shape) for weight in band.unbind(1)]
        out = padded.narrow(axis + 2, radius, length) * weights[radius]
        for start, weight in enumerate(weights):
            if start != radius:
                out.addcmul_(padded.narrow(axis + 2, start, length), weight)
    return out


def _uneven(images: Tensor, _: Tensor, looks: Sequence[Appearance]) -> Tensor:
    for line in smooth_fields(images.shape[2:], [look.bias_field for look in looks], images.device):
        images.mul_(line)
    return images


def smooth_fields(space: Sequence[int], coefficients: Sequence[Sequence[float]], device: torch.device) -> list[Tensor]:
    """Smooth multiplicative fields exp(polynomial) of N images, as factors (N, 1, ...) along each axis.

    The polynomial has a linear and a squared term of each axis in turn; one that is not given is 0.
    """
    whole = [[*row, *[0.0] * 2 * len(space)][: 2 * len(space)] for row in coefficients]
    terms = torch.tensor(whole, dtype=torch.float32).reshape(len(whole), len(space), 2)
    lines = []
    for axis, length in enumerate(space):
        x = torch.linspace(-1, 1, length)
        exponent = terms[:, axis, :1] * x + terms[:, axis, 1:] * (x * x - 1 / 3)
        shape = [len(terms), 1, *(length if other == axis else 1 for other in range(len(space)))]
        lines.append(exponent.exp().reshape(shape).to(device))
    return lines


_EFFECTS: tuple[tuple[str, float | tuple[float, ...], Effect], ...] = (
    ("blur", 0.0, lambda images, _, looks: gaussian_blur(images, [look.blur for look in looks])),
    ("low_resolution", 1.0, _lower_resolution),
    ("bias_field", (), _uneven),
    ("photons", 0.0, _photon_noise),
    ("rician", 0.0, _rician_noise),
    ("speckle", 0.0, _speckle),
    ("gaussian", 0.0, _gaussian_noise),
    ("sharpen", 0.0, _sharpened),
    ("gamma", 1.0, _power),
)
"""The fields of Appearance in the order in which they happen, each with the value that does nothing."""


def draw_field(random: Random, spatial_dims: int, largest: float) -> tuple[float, ...]:
    """Coefficients of a smooth field that deviates from 1 by at most the fraction `largest`, and often by less."""
    drawn = random.uniform(-1, 1, 2 * spatial_dims)
    peak = np.abs(drawn[::2]).sum() + 2 / 3 * np.abs(drawn[1::2]).sum()
    return tuple(float(value) for value in drawn * random.uniform(0, math.log1p(largest)) / peak)


def log_uniform(random: Random, low: float, high: float) -> float:
    """A draw between two positive bounds, even on a logarithmic scale."""
    return float(math.exp(random.uniform(math.log(low), math.log(high))))


def draw_seed(random: Random) -> int:
    """A seed for the noise of one appearance."""
    return int(random.uniform(0, 2**31))
