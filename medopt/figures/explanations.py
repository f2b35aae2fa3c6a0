"""Pictures of explained cases: the scan in its own geometry, beside it the same with the map laid over.

A picture shows pixels and the case's pseudonym, never a word of the header. What is burned into the pixels themselves
is in the picture as it is in the scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medopt.core.records import FloatArray
from medopt.figures.style import figure_page
from medopt.transforms.display import most_active, overlay

MOST_PIXELS = 320  # of a side in the picture


@dataclass(frozen=True, slots=True)
class Explained:
    """A case's images and map on the scan's own grid, (H, W) or (D, H, W) in 0..1, and what stands above them."""

    images: Sequence[FloatArray]
    map: FloatArray
    title: str


def _fewer(image: FloatArray) -> FloatArray:
    """Every n-th pixel, so that a side has at most about MOST_PIXELS."""
    step = max(1, -(-max(image.shape) // MOST_PIXELS))
    return image[::step, ::step]


def _pair(image: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """An image (H, W, 3), and the same with the map over it."""
    image, values = (_fewer(one) for one in most_active(image, values))
    return np.repeat(np.clip(image, 0, 1)[..., None], 3, axis=2), overlay(image, values).astype(np.float32)


def joined(images: Sequence[FloatArray], axis: int) -> FloatArray:
    """Pictures (H, W, 3) of one size side by side (axis 1) or below each other, with a white gap between."""
    height, width = images[0].shape[:2]
    step = max(1, (height, width)[axis] // 40)
    gap = np.ones((height, step, 3) if axis else (step, width, 3), np.float32)
    parts = [part for image in images for part in (gap, image)]
    return np.concatenate(parts[1:], axis=axis)


def explain_figure(
    cases: Sequence[Explained], path: Path, *, caption: str, title: str = "Where the network looked"
) -> None:
    """One panel a case: the scan, and the scan with the map, side by side. The lightest colour is the map's highest.

    Of several images each has a column: the image above, and the same with the map below.
    """
    with figure_page(path, len(cases), title, caption=caption, columns=3, height=2.9, is_chart=False) as panels:
        for axes, shown in zip(panels, cases, strict=True):
            pairs = [_pair(image, shown.map) for image in shown.images]
            picture = joined(pairs[0], 1) if len(pairs) == 1 else joined([joined(pair, 0) for pair in pairs], 1)
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(shown.title, fontsize=8)
            axes.axis("off")


def nearest_figure(rows: Sequence[tuple[str, Sequence[tuple[str, FloatArray]]]], path: Path) -> None:
    """One row an error: its prepared image, then the training images nearest to it, each with the words above it."""
    across = max(len(images) for _, images in rows)
    caption = (
        "First of a row: the error. Then the training images whose features are nearest, as the network sees them."
    )
    title, count = "Nearest training images", across * len(rows)
    with figure_page(path, count, title, caption=caption, columns=across, height=2.6, is_chart=False) as panels:
        for axes in panels:
            axes.axis("off")
        for row, (name, images) in enumerate(rows):
            for column, (words, image) in enumerate(images):
                axes = panels[row * across + column]
                plane = image[len(image) // 2] if image.ndim == 3 else image
                axes.imshow(plane, cmap="gray", vmin=0, vmax=1)
                axes.set_title(words if column else f"{name}\n{words}", fontsize=8)
