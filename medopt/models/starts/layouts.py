"""The names that other libraries give to the weights of a bottleneck ResNet, and ours for each.

A layout is recognised by its keys and shapes. What these cannot tell (strides, dilation, the scale of the images) is
that of the library which writes such files, and `Start.assumed` says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medopt.core.errors import ConfigError, listed
from medopt.models.geometry import SIDES, isotropic
from medopt.models.resnet import CHANNELS, LAYERS, STAGES
from medopt.models.starts.start import IMAGENET, Scaling, Start

Tensors = Mapping[str, Tensor]
BATCH_EPSILON = 1e-5  # of torch's batch normalization, and so of ours
_KERAS_EPSILON = 1.001e-5  # of Keras' ResNets
_OURS, _THEIRS = "layer1.0.reduce.weight", "layer1.0.conv1.weight"
_IN_ORDER = re.compile(r"4\.0\.conv1\.weight$")  # torchvision's children by number: 0 conv1, 1 bn1, 4 to 7 the stages
_CHILDREN = {"0": "conv1", "1": "bn1"} | {str(4 + number): stage for number, stage in enumerate(STAGES)}
_BLOCK = re.compile(r"(layer[1-4]\.\d+)\.(.+)")
_NORM = "weight|bias|running_mean|running_var|num_batches_tracked"
_PARTS = {f"conv{number}": own for number, own in enumerate(("reduce", "spatial", "expand"), start=1)}
_PARTS |= {f"bn{number}": f"norm{number}" for number in (1, 2, 3)}
_HEADS = ("fc.", "classifier.", "head.", "last_linear.", "contrastive_head.", "conv_seg.")


@dataclass(frozen=True, slots=True)
class Layout:
    """One family of files with torchvision's names: how to recognise it, and what its networks share.

    `fits` looks at the names without what stands before them, which is its second argument. `variant` and `stem` are
    empty where the keys tell them; `assumed` is what they do not tell.
    """

    name: str
    fits: Callable[[Tensors, str], bool]
    variant: str = ""
    stem: str = ""
    scaling: Scaling | None = None
    assumed: str = ""


def _is_medicalnet(tensors: Tensors, before: str) -> bool:
    first = tensors.get("conv1.weight")
    grey_volume = first is not None and first.ndim == 5 and first.shape[1] == 1
    return grey_volume and before == "module." and "fc.weight" not in tensors


def _is_of_slices(tensors: Tensors, _: str) -> bool:
    return "conv1.weight" in tensors and tensors["conv1.weight"].shape[2:] == (3, 7, 7)


def _is_chest(tensors: Tensors, _: str) -> bool:
    first, last = tensors.get("conv1.weight"), tensors.get("fc.weight")
    return first is not None and first.ndim == 4 and first.shape[1] == 1 and last is not None and len(last) == 18


def _is_colour(tensors: Tensors, _: str) -> bool:
    first = tensors.get("conv1.weight", tensors.get("conv1.0.weight"))
    return first is not None and first.ndim == 4 and first.shape[1] == 3


NO_SCALE = "images in 0..1: the file does not say their scale"
CHEST = Scaling((1024.0,), (1.0,), 2048.0)  # -1024..1024
LAYOUTS = [
    Layout(
        "RadImageNet", lambda _, before: before.endswith("#"), "v1.5", scaling=Scaling((0.5,) * 3, (0.5,) * 3),
        assumed="images in -1..1, as RadImageNet's own code has them",
    ),
    Layout(
        "MedicalNet", _is_medicalnet, "dilated",
        assumed=f"the last two stages dilated, as MedicalNet's; {NO_SCALE}",
    ),
    Layout(
        "I3ResNet", _is_of_slices, "v1.5", "slices", Scaling((0.0,) * 3, (1.0,) * 3),
        assumed="no stride through the slices in the stem, as I3ResNet's; images in 0..1",
    ),
    Layout(
        "Keras", lambda tensors, _: "conv1.bias" in tensors, "v1",
        assumed=f"the stride on the first 1x1, as Keras' ResNets; {NO_SCALE}",
    ),
    Layout("torchxrayvision", _is_chest, "v1.5", scaling=CHEST, assumed="images in -1024..1024"),
    Layout(
        "MONAI", lambda tensors, _: "layer1.0.downsample.0.bias" in tensors, "v1.5", "full",
        assumed=f"a stem of stride 1, as MONAI's by default; {NO_SCALE}",
    ),
    Layout(
        "timm, deep stem", lambda tensors, before: "conv1.0.weight" in tensors and _is_colour(tensors, before),
        scaling=IMAGENET, assumed="ImageNet's mean and standard deviation",
    ),
    Layout(
        "torchvision", _is_colour, scaling=IMAGENET,
        assumed="the stride on the 3x3; ImageNet's mean and standard deviation",
    ),
    Layout("torchvision", lambda *_: True, assumed=f"the stride on the 3x3; {NO_SCALE}"),
]  # fmt: skip


def recognise(tensors: Tensors, where: str, metadata: Mapping[str, Any] | None = None) -> Start:
    """The start in the tensors of a file, by its names; `metadata`: its variant, stem, strides, if it says them.

    Raises ConfigError naming what is not understood or is missing.
    """
    metadata = metadata or {}
    if before := _before(tensors, _OURS, where):
        return _own(*_within(tensors, before), where, metadata)
    if before := _before(tensors, _THEIRS, where):
        return _from_torchvision(*_within(tensors, before), before[:-1], where)
    in_order = {name for name in tensors if _IN_ORDER.search(name)}
    if len(in_order) == 1:
        before = _IN_ORDER.sub("", in_order.pop())
        inside, left_out = _within(tensors, f"{before}#")
        return _from_torchvision(_by_children(inside), left_out, f"{before}#", where)
    raise ConfigError(
        f"{where} holds no bottleneck ResNet by names that medopt knows ({_known()}); its first tensors are "
        f"{listed(sorted(tensors), 4)}."
    )


def _known() -> str:
    return ", ".join(dict.fromkeys([*(layout.name for layout in LAYOUTS), "medopt"]))


def _before(tensors: Tensors, key: str, where: str) -> str:
    """What stands before the names of the one network in the file, with a # at the end; empty: there is none.

    Of a training's checkpoint it is the moving average, else the model.
    """
    found = {name.removesuffix(key) for name in tensors if name == key or name.endswith(f".{key}")}
    if {"average.", "model."} == found:
        found = {"average."}
    if len(found) > 1:
        raise ConfigError(f"{where} holds {len(found)} networks ({listed(sorted(found), 3)}); keep one of them in it.")
    return f"{found.pop()}#" if found else ""


def _within(tensors: Tensors, before: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network without what stands before their names; and the names of all others."""
    start = before.removesuffix("#")
    inside = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return inside, [name for name in tensors if not name.startswith(start)]


