"""Back from the model's geometry to the scan's: where in the scan lies what the model was shown."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from medopt.config import Prepare
from medopt.transforms.resize import crop_or_pad, fitted, resize


def to_scan(values: Tensor, shape: Sequence[int], spacing_mm: Sequence[float], config: Prepare) -> Tensor:
    """Bring values on the prepared grid (C, *size) onto the scan's own grid (C, *shape).

    `shape` and `spacing_mm` are those of the scan as it was read. Undoes the steps of `PrepareChain` in reverse: what
    was padded is cut off, what was cut off is zero (the model has not seen it), then both resizings are undone at once.
    """
    space = list(shape)
    if config.spacing_mm is not None:
        wanted = zip(shape, spacing_mm, config.spacing_mm, strict=True)
        space = [max(1, round(n * have / want)) for n, have, want in wanted]
    return resize(crop_or_pad(values, fitted(space, config.size, config.fit)), shape)
