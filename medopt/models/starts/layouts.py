"""The names that other libraries give to the weights of a bottleneck ResNet, and ours for each.

A layout is recognised by its keys. Each rule maps a name of theirs to one of ours, or to "" for what we do not need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from medopt.core.errors import ConfigError, listed
from medopt.models.resnet import CHANNELS, LAYERS, STAGES
from medopt.models.starts.start import IMAGENET, Scaling, Start

_BLOCK = re.compile(r"(layer[1-4]\.\d+)\.(.+)")
_NORM = "weight|bias|running_mean|running_var|num_batches_tracked"
_TORCHVISION = dict(zip(("conv1", "conv2", "conv3"), ("reduce", "spatial", "expand"), strict=True))
_TORCHVISION |= {f"bn{number}": f"norm{number}" for number in (1, 2, 3)}
UNUSED = ("fc.", "classifier.", "head.")


@dataclass(frozen=True, slots=True)
class Layout:
    """One family of files: how to recognise it, its names, and what its networks share.

    `prefix` is taken off every name first. `rename` maps a name to ours, "" for what no layer needs, None for what is
    not understood.
    """

    name: str
    fits: Callable[[Mapping[str, Tensor]], bool]
    rename: Callable[[str], str | None]
    variant: Callable[[Mapping[str, Tensor]], str]
    scaling: Scaling | None = None
    prefix: str = ""


def _torchvision_name(name: str) -> str | None:
    if name.startswith(UNUSED):
        return ""
    if re.fullmatch(rf"conv1\.weight|conv1\.[036]\.weight|conv1\.[14]\.({_NORM})|bn1\.({_NORM})", name):
        return name
    match = _BLOCK.fullmatch(name)
    if not match:
        return None
    block, rest = match.groups()
    part, _, end = rest.partition(".")
    if part in _TORCHVISION:
        return f"{block}.{_TORCHVISION[part]}.{end}"
    return f"{block}.skip.{end}" if part == "downsample" else None


def _is_averaged(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the projection comes after a pooling, as in ResNet-D: the convolution is then the second layer."""
    second = tensors.get("layer2.0.downsample.1.weight", tensors.get("layer2.0.skip.1.weight"))
    return second is not None and second.ndim > 1


def _our_name(name: str) -> str | None:
    if name.startswith("fc."):
        return ""
    known = name.startswith(("conv1.", "bn1.", "scaling.")) or _BLOCK.fullmatch(name) is not None
    return name if known else None


TORCHVISION = Layout(
    "torchvision",
    lambda tensors: "layer1.0.conv1.weight" in tensors and "conv1.weight" in tensors,
    _torchvision_name,
    lambda tensors: "d" if _is_averaged(tensors) else "v1.5",
    IMAGENET,
)
TIMM_DEEP = Layout(
    "timm, deep stem",
    lambda tensors: "layer1.0.conv1.weight" in tensors and "conv1.0.weight" in tensors,
    _torchvision_name,
    lambda tensors: "d" if _is_averaged(tensors) else "v1.5",
    IMAGENET,
)
MEDOPT = Layout(
    "medopt",
    lambda tensors: "layer1.0.reduce.weight" in tensors,
    _our_name,
    lambda tensors: "pooled" if _is_averaged(tensors) else "v1.5",
)
LAYOUTS = [TORCHVISION, TIMM_DEEP, MEDOPT]


def recognise(tensors: Mapping[str, Tensor], where: str) -> Start:
    """The start in the tensors of a file; raises ConfigError naming what is not understood or is missing."""
    for layout in LAYOUTS:
        own = {name.removeprefix(layout.prefix): value for name, value in tensors.items()}
        if layout.fits(own):
            return _renamed(own, layout, where)
    known = ", ".join(layout.name for layout in LAYOUTS)
    raise ConfigError(
        f"{where} holds no bottleneck ResNet that medopt knows by its names ({known}); its first tensors are "
        f"{listed(sorted(tensors), 4)}."
    )


def _renamed(tensors: Mapping[str, Tensor], layout: Layout, where: str) -> Start:
    ours: dict[str, Tensor] = {}
    left_out: list[str] = []
    unknown: list[str] = []
    for name, value in tensors.items():
        new = layout.rename(name)
        if new:
            ours[new] = value
        else:
            (unknown if new is None else left_out).append(name)
    if unknown:
        raise ConfigError(
            f"{where} looks like a ResNet as {layout.name} names it, but {len(unknown)} of its tensors have other "
            f"names: {listed(sorted(unknown), 4)}. It may be damaged or of another network."
        )
    return describe(ours, layout.name, layout.variant(tensors), layout.scaling, tuple(left_out), where)


def describe(
    tensors: Mapping[str, Tensor], layout: str, variant: str, scaling: Scaling | None, left_out: tuple[str, ...],
    where: str,
) -> Start:  # fmt: skip
    """A start from tensors by our names: depth, widths and stem follow from their shapes."""
    counts = [
        len({name.split(".")[1] for name in tensors if name.startswith(f"{stage}.") and ".spatial." in name})
        for stage in STAGES
    ]
    depth = next((depth for depth, layers in LAYERS.items() if layers == counts), None)
    first = tensors.get("conv1.weight", tensors.get("conv1.0.weight"))
    if depth is None or first is None:
        raise ConfigError(
            f"{where} has {counts} bottleneck blocks in its four stages{'' if first is not None else ' and no stem'}; "
            f"medopt builds {', '.join(f'{depth} ({layers})' for depth, layers in LAYERS.items())}."
        )
    planes = [tensors[f"{stage}.0.reduce.weight"].shape[0] for stage in STAGES if f"{stage}.0.reduce.weight" in tensors]
    if len(planes) < len(STAGES):
        raise ConfigError(f"{where}: a stage's first convolution is missing ({where} may be damaged).")
    stem = "deep" if "conv1.0.weight" in tensors else {7: "large", 3: "small"}.get(first.shape[-1], "")
    if not stem:
        raise ConfigError(f"{where} begins with a convolution of {first.shape[-1]} places; medopt knows 7 and 3.")
    last = tensors["conv1.6.weight"] if stem == "deep" and "conv1.6.weight" in tensors else first
    stem_width = last.shape[0] / CHANNELS[0]
    width = (stem_width, *(own / whole for own, whole in zip(planes, CHANNELS, strict=True)))
    return Start(*(tensors, layout, depth, width, stem, variant, first.ndim - 2, first.shape[1], scaling, left_out))