def _by_children(tensors: Tensors) -> dict[str, Tensor]:
    """torchvision's names of a network whose layers are numbered."""
    renamed = {}
    for name, value in tensors.items():
        number, _, rest = name.partition(".")
        renamed[f"{_CHILDREN.get(number, number)}.{rest}"] = value
    return renamed


def _own(tensors: Tensors, left_out: list[str], where: str, metadata: Mapping[str, Any]) -> Start:
    known = ("conv1.", "bn1.", "scaling.")
    heads = [name for name in tensors if name.startswith(("fc.", "tiling."))]
    unknown = [n for n in tensors if n not in heads and not n.startswith(known) and not _BLOCK.fullmatch(n)]
    _refuse_unknown(unknown, where, "medopt")
    ours = {name: value for name, value in tensors.items() if name not in heads}
    averaged = _second_projects(ours, "skip")
    variant = metadata.get("variant") or ("pooled" if averaged else "v1.5")
    scaling = None
    if "scaling.scale" in ours and "scaling.shift" in ours:
        scale, shift = (ours[f"scaling.{name}"].double().flatten() for name in ("scale", "shift"))
        scaling = Scaling(tuple((-shift / scale).tolist()), tuple((1 / scale).tolist()))
    assumed = "" if metadata else "its variant and stem: a weights' file of a run does not say them"
    return describe(
        *(ours, "medopt", variant, scaling, (*left_out, *heads), where, metadata.get("stem", ""), assumed),
        metadata.get("strides", "isotropic"),
    )


