"""The detector of a site: photons, scatter, blur, noise, and the curve from exposure to displayed value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLSLossless
from scipy.ndimage import gaussian_filter

from medopt.core.errors import ConfigError
from medopt.core.records import FloatArray

DIRECT = 1.0
"""A ray with less absorbance counts as one that missed the body."""
LEVELS = 16384
"""Entries in the table of the display curve: 14 bits, as in the electronics of a detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The radiography system of a site."""

    name: str
    model: str
    rows: int
    columns: int
    spacing_mm: float
    photons: float
    """Photons per square mm on the detector without a patient."""
    blur_mm: float
    """Standard deviation of the point spread of the detector."""
    scatter: float
    """Scattered photons, as a fraction of the primary ones nearby."""
    gamma: float
    """Exponent of the display curve: above 1 darkens the lungs."""
    sharpen: float
    """Weight of the unsharp mask that the system applies."""
    gain: float
    offset: float
    """Displayed value = offset + gain * value, of full scale."""
    photometric: str
    transfer_syntax: UID
    kvp: int


SITES = (
    Site(
        name="site_a",
        model="Phantom CsI",
        rows=1280,
        columns=1024,
        spacing_mm=0.336,
        photons=9.0e5,
        blur_mm=0.22,
        scatter=0.10,
        gamma=1.0,
        sharpen=0.0,
        gain=0.90,
        offset=0.05,
        photometric="MONOCHROME2",
        transfer_syntax=ExplicitVRLittleEndian,
        kvp=120,
    ),
    Site(
        name="site_b",
        model="Phantom CR",
        rows=1024,
        columns=1024,
        spacing_mm=0.400,
        photons=3.2e5,
        blur_mm=0.38,
        scatter=0.20,
        gamma=0.85,
        sharpen=0.25,
        gain=0.80,
        offset=0.12,
        photometric="MONOCHROME1",
        transfer_syntax=ExplicitVRLittleEndian,
        kvp=110,
    ),
    Site(
        name="site_c",
        model="Phantom GOS",
        rows=1536,
        columns=1280,
        spacing_mm=0.280,
        photons=2.0e5,
        blur_mm=0.32,
        scatter=0.15,
        gamma=1.2,
        sharpen=0.5,
        gain=0.96,
        offset=0.02,
        photometric="MONOCHROME2",
        transfer_syntax=JPEGLSLossless,
        kvp=125,
    ),
)


def site_named(name: str) -> Site:
    """The site of that name; raises ConfigError where there is none."""
    for site in SITES:
        if site.name == name:
            return site
    raise ConfigError(f"The phantom study has no site {name!r}. Its sites: {', '.join(site.name for site in SITES)}.")


def expose(absorbance: FloatArray, site: Site, rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    """The image of an absorbance map in the system of a site: (rows, columns) of `size` in 0..1, dense tissue bright.

    `absorbance` may be coarser than `size`: the quantum noise is drawn at the full resolution, with the number of
    photons that a pixel collects (a Poisson distribution, approximated by a normal one).
    """
    coarse = site.columns * site.spacing_mm / absorbance.shape[1]
    primary = np.exp(-absorbance)
    haze = gaussian_filter(primary[::8, ::8], 30 / coarse / 8)
    signal = gaussian_filter(primary + site.scatter * resize(haze, primary.shape), site.blur_mm / coarse)
    pixel_mm = site.columns * site.spacing_mm / size[1]
    photons = resize(signal * np.float32(site.photons * pixel_mm**2), size)
    np.maximum(photons, 1, out=photons)
    noise = rng.standard_normal(size, dtype=np.float32)
    noise *= np.sqrt(photons)
    photons += noise
    np.maximum(photons, 1, out=photons)
    exposure = np.log(photons, out=photons)
    return _display(np.negative(exposure, out=exposure), site, rng)


def resize(image: FloatArray, size: tuple[int, ...]) -> FloatArray:
    """Bicubic resampling to (rows, columns)."""
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _display(exposure: FloatArray, site: Site, rng: np.random.Generator) -> FloatArray:
    """Automatic ranging on the exposed field, unsharp mask, gamma, gain and offset."""
    field = exposure[::8, ::8]
    body = field[field > field.min() + DIRECT]
    low, high = np.percentile(body, (rng.uniform(3, 6), rng.uniform(95, 98)))
    if site.sharpen:
        step = max(1, exposure.shape[1] // 320)
        exposure *= 1 + np.float32(site.sharpen)
        exposure -= (
            np.float32(site.sharpen)
            * resize(gaussian_filter(exposure[::step, ::step], 2.0), exposure.shape)
            / np.float32(1 + site.sharpen)
        )
    exposure -= np.float32(low)
    exposure *= np.float32((LEVELS - 1) / (high - low))
    level = np.clip(exposure, 0, LEVELS - 1, out=exposure).astype(np.uint16)
    curve = site.offset + site.gain * np.linspace(0, 1, LEVELS) ** (site.gamma * rng.uniform(0.92, 1.08))
    return np.take(curve.astype(np.float32), level)
