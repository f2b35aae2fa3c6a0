"""Where the evidence for a finding lay, as a picture: the scan in grey, the evidence in colour over it, and a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.transform import resize

from medopt.config import Prepare
from medopt.core.records import FloatArray, Volume
from medopt.transforms.display import displayed_images, most_active, overlay
from medopt.transforms.restore import spread_out, to_scan

_MIN_SIDE, _MAX_SIDE = 512, 1024  # pixels of the longer side
_GAP = 4  # between columns
_LIGHT = (235, 235, 235)


def evidence_picture(
    prepare: Prepare,
    label: str,
    probability: float,
    volume: Volume,
    evidence: NDArray[np.float64],
    *,
    covariates: bool = False,
) -> NDArray[np.uint8]:
    """The overlay (H, W, 3) with a scale and a caption below; of a volume the slice with most of the evidence.

    Of a case of several images there is a column for each, under the same evidence: the network has one map for all.

    `evidence` (*grid) is what each region of the prepared scan added to the label's logit; what spoke against it is
    not shown. `covariates`: they have a part in the probability, which lies nowhere in the image.
    """
    spacing = volume.spacing_mm[-volume.spatial_dims :]
    spread_over_scan = evidence_on_scan(prepare, volume, np.maximum(evidence, 0))
    images, columns, maximum = displayed_images(volume, prepare), [], 0.0
    for _, image in images:
        grey, heat = most_active(image, spread_over_scan)
        maximum = float(heat.max())
        sides = _display_sides(grey.shape, spacing[-2:], len(images))
        high = resize(heat / maximum if maximum > 0 else heat, sides)
        columns += [np.ones((sides[0], _GAP, 3)), overlay(resize(grey, sides, anti_aliasing=True), high)]
    blended = np.concatenate(columns[1:], axis=1)
    grid = " x ".join(str(side) for side in evidence.shape)
    caption = (
        f"Where the evidence for '{label}' lay ({100 * probability:.0f} %), in {grid} places.\n"
        "No outline of a finding. Research software, unverified."
    )
    if covariates:
        caption += "\nThe covariates' part of the probability is not on the map."
    if prepare.channel_names:
        caption += f"\nFrom left to right: {', '.join(name for name, _ in images)}."
    return _with_caption(np.rint(255 * blended).astype(np.uint8), caption, maximum)


def evidence_on_scan(prepare: Prepare, volume: Volume, evidence: NDArray[np.float64]) -> FloatArray:
    """Evidence (*grid) on the scan's own grid (*space); 0 where the network has not seen the scan."""
    spread = spread_out(prepare.size)(torch.from_numpy(evidence.astype(np.float32))[None, None])[0]
    shape, spacing = volume.array.shape[1:], volume.spacing_mm[-volume.spatial_dims :]
    return np.asarray(to_scan(spread, shape, spacing, prepare)[0].numpy(), np.float32)


def _display_sides(shape: Sequence[int], spacing_mm: Sequence[float], columns: int) -> tuple[int, int]:
    """Height and width in square pixels, the longer side within the bounds; of several columns each is smaller."""
    height, width = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    longest = max(min(max(*shape, _MIN_SIDE), _MAX_SIDE) * 2 // (columns + 1), _MIN_SIDE // 2)
    return max(1, round(longest * height / max(height, width))), max(1, round(longest * width / max(height, width)))


def _with_caption(picture: NDArray[np.uint8], caption: str, maximum: float) -> NDArray[np.uint8]:
    """The picture with the scale of its colours and a caption below, at least wide enough for them."""
    width = max(picture.shape[1], _MIN_SIDE)
    size = width // 40
    canvas = Image.new("RGB", (width, len(picture) + (4 + caption.count("\n")) * size))
    canvas.paste(Image.fromarray(picture), ((width - picture.shape[1]) // 2, 0))
    font, draw = ImageFont.load_default(size), ImageDraw.Draw(canvas)
    top, bar = len(picture) + size // 2, width // 4
    ramp = overlay(np.full((size, bar), 0.5), np.tile(np.linspace(0, 1, bar), (size, 1)))
    draw.text((size, top), "0", fill=_LIGHT, font=font)
    canvas.paste(Image.fromarray(np.rint(255 * ramp).astype(np.uint8)), (2 * size + size // 2, top))
    most = f"{maximum:.2g} added to the logit by one place (the highest)"
    draw.text((3 * size + bar, top), most, fill=_LIGHT, font=font)
    draw.multiline_text((size, len(picture) + 2 * size), caption, fill=_LIGHT, font=font)
    return np.asarray(canvas)
