"""A start's weights fitted to a study's network: channels, depth, stem, scale of the input; exact where it can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from medopt.core.errors import ConfigError, listed
from medopt.models.starts.start import LoadedStart, Scaling, Start, TensorFate

_BUFFERS = ("num_batches_tracked",)
COVARIATES = "covariates"  # the coefficients of another study's columns: each study learns its own
_NEW = ("fc.", "scaling.", "tiling.", COVARIATES)


def scaled_channels(start: Start, channels: int) -> int:
    """Channels that the affine layer makes of an image of `channels`, so that the start sees its own; 0: none.

    A grey image goes to each of the start's channels, each with its own mean; of other channels each has the middle of
    the start's.
    """
    if start.scaling is None:
        return 0
    return start.channels if channels == 1 else channels


def fit_start(start: Start, network: nn.Module, where: str, *, partial: bool = False) -> LoadedStart:
    """The state of `network` with the start's weights in it; the last layer keeps the network's own.

    Raises ConfigError naming the tensors that are missing or have another shape, unless `partial`.
    """
    own = network.state_dict()
    state, fates, missing = {}, [], []
    for name, target in own.items():
        value, how = _fitted(start, name, target)
        if value is None and not name.startswith(_NEW) and not name.endswith(_BUFFERS):
            missing.append(f"{name} {tuple(target.shape)}: {how}")
        state[name] = target.clone() if value is None else value.to(target.dtype).contiguous()
        fate = "new" if value is None else "adapted" if how else "taken"
        fates.append(TensorFate(name, tuple(target.shape), fate, how or ("" if value is not None else "drawn")))  # type: ignore[arg-type]
    fates += [TensorFate(name, (), "left out", "no layer of ours takes it") for name in start.left_out]
    unused = sorted(start.tensors.keys() - own.keys() - {COVARIATES})
    if start.scaling is not None and "scaling.scale" not in own:
        missing.append("scaling: the network has no layer for the scale of the start's images (scaled_channels)")
    fates += [TensorFate(name, tuple(start.tensors[name].shape), "left out", "no layer here") for name in unused]
    loaded = LoadedStart(state, tuple(fates))
    if (missing or unused) and (not partial or loaded.share == 0):
        raise ConfigError(
            f"{where} does not fill the network: {_percent(loaded.share)} of the backbone's weights are in it. "
            + (f"Missing: {listed(missing, 3)}. " if missing else "")
            + (f"Not used: {listed(unused, 3)}. " if unused else "")
            + ("model.partial: true takes what fits." if loaded.share else "Nothing in it fits; take another start.")
        )
    return loaded


def _percent(share: float) -> str:
    """Rounded, but never up to all of it.

    >>> _percent(0.9999), _percent(1.0)
    ('99 %', '100 %')
    """
    return f"{math.floor(100 * share)} %"


def _fitted(start: Start, name: str, target: Tensor) -> tuple[Tensor | None, str]:
    """A tensor of the start in the shape of the network's own, and how it was adapted; None, and why, where not."""
    if name in ("scaling.scale", "scaling.shift"):
        if name in start.tensors and start.tensors[name].shape == target.shape:
            return start.tensors[name], ""
        return (None, "no scale is known") if start.scaling is None else _scale(start.scaling, name, target)
    value = None if name == COVARIATES else start.tensors.get(name)
    if value is None:
        return None, "not in the file"
    steps = []
    if value.ndim >= 4 and name in ("conv1.weight", "conv1.0.weight"):
        value, how = _stem(start, value, target)
        steps += how
    if value.ndim == target.ndim - 1 and value.ndim == 4:
        value, steps = inflate(value, target.shape[2]), [*steps, f"inflated to depth {target.shape[2]}"]
    if value.shape != target.shape:
        return None, f"it is {tuple(value.shape)} there"
    return value, ", ".join(steps)


def _stem(start: Start, value: Tensor, target: Tensor) -> tuple[Tensor, list[str]]:
    """The first convolution for other channels and another kernel; its channels in the order of the image's."""
    steps = []
    if start.scaling is not None and start.scaling.order == "bgr":
        value, steps = value.flip(1), ["channels from BGR to RGB"]
    if value.shape[1] != target.shape[1]:
        value = adapt_channels(value, target.shape[1])
        steps.append(f"{start.channels} to {target.shape[1]} channels")
    size = tuple(target.shape[-(value.ndim - 2) :])
    if value.ndim <= target.ndim and value.shape[2:] != size:
        value = resample_kernel(value, size)
        steps.append(f"kernel resampled to {'x'.join(map(str, size))}")
    return value, steps


def in_rgb(start: Start) -> dict[str, Tensor]:
    """The start's tensors, with the first convolution's channels in the order of an image's."""
    tensors = {name: value for name, value in start.tensors.items() if not name.startswith("scaling.")}
    if start.scaling is not None and start.scaling.order == "bgr":
        name = "conv1.weight" if "conv1.weight" in tensors else "conv1.0.weight"
        tensors[name] = tensors[name].flip(1)
    return tensors


def scaling_tensors(start: Start) -> dict[str, Tensor]:
    """The affine layer of the start's images, by the names in a network with as many channels; empty: it has none."""
    if start.scaling is None:
        return {}
    shape = (start.channels, *[1] * start.spatial_dims)
    names = ("scaling.scale", "scaling.shift")
    return {name: _scale(start.scaling, name, torch.empty(shape))[0].contiguous() for name in names}


def _scale(scaling: Scaling, name: str, target: Tensor) -> tuple[Tensor, str]:
    mean, std = torch.tensor(scaling.mean, dtype=torch.float64), torch.tensor(scaling.std, dtype=torch.float64)
    if scaling.order == "bgr":
        mean, std = mean.flip(0), std.flip(0)
    if len(mean) != target.shape[0]:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    value = scaling.high / std if name.endswith("scale") else -mean / std
    return value.expand(target.shape[0]).reshape(target.shape).float(), "the scale of the start's images"


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution (O, C, *kernel) for another number of channels.

    To one: the sum of the kernels, exact for a grey image that was given to every channel. To N: their mean, scaled so
    that equal channels give the same response.
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.mean(1, keepdim=True).repeat(1, channels, *[1] * (weight.ndim - 2)) * (weight.shape[1] / channels)


def inflate(weight: Tensor, depth: int) -> Tensor:
    """A 2-D kernel (O, C, H, W) repeated over `depth` slices and divided by it: (O, C, depth, H, W).

    What does not change along the depth gives the response that the image gave (Carreira & Zisserman 2017).
    """
    return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1) / depth


def resample_kernel(weight: Tensor, size: Sequence[int]) -> Tensor:
    """A kernel resampled to `size` places on each axis with the same sum: an even image gives the same response."""
    dims = weight.ndim - 2
    mode = "bilinear" if dims == 2 else "trilinear"
    small = interpolate(weight, list(size), mode=mode, antialias=dims == 2)
    whole = weight.sum(tuple(range(2, weight.ndim)), keepdim=True)
    return small + (whole - small.sum(tuple(range(2, weight.ndim)), keepdim=True)) / math.prod(small.shape[2:])


def table_of(loaded: LoadedStart) -> Mapping[str, int]:
    """How many tensors were taken, adapted, left out and new."""
    counts = {"taken": 0, "adapted": 0, "left out": 0, "new": 0}
    for fate in loaded.fates:
        counts[fate.fate] += 1
    return counts
