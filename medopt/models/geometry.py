"""How far a bottleneck ResNet halves each axis of an image, and how far its kernels reach along it.

Thick slices are the reason. Along an axis whose step is twice as large as the finest one or more, the network neither
halves nor mixes neighbours, until the other axes were halved so often that their steps have caught up; and it halves
no axis of which fewer than MIN_PLACES positions would be left.
Source: Isensee et al., nnU-Net (Nature Methods 2021), its rules for pooling and for kernels, with a bottleneck of 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medopt.core.errors import ConfigError

Stem = Literal["auto", "small", "medium", "large", "deep", "full", "slices"]
Axes = tuple[int, ...]
PerAxis = Literal["isotropic", "auto"] | Sequence[Sequence[int]]
"""The same along all axes, fitted to size and spacing, or five lists of a number an axis."""
MIN_PLACES = 3
SIDES, STRIDES = (1, 3, 5, 7), (1, 2)


@dataclass(frozen=True, slots=True)
class StemShape:
    """A stem's kernel and stride on three axes, of which an image has the last two; `pools`: max pooling follows."""

    kernel: Axes
    stride: Axes
    pools: bool


STEMS = {
    "small": StemShape((3, 3, 3), (1, 1, 1), pools=False),
    "medium": StemShape((3, 3, 3), (2, 2, 2), pools=False),
    "large": StemShape((7, 7, 7), (2, 2, 2), pools=True),
    "deep": StemShape((3, 3, 3), (2, 2, 2), pools=True),
    "full": StemShape((7, 7, 7), (1, 1, 1), pools=True),
    "slices": StemShape((3, 7, 7), (1, 2, 2), pools=True),
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """A network's stem, and five tuples each with a number an axis.

    strides: of the stem's convolution, its pooling, layer2, layer3 and layer4. kernels: of the stem's convolution, and
    of the 3x3 convolutions of the four stages.
    """

    stem: str
    strides: tuple[Axes, ...]
    kernels: tuple[Axes, ...]

    def settings(self) -> dict[str, Any]:
        """The keys of a study's `model` section that build this network; `isotropic` where nothing else is needed."""
        same = isotropic(self.stem, len(self.strides[0]))
        return {
            "stem": self.stem,
            "strides": "isotropic" if self.strides == same.strides else [[*step] for step in self.strides],
            "kernels": "isotropic" if self.kernels == same.kernels else [[*side] for side in self.kernels],
        }


def isotropic(stem: str, dims: int) -> Geometry:
    """The geometry that a stem has by itself: every stage after the first halves all axes."""
    shape = STEMS[stem]
    pooling = (2 if shape.pools else 1,) * dims
    return Geometry(
        stem, (shape.stride[-dims:], pooling, *[(2,) * dims] * 3), (shape.kernel[-dims:], *[(3,) * dims] * 4)
    )


def choose_stem(size: Sequence[int] | None) -> Literal["small", "medium", "large"]:
    """The stem that reduces the shortest side as far as the last blocks bear; without a size the published one.

    The blocks halve the image three times more.
    """
    if not size:
        return "large"
    return "small" if min(size) < 48 else "medium" if min(size) < 96 else "large"


def fit_geometry(size: Sequence[int], spacing: Sequence[float] | None = None, stem: str = "auto") -> Geometry:
    """The geometry for images of `size` whose steps along the axes are as `spacing`: what `auto` stands for.

    Without a spacing an image's pixels are taken to be square, and a volume's axes to be equally long. `stem: auto` is
    the one that leaves MIN_PLACES positions or more on the axis that has most.

    >>> fit_geometry((20, 320, 320), (5.0, 0.5, 0.5)).strides
    ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    >>> fit_geometry((128, 128, 128)) == isotropic("large", 3)
    True
    """
    dims = len(size)
    steps = [float(step) for step in spacing] if spacing else [1 / side if dims == 3 else 1.0 for side in size]
    own = isotropic(_fitted_stem(size) if stem == "auto" else stem, dims)
    left, mixes = [float(side) for side in size], [False] * dims
    strides: list[Axes] = []
    kernels = [_kernel(own.kernels[0], steps, mixes)]
    for level, most in enumerate(own.strides):
        wide = [axis for axis in range(dims) if most[axis] > 1 and left[axis] >= 2 * MIN_PLACES]
        finest = min((steps[axis] for axis in wide), default=0.0)
        strides.append(tuple(2 if axis in wide and steps[axis] < 2 * finest else 1 for axis in range(dims)))
        steps = [step * factor for step, factor in zip(steps, strides[-1], strict=True)]
        left = [side / factor for side, factor in zip(left, strides[-1], strict=True)]
        if level:  # of layer1 behind the pooling, and of the stages that follow
            kernels.append(_kernel(own.kernels[level], steps, mixes))
    return Geometry(own.stem, tuple(strides), tuple(kernels))


def _fitted_stem(size: Sequence[int]) -> str:
    """The stem for the longest side; a volume's halves at least once, as without it the work is eight times as much."""
    stem = choose_stem([max(size)])
    return "medium" if stem == "small" and len(size) == 3 else stem


def _kernel(whole: Axes, steps: Sequence[float], mixes: list[bool]) -> Axes:
    """A kernel that reaches along the axes whose step is near the finest; `mixes` keeps those that once were."""
    for axis, step in enumerate(steps):
        mixes[axis] = mixes[axis] or step < 2 * min(steps)
    return tuple(side if mixed else 1 for side, mixed in zip(whole, mixes, strict=True))


def resolve_geometry(
    dims: int, stem: str, strides: PerAxis, kernels: PerAxis, size: Sequence[int] | None,
    spacing: Sequence[float] | None, *, dilated: bool = False,
) -> Geometry:  # fmt: skip
    """The geometry of a network from what is said of it; `dilated`: its last two stages halve nothing.

    Raises ConfigError where five lists do not fit the axes or the stem, or where `auto` has no size to go by.
    """
    if "auto" in (strides, kernels) and not size:
        raise ConfigError("strides or kernels are auto, which need the size of the images (size).")
    if stem == "auto":
        stem = _stem_of(strides, size)
    own = isotropic(stem, dims)
    fitted = fit_geometry(size, spacing, stem) if size else own
    chosen = Geometry(
        stem,
        _chosen("strides", strides, own.strides, fitted.strides, STRIDES),
        _chosen("kernels", kernels, own.kernels, fitted.kernels, SIDES),
    )
    if not STEMS[stem].pools and max(chosen.strides[1]) > 1:
        raise ConfigError(
            f"strides: the stem {stem} has no pooling, so its second list is all 1, not {chosen.strides[1]}."
        )
    if dilated and strides == "auto":
        return Geometry(stem, (*chosen.strides[:3], (1,) * dims, (1,) * dims), chosen.kernels)
    if dilated and strides != "isotropic" and max(max(step) for step in chosen.strides[3:]) > 1:
        raise ConfigError("strides: layer3 and layer4 of the variant dilated halve nothing; give 1 for all their axes.")
    return chosen


def _stem_of(strides: PerAxis, size: Sequence[int] | None) -> str:
    """The stem where none is said: one with a pooling and a stride where the strides need them."""
    if not isinstance(strides, str):
        halved = [max([1, *step]) > 1 for step in strides]
        return "large" if halved[1:2] == [True] else "medium" if halved[:1] == [True] else "small"
    return _fitted_stem(size) if strides == "auto" and size else choose_stem(size)


def _chosen(
    name: str, setting: PerAxis, own: tuple[Axes, ...], fitted: tuple[Axes, ...], choices: tuple[int, ...]
) -> tuple[Axes, ...]:
    if isinstance(setting, str):
        if setting not in ("isotropic", "auto"):
            raise ConfigError(f"{name} is {setting!r}; give one of isotropic, auto, or five lists of a number an axis.")
        return own if setting == "isotropic" else fitted
    lists, dims = tuple(tuple(each) for each in setting), len(own[0])
    if len(lists) != len(own) or {len(each) for each in lists} != {dims}:
        raise ConfigError(
            f"{name}: give five lists of {dims} numbers, one an axis; not {[list(one) for one in lists]}."
        )
    if other := sorted({number for each in lists for number in each} - set(choices)):
        raise ConfigError(f"{name}: {other[0]} is none of {', '.join(map(str, choices))}.")
    return lists
