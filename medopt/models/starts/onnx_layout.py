"""A bottleneck ResNet read from the nodes of an ONNX file: its initializers have no telling names, its graph has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from medopt.core.errors import ConfigError
from medopt.models.geometry import isotropic
from medopt.models.starts.layouts import BATCH_EPSILON, describe
from medopt.models.starts.onnx_graph import ConvLayer, OnnxGraph
from medopt.models.starts.start import Scaling, Start

_OTHER_NETWORKS = ("LeakyRelu", "PRelu", "Elu", "Clip", "HardSwish", "Gelu", "QuantizeLinear", "InstanceNormalization")
_PARTS = (("reduce", "norm1"), ("spatial", "norm2"), ("expand", "norm3"))
_POOLS = {0: "strided", 2: "averaged", 3: "pooled"}  # by the window of the means that a projection reads


def read_onnx(path: Path) -> Start:
    """The start in an ONNX file; raises ConfigError where its graph is not that of a bottleneck ResNet.

    Each convolution's bias and normalization, one after the other or folded, become a normalization that does the same
    in evaluation: mean 0 and variance 1, with their factor and term. What the graph does to the image before its first
    convolution, a factor and a term a channel, is the scale of the start's images.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise ConfigError(f"There is no file of weights {path}.") from None
    except Exception as error:  # protobuf raises one of its own
        raise ConfigError(f"{path.name} cannot be read as ONNX ({type(error).__name__}).") from None
    if other := {node.op_type for node in model.graph.node} & {*_OTHER_NETWORKS}:
        raise ConfigError(f"{path.name} is not a ResNet in float: it has {', '.join(sorted(other))} nodes.")
    graph = OnnxGraph(model, path.name)
    layers = graph.layers()
    first = next((at for at, layer in enumerate(layers) if layer.kernel == 1), 0)
    if first not in (1, 3):
        raise ConfigError(f"{path.name} does not begin with the stem of a ResNet: {first} convolutions before a 1x1.")
    stem = _stem(layers[:first], graph.pool() is not None, path.name)
    tensors = _stem_tensors(layers[:first])
    blocks, seen = _blocks(layers[first:], path.name)
    tensors |= blocks
    scale, shift = graph.before(layers[0])
    scaling = None if scale is None else Scaling(tuple(-shift / scale), tuple(1 / scale))
    left_out = tuple(node.input[1] for node in model.graph.node if node.op_type in ("MatMul", "Gemm"))
    return describe(
        *(tensors, "ONNX", _variant(seen, graph.pool(), path.name), scaling, left_out, path.name, stem),
        "" if scaling else "images in 0..1: the graph does not scale them",
        _strides(stem, layers[0], graph.pool_strides(), seen),
    )


def _strides(stem: str, first: ConvLayer, pool: tuple[int, ...] | None, blocks: list[list[ConvLayer]]) -> Any:
    """The strides of the stem, its pooling and the last three stages; "isotropic" where they are the stem's own."""
    dims = len(first.strides)
    starts = [block for block in blocks if len(block) == 4][1:]
    stages = [tuple(map(max, zip(block[0].strides, block[1].strides, strict=True))) for block in starts]
    found = (first.strides, pool or (1,) * dims, *stages)
    dilated = any(max(block[1].dilations) > 1 for block in starts)
    own = isotropic(stem, dims).strides
    if found == ((*own[:3], (1,) * dims, (1,) * dims) if dilated else own):
        return "isotropic"
    return [list(step) for step in found]


def _stem(layers: list[ConvLayer], pools: bool, where: str) -> str:
    """Which of our stems the first convolutions are; raises ConfigError where none."""
    first = layers[0]
    shape, stride = first.weight.shape[2:], first.strides
    most = max(stride) if {*stride} <= {1, 2} else 0
    if len(layers) == 3 and {layer.kernel for layer in layers} == {3} and most == 2 and pools:
        return "deep"
    if len(layers) == 1:
        if (shape, stride, pools) == ((3, 7, 7), (1, 2, 2), True):
            return "slices"
        known: dict[tuple[tuple[int, ...], int, bool], str] = {
            ((7,), 2, True): "large", ((7,), 1, True): "full", ((3,), 1, False): "small", ((3,), 2, False): "medium",
        }  # fmt: skip
        if name := known.get((tuple({*shape} - {1}), most, pools)):
            return name
    raise ConfigError(
        f"{where} begins with {len(layers)} convolutions, the first of {'x'.join(map(str, shape))} with the stride "
        f"{'x'.join(map(str, stride))}, {'' if pools else 'not '}then max pooling; medopt has no such stem."
    )


def _stem_tensors(layers: list[ConvLayer]) -> dict[str, Tensor]:
    if len(layers) == 1:
        return _layer_tensors("conv1", "bn1", layers[0])
    names = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))
    tensors: dict[str, Tensor] = {}
    for (conv, norm), layer in zip(names, layers, strict=True):
        tensors |= _layer_tensors(conv, norm, layer)
    return tensors


