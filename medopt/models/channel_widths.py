"""How wide each layer of a bottleneck ResNet is, and the same network with narrower layers.

Channels hang together in groups. What a residual stage passes on is one group: every block's `expand` adds to it, the
first block's projection begins it, and all later blocks and the next stage read it, so a channel leaves all of them or
none. The stem's channels and the two inner widths of a block are groups of their own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.models.bottleneck import BottleneckLayer
from medopt.models.depth_heads import DepthHeads
from medopt.models.resnet import STAGES, build_model

WIDTHS = "widths"  # the note of a weights' file that holds them
KeptChannels = Mapping[str, Tensor]
"""Of each group by name the channels that stay: indices (n,), rising."""


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that are kept or taken away together, by the names of the layers.

    `writers` are pairs of a convolution and its normalization, whose outputs they are; `readers` the convolutions and
    linear layers whose inputs they are.
    """

    name: str
    writers: tuple[tuple[str, str], ...]
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of every group: the stem, what each stage passes on, and of each of its blocks (reduce, spatial)."""

    stem: int
    residual: tuple[int, ...]
    inner: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The widths of a network that `build_model` or `narrow_model` built."""
        widths = {group.name: module_of(model, group.writers[0][0]).out_channels for group in channel_groups(model)}
        stages = [list(_blocks(model, stage)) for stage in STAGES]
        inner = [[(widths[f"{name}.reduce"], widths[f"{name}.spatial"]) for name, _ in blocks] for blocks in stages]
        return cls(widths["stem"], tuple(widths[stage] for stage in STAGES), tuple(tuple(stage) for stage in inner))

    def by_group(self) -> dict[str, int]:
        """The same by the names of the groups, in the order of `channel_groups`."""
        widths = {"stem": self.stem}
        for stage, width, blocks in zip(STAGES, self.residual, self.inner, strict=True):
            widths[stage] = width
            for number, (reduce, spatial) in enumerate(blocks):
                widths |= {f"{stage}.{number}.reduce": reduce, f"{stage}.{number}.spatial": spatial}
        return widths

    def to_json(self) -> str:
        """One line, the same for the same widths: what the notes of a weights' file carry."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From what `to_json` made; raises TrainingError where it is not that."""
        try:
            raw = json.loads(text)
            inner = tuple(tuple((int(reduce), int(spatial)) for reduce, spatial in stage) for stage in raw["inner"])
            return cls(int(raw["stem"]), tuple(map(int, raw["residual"])), inner)
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"The widths of a pruned network cannot be read ({error}): {text[:80]}.") from None


def channel_groups(model: nn.Module) -> list[ChannelGroup]:
    """The groups of channels of a network that `build_model` or `narrow_model` built, from its input to its output."""
    by_depth = isinstance(model.fc, DepthHeads)
    readers: dict[str, list[str]] = {"stem": ["fc.heads.0"] if by_depth else []}
    stem = "conv1.6" if isinstance(model.conv1, nn.Sequential) else "conv1"
    groups, current, depth = [ChannelGroup("stem", ((stem, "bn1"),), ())], "stem", 0
    for stage in STAGES:
        writers: list[tuple[str, str]] = []
        inner = []
        readers[stage] = []
        for name, block in _blocks(model, stage):
            readers[current].append(f"{name}.reduce")
            if isinstance(block.skip, nn.Sequential):
                conv, norm = (
                    f"{name}.skip.{own}" for own, layer in block.skip.named_children() if [*layer.parameters()]
                )
                readers[current].append(conv)
                writers.append((conv, norm))
                current = stage
            writers.append((f"{name}.expand", f"{name}.norm3"))
            depth += 1
            if by_depth:
                readers[stage].append(f"fc.heads.{depth}")
            inner.append(ChannelGroup(f"{name}.reduce", ((f"{name}.reduce", f"{name}.norm1"),), (f"{name}.spatial",)))
            inner.append(ChannelGroup(f"{name}.spatial", ((f"{name}.spatial", f"{name}.norm2"),), (f"{name}.expand",)))
        groups += [ChannelGroup(stage, tuple(writers), ()), *inner]
    if not by_depth:
        readers[current].append("fc.1" if isinstance(model.fc, nn.Sequential) else "fc")
    if any(name.startswith("tiling.attention.") for name, _ in model.named_parameters()):
        readers[current] += ["tiling.attention.value", "tiling.attention.gate"]
    return [ChannelGroup(group.name, group.writers, tuple(readers.get(group.name, group.readers))) for group in groups]


