"""A scan in grey, as people look at it: its own pixels by the study's mapping of intensities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medopt.config import Prepare
from medopt.records import FloatArray, Volume
from medopt.transforms.prepare import ClipIntensity, SetChannels


def displayed(volume: Volume, config: Prepare) -> FloatArray:
    """A scan's own pixels (*space), 0 (black) to 1 (white)."""
    grey = SetChannels(1)(replace(volume, array=volume.array.copy()))
    clipped = ClipIntensity(config.intensity)(grey)
    center, width = clipped.window or (0.5, 1.0)
    return np.asarray(np.clip((clipped.array[0] - (center - width / 2)) / width, 0, 1), np.float32)