def _second_projects(tensors: Tensors, skip: str) -> bool:
    """Whether the projection comes after a pooling, as in ResNet-D: the convolution is then the second layer."""
    second = tensors.get(f"layer2.0.{skip}.1.weight")
    return second is not None and second.ndim > 1


def _from_torchvision(tensors: Tensors, left_out: list[str], before: str, where: str) -> Start:
    layout = next(layout for layout in LAYOUTS if layout.fits(tensors, before))
    averaged = _second_projects(tensors, "downsample")
    _refuse_lost_biases(tensors, where)
    tensors = _without_biases(tensors, _KERAS_EPSILON if layout.name == "Keras" else BATCH_EPSILON)
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        if name.startswith(_HEADS):
            left_out.append(name)
        elif new := _our_name(name, averaged):
            ours[new] = value
        else:
            unknown.append(name)
    _refuse_unknown(unknown, where, layout.name)
    variant = layout.variant or ("d" if averaged else "v1.5")
    return describe(
        ours, layout.name, variant, layout.scaling, tuple(left_out), where, layout.stem, layout.assumed
    )  # fmt: skip


def _refuse_unknown(unknown: list[str], where: str, layout: str) -> None:
    if unknown:
        raise ConfigError(
            f"{where} looks like a ResNet as {layout} names it, but {len(unknown)} of its tensors have other "
            f"names: {listed(sorted(unknown), 4)}. It may be damaged or of another network."
        )


def _our_name(name: str, averaged: bool) -> str:
    """Our name for one of torchvision's; empty: it has none. Where no pixel is skipped, timm has an empty pooling."""
    if re.fullmatch(rf"conv1\.weight|conv1\.[036]\.weight|conv1\.[14]\.({_NORM})|bn1\.({_NORM})", name):
        return name
    match = _BLOCK.fullmatch(name)
    if not match:
        return ""
    block, rest = match.groups()
    part, _, end = rest.partition(".")
    if part in _PARTS:
        return f"{block}.{_PARTS[part]}.{end}"
    number, _, end = end.partition(".")
    if part != "downsample" or not number.isdigit():
        return ""
    return f"{block}.skip.{int(number) - (averaged and block == 'layer1.0')}.{end}"


def _without_biases(tensors: Tensors, epsilon: float) -> dict[str, Tensor]:
    """The same network with the convolutions' biases, and another epsilon, taken into the normalizations after them.

    Exact in evaluation: the mean is less the bias, the variance is more by what the epsilon is more than ours.
    """
    folded = dict(tensors)
    for name, bias in tensors.items():
        layer = name.removesuffix(".bias")
        if layer == name or tensors.get(f"{layer}.weight", bias).ndim < 4:
            continue
        mean = f"{_norm_after(layer)}.running_mean"
        if mean in folded and folded[mean].shape == bias.shape:
            folded[mean] = folded[mean] - bias
            del folded[name]
    if epsilon != BATCH_EPSILON:
        more = epsilon - BATCH_EPSILON
        folded = {n: value + more if n.endswith("running_var") else value for n, value in folded.items()}
    return folded