def _blocks(model: nn.Module, stage: str) -> Iterator[tuple[str, BottleneckLayer]]:
    for number, block in enumerate(cast(nn.Sequential, getattr(model, stage))):
        yield f"{stage}.{number}", cast(BottleneckLayer, block)


def module_of(model: nn.Module, name: str) -> Any:
    """A layer by its name: torch's own types know no channels of it."""
    return model.get_submodule(name)


def take_channels(model: nn.Module, channels: KeptChannels) -> nn.Module:
    """A new network with only these `channels` of each group; a group that is not named stays whole.

    Weights and statistics of what stays are copies of the model's, on its device and in its mode. Where nothing goes,
    it is a copy of the model.
    """
    narrow = copy.deepcopy(model)
    for group in channel_groups(model):
        index = channels.get(group.name)
        if index is None or len(index) == module_of(model, group.writers[0][0]).out_channels:
            continue
        for conv, norm in group.writers:
            _swap(narrow, conv, lambda layer, at=index: _cut(layer, at, 0))
            _swap(narrow, norm, lambda layer, at=index: _cut_norm(layer, at))
        for reader in group.readers:
            _swap(narrow, reader, lambda layer, at=index: _cut(layer, at, 1))
    return narrow


def narrow_model(study: Study, widths: Widths) -> nn.Module:
    """The study's network with layers of these widths, to load weights into; it keeps the first channels of each group.

    Raises TrainingError where the widths are those of another network: of another depth, or wider than it.
    """
    model = build_model(study)
    whole, narrow = Widths.of(model).by_group(), widths.by_group()
    if whole.keys() != narrow.keys() or any(not 0 < narrow[name] <= whole[name] for name in whole):
        raise TrainingError(
            f"The weights are of a pruned network that is not the study's (depth {study.model.depth}, width "
            f"{study.model.width}); give the weights of this study."
        )
    return take_channels(model, {name: torch.arange(width) for name, width in narrow.items()})


def _swap(model: nn.Module, name: str, make: Any) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, make(model.get_submodule(name)))


def _cut(layer: nn.Module, index: Tensor, axis: int) -> nn.Module:
    """A convolution or linear layer with only these outputs (axis 0) or inputs (axis 1)."""
    weight = cast(Tensor, layer.weight)
    narrow = copy.copy(layer)  # kernel, stride, padding and mode stay
    narrow._parameters = dict(layer._parameters)
    narrow.weight = nn.Parameter(weight.detach().index_select(axis, index.to(weight.device)).clone())
    names = ("out_channels", "in_channels") if isinstance(layer, nn.Conv2d | nn.Conv3d) else ("", "in_features")
    setattr(narrow, names[axis], len(index))
    return narrow


def _cut_norm(layer: nn.Module, index: Tensor) -> nn.Module:
    """A batch normalization of only these channels."""
    narrow = copy.copy(layer)
    narrow._parameters, narrow._buffers = dict(layer._parameters), dict(layer._buffers)
    for name in ("weight", "bias"):
        value = cast(Tensor, getattr(layer, name)).detach()
        setattr(narrow, name, nn.Parameter(value.index_select(0, index.to(value.device)).clone()))
    for name in ("running_mean", "running_var"):
        value = cast(Tensor, getattr(layer, name))
        narrow._buffers[name] = value.index_select(0, index.to(value.device)).clone()
    narrow.num_features = len(index)  # type: ignore[assignment]
    return narrow
