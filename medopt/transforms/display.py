"""A scan as people look at it: in grey by the study's mapping of intensities, and with a map in colour over it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medopt.config import Prepare
from medopt.core.records import FloatArray, Volume
from medopt.imaging.background import nan_as_background
from medopt.transforms.prepare import ClipIntensity, SetChannels

_STRENGTH = 0.55  # how much of a pixel the map covers where it is highest
_COLOURS = (
    np.array([[40, 0, 90], [160, 20, 110], [235, 80, 60], [255, 170, 40], [255, 245, 150]]) / 255
)  # ever lighter, so that it is read in grey, too


def displayed_images(volume: Volume, config: Prepare) -> list[tuple[str, FloatArray]]:
    """A scan as `displayed` shows it, under no name; of a case of several images each that is there, by its name."""
    if not volume.channels:
        return [("", displayed(volume, config))]
    named = zip(config.channel_names, volume.channels, strict=True)
    return [(name, displayed(one, config)) for name, one in named if one is not None]


def displayed(volume: Volume, config: Prepare) -> FloatArray:
    """A single image's own pixels (*space), 0 (black) to 1 (white); of several windows in the first."""
    own = replace(volume, array=volume.array.copy())
    grey = SetChannels(1)(nan_as_background(own) if config.nan == "background" else own)
    clipped = ClipIntensity(config.intensity.parts[0])(grey)
    center, width = clipped.window or (0.5, 1.0)
    return np.asarray(np.clip((clipped.array[0] - (center - width / 2)) / width, 0, 1), np.float32)


def most_active(image: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The image and the map on its grid (H, W); of a volume the slice in which most of the map lies."""
    if image.ndim == 2:
        return image, values
    at = int(values.reshape(len(values), -1).sum(axis=1).argmax())
    return image[at], values[at]


def overlay(image: FloatArray, values: FloatArray) -> NDArray[np.float64]:
    """The grey image with the map over it in colour, (H, W, 3) in 0..1; where the map is 0 the image is untouched."""
    high = np.clip(values, 0, 1)
    at = high * (len(_COLOURS) - 1)
    colour = np.stack([np.interp(at, range(len(_COLOURS)), channel) for channel in _COLOURS.T], axis=-1)
    cover = _STRENGTH * high[..., None]
    return np.clip((1 - cover) * np.clip(image, 0, 1)[..., None] + cover * colour, 0, 1)
