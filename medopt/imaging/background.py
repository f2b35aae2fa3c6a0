"""Pixels that show nothing: padding around the image, and voxels outside the body that are not a number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import Volume


def darkened(volume: Volume, what: str) -> Volume:
    """The volume with its background as dark as the darkest of the rest, in place; without one, if it is empty.

    Raises DataError, naming `what` the background is, where nothing else is left.
    """
    if volume.background is None or not volume.background.any():
        return replace(volume, background=None)
    if volume.background.all():
        raise DataError(f"all of its pixels are {what}, so it shows nothing.")
    volume.array[:, volume.background] = volume.content.min()
    return volume


def nan_as_background(volume: Volume) -> Volume:
    """The volume with what is not a number as background (SPM writes NaN outside the body), in place."""
    missing = np.asarray(np.isnan(volume.array).any(axis=0))
    if not missing.any():
        return volume
    background = missing if volume.background is None else missing | volume.background
    return darkened(replace(volume, background=background), "not a number (NaN)")
