"""The page of suspected labels: each image as the network sees it, with the given and the suggested label."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medopt.core.records import FloatArray
from medopt.evaluation.label_suspects import ANSWERS, Suspect, Suspects
from medopt.report.html import write_page

SIDE = 200


@dataclass(frozen=True, slots=True)
class _Shown:
    suspect: Suspect
    source: str


def write_suspects(
    path: Path,
    suspects: Suspects,
    question: str,
    picture_of: Callable[[Suspect], FloatArray | None],
    count: int,
) -> None:
    """Write the page of the first `count` suspects; `picture_of` gives the prepared image (C, *size), None without one.

    Raises StorageError where it cannot be written.
    """
    shown = [_Shown(one, thumbnail_source(picture_of(one))) for one in suspects.suspects[:count]]
    more = len(suspects.suspects) - len(shown)
    write_page(path, "suspects.html", result=suspects, question=question, answers=ANSWERS, shown=shown, more=more)


def thumbnail_source(image: FloatArray | None) -> str:
    """A prepared image (C, *size) as a data address, of a volume its middle slice; empty where there is none."""
    if image is None:
        return ""
    plane = image[0] if image.ndim == 3 else image[0, image.shape[1] // 2]
    drawn = Image.fromarray(np.uint8(255 * np.clip(plane, 0, 1)))
    drawn.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