def _blocks(layers: list[ConvLayer], where: str) -> tuple[dict[str, Tensor], list[list[ConvLayer]]]:
    """Tensors by our names, and the blocks: 1x1, 3x3, 1x1, and a projection where a stage begins."""
    tensors: dict[str, Tensor] = {}
    blocks = []
    stage = number = 0
    for at in (at for at, layer in enumerate(layers) if layer.kernel == 3):
        block = _block_of(layers, at)
        if len(block) < 3:
            raise ConfigError(f"{where}: around {layers[at].name} there is no bottleneck block of 1x1, 3x3 and 1x1.")
        if len(block) == 4:
            stage, number = stage + 1, 0
        name = f"layer{stage}.{number}"
        for (conv, norm), layer in zip(_PARTS, block, strict=False):
            tensors |= _layer_tensors(f"{name}.{conv}", f"{name}.{norm}", layer)
        if len(block) == 4:
            skip = _layers_of_means(block)
            tensors |= _layer_tensors(f"{name}.skip.{skip}", f"{name}.skip.{skip + 1}", block[3])
        blocks.append(block)
        number += 1
    starts = [block for block in blocks if len(block) == 4]
    if len(starts) != 4 or len(blocks[0]) != 4 or sum(map(len, blocks)) != len(layers):
        raise ConfigError(
            f"{where} is not a bottleneck ResNet of four stages: of its {len(layers)} convolutions after the stem "
            f"{sum(map(len, blocks))} are in {len(blocks)} blocks, and {len(starts)} of them project."
        )
    return tensors, blocks


def _layers_of_means(block: list[ConvLayer]) -> int:
    """How many layers of ours take the means that a projection reads: a volume's 3x3 are padded by one of their own."""
    window, dims = block[3].window, block[3].weight.ndim - 2
    return (2 if dims == 3 and _POOLS.get(window) == "pooled" else 1) if window else 0


def _block_of(layers: list[ConvLayer], at: int) -> list[ConvLayer]:
    """The 1x1 before a 3x3, the 3x3, the 1x1 after it, and the projection, which reads what the first reads."""
    middle = layers[at]
    reduce = next((one for one in reversed(layers[:at]) if one.output == middle.source), None)
    expand = next((one for one in layers[at + 1 :] if one.source == middle.output), None)
    if reduce is None or expand is None or {reduce.kernel, expand.kernel} != {1}:
        return []
    reads = [one for one in layers[max(0, at - 2) : at + 3] if one.source == reduce.source and one is not reduce]
    return [reduce, middle, expand, *reads[:1]]


def _variant(blocks: list[list[ConvLayer]], pool: tuple[int, int] | None, where: str) -> str:
    """Which of our variants it is, by where the strides sit, what the skips read and how the stem's pooling pads."""
    starts = [block for block in blocks if len(block) == 4][1:]
    halving = [block for block in starts if max(block[0].strides + block[1].strides) > 1]
    on = {(max(block[0].strides) > 1, max(block[1].strides) > 1) for block in halving}
    skips = {_POOLS.get(block[3].window, "other") for block in halving}
    dilations = [max(block[1].dilations) for block in blocks if len(block) == 4]
    unpadded = pool == (0, 1)
    known = {
        (True, False): {"strided": "caffe" if unpadded else "v1"},
        (False, True): {"strided": "v1.5", "averaged": "d", "pooled": "pooled"},
    }
    dilated = max(dilations) > 1
    if dilated and dilations == [1, 1, 2, 4] and on <= {(False, True)} and skips == {"strided"}:
        return "dilated"
    variant = ""
    if not dilated and len(on) == len(skips) == 1:
        variant = known.get(on.copy().pop(), {}).get(skips.copy().pop(), "")
    if not variant or (unpadded and variant != "caffe"):
        raise ConfigError(
            f"{where} is a ResNet of no variant that medopt builds: strides on (1x1, 3x3) {sorted(on)}, skips "
            f"{sorted(skips)}, dilations {dilations}, the stem's pooling {'un' if unpadded else ''}padded."
        )
    return variant


def _layer_tensors(conv: str, norm: str, layer: ConvLayer) -> dict[str, Tensor]:
    count = len(layer.factor)
    return {
        f"{conv}.weight": torch.from_numpy(np.array(layer.weight)),
        f"{norm}.weight": torch.from_numpy(layer.factor * np.sqrt(1 + BATCH_EPSILON)).float(),
        f"{norm}.bias": torch.from_numpy(layer.term).float(),
        f"{norm}.running_mean": torch.zeros(count),
        f"{norm}.running_var": torch.ones(count),
        f"{norm}.num_batches_tracked": torch.tensor(0),
    }