def _refuse_lost_biases(tensors: Tensors, where: str) -> None:
    """Convolutions have biases all together, or the projections alone (MONAI), or none: else some are missing."""
    convolutions = {name.removesuffix(".weight") for name, value in tensors.items() if value.ndim >= 4}
    biased = {name for name in convolutions if f"{name}.bias" in tensors}
    projections = {name for name in convolutions if ".downsample." in name}
    lost = (convolutions if biased - projections else projections) - biased if biased else set()
    if lost:
        raise ConfigError(
            f"{where} has biases of {len(biased)} convolutions, but none of {listed(sorted(lost), 3)}: it is damaged."
        )


def _norm_after(conv: str) -> str:
    """The name of the normalization after a convolution, both as torchvision and timm name them."""
    parent, _, own = conv.rpartition(".")
    if own.isdigit():
        return "bn1" if conv == "conv1.6" else f"{parent}.{int(own) + 1}"
    return conv.removesuffix(own) + own.replace("conv", "bn")


def describe(
    tensors: Tensors, layout: str, variant: str, scaling: Scaling | None, left_out: tuple[str, ...], where: str,
    stem: str = "", assumed: str = "", strides: Any = "isotropic",
) -> Start:  # fmt: skip
    """A start from tensors by our names: depth, widths and kernels follow from their shapes; the stem if not given."""
    counts = [len({name.split(".")[1] for name in tensors if name.startswith(f"{stage}.")}) for stage in STAGES]
    depth = next((depth for depth, layers in LAYERS.items() if layers == counts), None)
    first = tensors.get("conv1.weight", tensors.get("conv1.0.weight"))
    if depth is None or first is None or first.ndim not in (4, 5):
        raise ConfigError(
            f"{where} has {counts} bottleneck blocks in its four stages{'' if first is not None else ' and no stem'}; "
            f"medopt builds {', '.join(f'{depth} ({layers})' for depth, layers in LAYERS.items())}."
        )
    names = [f"{stage}.0.reduce.weight" for stage in STAGES]
    if absent := [name for name in names if name not in tensors]:
        raise ConfigError(f"{where} has no first convolution of a stage ({listed(absent)} by our names).")
    stem = stem or _stem_of(tensors, tuple(first.shape[2:]), where)
    last = tensors.get("conv1.6.weight", first) if stem == "deep" else first
    planes = [tensors[name].shape[0] for name in names]
    width = (last.shape[0] / CHANNELS[0], *(own / whole for own, whole in zip(planes, CHANNELS, strict=True)))
    return Start(
        *(tensors, layout, depth, width, stem, variant, first.ndim - 2, first.shape[1], scaling, left_out, assumed),
        *(strides, _kernels_of(tensors, stem, first, where)),
    )


def _kernels_of(tensors: Tensors, stem: str, first: Tensor, where: str) -> Any:
    """The kernels of the stem and of the stages' 3x3 convolutions, by their shapes; "isotropic" where all are usual."""
    own = isotropic(stem, first.ndim - 2).kernels
    spatial = [tensors.get(f"{stage}.0.spatial.weight") for stage in STAGES]  # a missing one is told of later
    kernels = tuple(
        usual if weight is None else tuple(int(side) for side in weight.shape[2:])
        for weight, usual in zip((first, *spatial), own, strict=True)
    )
    if any(side not in SIDES for kernel in kernels for side in kernel):
        raise ConfigError(f"{where} has kernels of {kernels}; medopt builds sides of {', '.join(map(str, SIDES))}.")
    return "isotropic" if kernels == own else [list(kernel) for kernel in kernels]


def _stem_of(tensors: Tensors, kernel: tuple[int, ...], where: str) -> str:
    if "conv1.0.weight" in tensors:
        return "deep"
    if kernel == (3, 7, 7):
        return "slices"
    if {*kernel} - {1} not in ({7}, {3}):
        raise ConfigError(f"{where} begins with a convolution of {'x'.join(map(str, kernel))}; medopt knows 7 and 3.")
    return "large" if max(kernel) == 7 else "small"
