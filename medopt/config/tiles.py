"""What of a prepared image a network sees at once, and which settings of tiles do not go together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medopt.config.data import Prepare
from medopt.config.model import Model
from medopt.config.training import Training

_PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class NetworkInput:
    """Channels, size and spacing (None: not known) of what the convolutions see; `count`: how many of them an image is.

    A network of the whole image sees one.
    """

    channels: int
    size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    count: int = 1

    @property
    def dims(self) -> int:
        """2 for images, tiles and slices, 3 for volumes."""
        return len(self.size)

    @property
    def at_once(self) -> int:
        """How many have so few pixels together that training keeps them all: `model.tiles_at_once: auto`."""
        return max(2, _PIXELS_AT_ONCE // math.prod(self.size))


def network_input(prepare: Prepare, model: Model) -> NetworkInput:
    """What the convolutions of a study's network see."""
    channels, size = prepare.input_channels, tuple(prepare.size)
    spacing = tuple(prepare.spacing_mm) if prepare.spacing_mm else None
    if model.pooling == "none":
        return NetworkInput(channels, size, spacing)
    if len(size) == 3:
        plane = spacing[1:] if spacing else None
        return NetworkInput(channels * model.slices, size[1:], plane, -(-size[0] // model.slices))
    tile = tuple(model.tile or size)
    count = math.prod(-(-side // step) for side, step in zip(size, tile, strict=True))
    return NetworkInput(channels, tile, spacing, count + model.global_view)


def refusal_of_tiles(prepare: Prepare, model: Model, training: Training, outputs: int) -> str:
    """Why a study cannot look at tiles or slices as its settings say; empty where it can, or does not."""
    if model.pooling == "none":
        return ""
    is_volume, count = len(prepare.size) == 3, network_input(prepare, model).count
    scored, tuned = model.pooling == "top_k", model.has_start
    attends = model.pooling == "attention" and tuned and training.fine_tune.freeze == "all"
    reasons = {
        "model.tile is missing: give the size of a tile, as in [512, 512]": not is_volume and not model.tile,
        "model.slices is of volumes; of images model.tile says what is seen at once": not is_volume
        and model.slices > 1,
        "model.tile and model.global_view are of images; of a volume whole slices are seen, model.slices together":
            is_volume and (bool(model.tile) or model.global_view),
        f"model.pooling: the whole of prepare.size {prepare.size} is one; take less at once, or pooling: none":
            count - model.global_view < 2,
        f"model.top_k is {model.top_k}, but an image has only {count}": scored and model.top_k > count,
        f"model.pooling top_k ranks by one output, and the study has {outputs}; take attention": scored and outputs > 1,
        "model.pooling top_k does not go with a start or with head: every_depth, whose linear model is one of means; "
        "take mean or attention": scored and (tuned or model.head == "every_depth"),
        "model.pooling attention is not trained with training.fine_tune.freeze: all, and would be a mean; take mean, "
        "or freeze less (layer3)": attends,
        "training.compile does not go with model.pooling, whose number of tiles differs from batch to batch; set "
        "compile: false": training.compile is True,
    }  # fmt: skip
    return next((reason for reason, holds in reasons.items() if holds), "")
