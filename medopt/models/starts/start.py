"""What a start is: a network's weights by our names, how that network is built, and the scale of its input."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scaling:
    """What the weights were trained on: `(x * high - mean) / std` for each channel, x in 0..1.

    `order` is that of the channels: "rgb" or "bgr". A grey network has one mean.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    high: float = 1.0
    order: Literal["rgb", "bgr"] = "rgb"


IMAGENET = Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class Start:
    """Weights of a bottleneck ResNet without its last layer.

    tensors: by the names of `medopt.build_resnet`'s network. layout: by which rules they were recognised. depth to
    variant, strides and kernels: as in a study's `model` section; width is of the stem and of the four stages.
    left_out: the names in the file that no layer of ours takes. assumed: what the file does not say, in words.
    """

    tensors: Mapping[str, Tensor]
    layout: str
    depth: int
    width: tuple[float, ...]
    stem: str
    variant: str
    spatial_dims: int
    channels: int
    scaling: Scaling | None = None
    left_out: tuple[str, ...] = ()
    assumed: str = ""
    strides: Any = "isotropic"
    kernels: Any = "isotropic"

    def architecture(self) -> dict[str, Any]:
        """The keys of a study's `model` section that the start decides; strides are those it was trained with."""
        even = set(self.width) == {self.width[0]}
        return {
            "depth": self.depth,
            "width": self.width[0] if even else list(self.width),
            "stem": self.stem,
            "variant": self.variant,
        } | {
            key: value for key, value in (("strides", self.strides), ("kernels", self.kernels)) if value != "isotropic"
        }


Fate = Literal["taken", "adapted", "left out", "new"]


@dataclass(frozen=True, slots=True)
class TensorFate:
    """What became of one tensor: `how` it was adapted, or why it is new or left out."""

    name: str
    shape: tuple[int, ...]
    fate: Fate
    how: str = ""


@dataclass(frozen=True, slots=True)
class LoadedStart:
    """A start fitted to a study's network: the state of the whole network, and what became of each tensor."""

    state: dict[str, Tensor]
    fates: tuple[TensorFate, ...] = field(default=())

    @property
    def share(self) -> float:
        """Share of the backbone's weights that come from the start."""
        sizes = {"from start": 0, "all": 0}
        for fate in self.fates:
            if fate.fate != "left out" and not fate.name.startswith(("fc.", "tiling.")):
                count = self.state[fate.name].numel()
                sizes["all"] += count
                sizes["from start"] += count * (fate.fate in ("taken", "adapted"))
        return sizes["from start"] / max(1, sizes["all"])


@dataclass(frozen=True, slots=True)
class FateGroup:
    """Tensors of one part of the network (the stem, a stage, the head) that had the same fate."""

    part: str
    fate: Fate
    how: str
    tensors: int
    numbers: int


def grouped(fates: Sequence[TensorFate]) -> list[FateGroup]:
    """What became of the tensors, by part, fate and way, in the order of the network.

    >>> [group] = grouped([TensorFate("bn1.bias", (8,), "taken"), TensorFate("bn1.weight", (8,), "taken")])
    >>> group.part, group.tensors, group.numbers
    ('bn1', 2, 16)
    """
    groups: dict[tuple[str, Fate, str], list[int]] = {}
    for fate in fates:
        part = "" if fate.fate == "left out" else fate.name.partition(".")[0]
        groups.setdefault((part, fate.fate, fate.how), []).append(math.prod(fate.shape) if fate.shape != () else 0)
    return [FateGroup(*key, len(sizes), sum(sizes)) for key, sizes in groups.items()]
