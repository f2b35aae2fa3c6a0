"""A bottleneck ResNet read from the nodes of an ONNX file: its initializers have no telling names, its graph has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from medopt.core.errors import ConfigError
from medopt.models.starts.layouts import describe
from medopt.models.starts.start import Start

_PASSED = ("Cast", "Transpose", "Identity", "Pad")
_EPSILON = 1e-5  # of torch's batch normalization


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution with what follows it in inference: `y = conv(x) * factor + term`, and where its stride is."""

    name: str
    weight: NDArray[np.float32]
    factor: NDArray[np.float64]
    term: NDArray[np.float64]
    stride: int
    source: str


def read_onnx(path: Path) -> Start:
    """The start in an ONNX file; raises ConfigError where its graph is not that of a bottleneck ResNet.

    Each convolution's bias and normalization, one after the other or folded, become a normalization that does the same
    in evaluation: mean 0 and variance 1, with their factor and term.
    """
    try:
        graph = onnx.load(path).graph
    except FileNotFoundError:
        raise ConfigError(f"There is no file of weights {path}.") from None
    except Exception as error:  # protobuf raises one of its own
        raise ConfigError(f"{path.name} cannot be read as ONNX ({type(error).__name__}).") from None
    layers = list(_Graph(graph).layers())
    tensors, stride_first = _named(layers, path.name)
    if layers[0].stride != 2:
        raise ConfigError(f"{path.name} begins with a convolution of stride {layers[0].stride}; medopt knows 2.")
    pool = next((node for node in graph.node if node.op_type == "MaxPool"), None)
    unpadded = pool is not None and not any(_attribute(pool, "pads", []))
    variant = ("caffe" if unpadded else "v1") if stride_first else "v1.5"
    left_out = [node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    return describe(tensors, "ONNX", variant, None, tuple(left_out), path.name)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


class _Graph:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        self.values |= {
            node.output[0]: numpy_helper.to_array(_attribute(node, "value", None))
            for node in graph.node
            if node.op_type == "Constant" and _attribute(node, "value", None) is not None
        }
        for node in graph.node:
            if node.op_type == "Identity" and node.input[0] in self.values:
                self.values[node.output[0]] = self.values[node.input[0]]
        self.nodes = graph.node
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def layers(self) -> Iterator[_Layer]:
        """Every convolution in the order of the graph."""
        for node in self.nodes:
            if node.op_type == "Conv":
                weight = self.values[node.input[1]]
                factor, term = np.ones(len(weight)), np.zeros(len(weight))
                if len(node.input) > 2:
                    term = term + self.values[node.input[2]]
                factor, term = self._followed(node.output[0], factor, term)
                stride = int(_attribute(node, "strides", [1])[0])
                yield _Layer(node.name, weight.astype(np.float32), factor, term, stride, self._source(node.input[0]))

    def _followed(self, name: str, factor: Any, term: Any) -> tuple[Any, Any]:
        """The affine operations, a channel each, that alone read a convolution's output, taken into factor and term."""
        while len(readers := self.readers.get(name, [])) == 1:
            (node,) = readers
            if node.op_type == "BatchNormalization":
                gain, shift, mean, variance = (self.values[key].astype(np.float64) for key in node.input[1:5])
                slope = gain / np.sqrt(variance + _attribute(node, "epsilon", _EPSILON))
                factor, term = factor * slope, (term - mean) * slope + shift
            elif node.op_type in ("Add", "Sub", "Mul", "Div"):
                other = node.input[1] if node.input[0] == name else node.input[0]
                value = self.values.get(other)
                if value is None or value.size not in (1, len(term)):
                    break  # the sum of a block, whose channels all belong together
                number = value.reshape(-1).astype(np.float64)
                match node.op_type:
                    case "Add":
                        term = term + number
                    case "Sub":
                        term = term - number
                    case "Mul":
                        factor, term = factor * number, term * number
                    case "Div":
                        factor, term = factor / number, term / number
            elif node.op_type not in _PASSED:
                break
            name = node.output[0]
        return factor, term

    def _source(self, name: str) -> str:
        """The tensor that a convolution reads, behind casts and transpositions."""
        while (node := self.makers.get(name)) is not None and node.op_type in _PASSED:
            name = node.input[0]
        return name


def _named(layers: list[_Layer], where: str) -> tuple[dict[str, Tensor], bool]:
    """Tensors by our names: a stem, then blocks of 1x1, 3x3, 1x1, and a projection where a stage begins."""
    if not layers or layers[0].weight.shape[-1] == 1:
        raise ConfigError(f"{where} does not begin with the stem of a ResNet.")
    tensors = _layer_tensors("conv1", "bn1", layers[0])
    rest, stage, number, stride_first = layers[1:], 0, 0, False
    spatial = [at for at, layer in enumerate(rest) if layer.weight.shape[-1] == 3]
    for at in spatial:
        block = _block_of(rest, at)
        if len(block) < 3:
            raise ConfigError(f"{where}: around {rest[at].name} there is no bottleneck block of 1x1, 3x3 and 1x1.")
        reduce, middle, expand, *projection = block
        if projection:
            stage, number = stage + 1, 0
            stride_first = stride_first or reduce.stride == 2
        if stage == 0 or stage > 4:
            raise ConfigError(f"{where} has another number of stages than a ResNet's four.")
        name = f"layer{stage}.{number}"
        for at_norm, (own, layer) in enumerate((("reduce", reduce), ("spatial", middle), ("expand", expand)), start=1):
            tensors |= _layer_tensors(f"{name}.{own}", f"{name}.norm{at_norm}", layer)
        if projection:
            tensors |= _layer_tensors(f"{name}.skip.0", f"{name}.skip.1", projection[0])
        number += 1
    return tensors, stride_first


def _block_of(layers: list[_Layer], at: int) -> list[_Layer]:
    """The 1x1 before a 3x3, the 3x3, the 1x1 after it, and the projection, which reads what the first reads."""
    middle, inner = layers[at], layers[at].weight.shape[0]
    reduce = next((one for one in reversed(layers[:at]) if one.weight.shape[0] == middle.weight.shape[1]), None)
    if reduce is None or reduce.weight.shape[-1] != 1:
        return []
    near = [one for one in (*layers[max(0, at - 2) : at], *layers[at + 1 : at + 3]) if one.weight.shape[-1] == 1]
    projection = [one for one in near if one is not reduce and one.source == reduce.source]
    expand = [
        one for one in near if one not in (reduce, *projection) and one.weight.shape[1] == inner and one in layers[at:]
    ]
    return [reduce, middle, expand[0], *projection] if expand else []


def _layer_tensors(conv: str, norm: str, layer: _Layer) -> dict[str, Tensor]:
    count = len(layer.factor)
    return {
        f"{conv}.weight": torch.from_numpy(layer.weight),
        f"{norm}.weight": torch.from_numpy(layer.factor * np.sqrt(1 + _EPSILON)).float(),
        f"{norm}.bias": torch.from_numpy(layer.term).float(),
        f"{norm}.running_mean": torch.zeros(count),
        f"{norm}.running_var": torch.ones(count),
        f"{norm}.num_batches_tracked": torch.tensor(0),
    }
