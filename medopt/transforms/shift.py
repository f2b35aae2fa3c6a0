"""Simulated domain shift: draw one *other scanner* of a modality, whole, for an image.

Single effects drawn apart make images that no scanner gives. A scanner of another site differs in all of its traits at
once and consistently: a sharper detector is noisier, a low-dose one grainier, a vendor's response curve steeper. The
ranges below are in physical terms on the prepared image (pixels, photons a pixel, fractions of the intensity range).
"""

from __future__ import annotations

from collections.abc import Callable

from medopt.transforms.appearance import Appearance, draw_field, draw_seed, log_uniform
from medopt.transforms.noise import Random


def _radiograph(random: Random, dims: int) -> Appearance:
    """Computed and digital radiography: scintillator blur against quantum noise, and the vendor's processing.

    Photons are those of a prepared pixel, which gathers those of many of the detector's.
    """
    blur = random.uniform(0.0, 0.8)
    return Appearance(
        blur=blur,
        # A thicker scintillator blurs more and catches more photons.
        photons=log_uniform(random, 400, 20000) * (1 + blur),
        bias_field=draw_field(random, dims, 0.15),  # heel effect: the beam is weaker toward the anode
        sharpen=random.uniform(0.0, 1.0),
        gamma=log_uniform(random, 0.7, 1.45),
        contrast=random.uniform(0.85, 1.2),
        brightness=random.uniform(-0.05, 0.05),
        seed=draw_seed(random),
    )


def _ct(random: Random, dims: int) -> Appearance:
    """CT: kernel (soft to sharp) against noise, and slice thickness. HU are calibrated: no response curve."""
    blur = random.uniform(0.0, 1.5)
    return Appearance(
        blur=blur,
        low_resolution=random.uniform(1.0, 1.8),
        gaussian=log_uniform(random, 0.005, 0.08) / (1 + blur),
        seed=draw_seed(random),
    )


def _mr(random: Random, dims: int) -> Appearance:
    """MR: coil sensitivity, field strength (noise is Rician), resolution, and contrast of another sequence timing."""
    return Appearance(
        blur=random.uniform(0.0, 0.8),
        low_resolution=random.uniform(1.0, 1.6),
        bias_field=draw_field(random, dims, 0.6),
        rician=log_uniform(random, 0.005, 0.08),
        gamma=log_uniform(random, 0.7, 1.45),
        contrast=random.uniform(0.85, 1.15),
        seed=draw_seed(random),
    )


def _ultrasound(random: Random, dims: int) -> Appearance:
    """Ultrasound: probe frequency (blur), speckle, time-gain compensation, dynamic range of the log compression."""
    return Appearance(
        blur=random.uniform(0.0, 1.0),
        low_resolution=random.uniform(1.0, 1.5),
        bias_field=draw_field(random, dims, 0.5),
        speckle=random.uniform(0.0, 0.2),
        gaussian=random.uniform(0.0, 0.03),
        gamma=log_uniform(random, 0.65, 1.5),
        contrast=random.uniform(0.8, 1.25),
        brightness=random.uniform(-0.1, 0.1),
        seed=draw_seed(random),
    )


SCANNERS: dict[str, Callable[[Random, int], Appearance]] = {
    "radiograph": _radiograph,
    "ct": _ct,
    "mr": _mr,
    "ultrasound": _ultrasound,
}


def draw_scanner(modality: str, spatial_dims: int, random: Random) -> Appearance:
    """One other scanner of `modality` (radiograph, ct, mr, ultrasound)."""
    return SCANNERS[modality](random, spatial_dims)
