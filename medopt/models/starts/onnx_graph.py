"""The convolutions of an ONNX graph, each with the affine operations that follow it and what it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from medopt.core.errors import ConfigError

_PASSED = ("Cast", "Transpose", "Identity")
_AFFINE = ("Add", "Sub", "Mul", "Div")
_EPSILON = 1e-5  # of ONNX's batch normalization where it says none
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ConvLayer:
    """A convolution with what follows it in inference: `y = conv(x) * factor + term`.

    weight: (O, I, *kernel). source: the tensor that it reads, behind casts, pads and means. output: what its activation
    gives, or the sum that reads it. window: of the means that it reads; 0: it reads none.
    """

    name: str
    weight: NDArray[np.float32]
    factor: Numbers
    term: Numbers
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    source: str
    output: str
    window: int

    @property
    def kernel(self) -> int:
        """Places along the axis on which it reaches furthest."""
        return int(max(self.weight.shape[2:]))


class OnnxGraph:
    """The graph of a model; raises ConfigError, naming the node, for what none of our layers does."""

    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self.where, self.nodes = where, model.graph.node
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.values = _constants(model)

    def layers(self) -> list[ConvLayer]:
        """Every convolution in the order of the graph."""
        return [self._layer(node) for node in self.nodes if node.op_type == "Conv"]

    def pool_strides(self) -> tuple[int, ...] | None:
        """The strides of the max pooling, an axis; None: there is none."""
        node = self._max_pool()
        return (
            None
            if node is None
            else tuple(_attribute(node, "strides", [1] * len(_attribute(node, "kernel_shape", []))))
        )

    def _max_pool(self) -> onnx.NodeProto | None:
        return next((node for node in self.nodes if node.op_type == "MaxPool"), None)

    def pool(self) -> tuple[int, int] | None:
        """By how much the max pooling is padded before and behind; None: there is none."""
        node = self._max_pool()
        if node is None:
            return None
        before, behind = self._padding(node)
        if _attribute(node, "ceil_mode", 0) and (before, behind) == (0, 0):
            behind = 1
        kernel, strides = _attribute(node, "kernel_shape", []), self.pool_strides() or ()
        usual = {*zip(kernel, strides, strict=True)} <= {(3, 2), (1, 1)} and (before, behind) in ((1, 1), (0, 1))
        if not (usual or {*kernel} == {1} == {*strides}):
            raise ConfigError(f"{self.where} pools with another window or padding than a ResNet ({node.name}).")
        return before, behind

    def before(self, layer: ConvLayer) -> tuple[Any, Any]:
        """Factor and term, a channel each, that the image gets before the first layer; None, None: it gets none."""
        name, steps = layer.source, []
        while (node := self.makers.get(name)) is not None:
            if node.op_type in _AFFINE:
                steps.append((node, data := self._data(node)))
                if not data:
                    raise ConfigError(f"{self.where} adds up images before its first convolution ({node.name}).")
                name = data
            elif node.op_type in _PASSED or (node.op_type == "Concat" and len({*node.input}) == 1):  # grey, repeated
                name = node.input[0]
            else:
                raise ConfigError(f"{self.where} does {node.op_type} to the image ({node.name}); medopt cannot.")
        if not steps:
            return None, None
        channels = layer.weight.shape[1]
        factor, term = np.ones(channels), np.zeros(channels)
        for node, data in reversed(steps):
            factor, term = self._affine(node, data, factor, term)
        return factor, term

    def _layer(self, node: onnx.NodeProto) -> ConvLayer:
        weight = self.values.get(node.input[1])
        if weight is None:
            raise ConfigError(f"{self.where}: the weights of {node.name} are not in the file as numbers.")
        places = weight.ndim - 2
        dilations = tuple(_attribute(node, "dilations", [1] * places))
        reach = {d * (k // 2) for d, k in zip(dilations, weight.shape[2:], strict=True)}
        if _attribute(node, "group", 1) != 1 or not {*self._padding(node)} <= reach:
            raise ConfigError(f"{self.where}: {node.name} has groups, or another padding than half its kernel.")
        factor, term = np.ones(len(weight)), np.zeros(len(weight))
        if len(node.input) > 2 and node.input[2]:
            term = term + self.values[node.input[2]]
        factor, term, output = self._followed(node.output[0], factor, term)
        source, window = self._source(node.input[0])
        strides = tuple(_attribute(node, "strides", [1] * places))
        return ConvLayer(
            *(node.name, weight.astype(np.float32), factor, term, strides, dilations, source, output, window)
        )

    def _padding(self, node: onnx.NodeProto) -> tuple[int, int]:
        """Places before and behind on each axis, by the node and a Pad before it; raises where axes differ."""
        if _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise ConfigError(f"{self.where}: {node.name} pads as {_attribute(node, 'auto_pad', b'').decode()} does.")
        pads = np.array(_attribute(node, "pads", [0, 0]))
        sides = [{*pads[: len(pads) // 2]}, {*pads[len(pads) // 2 :]}]
        name = node.input[0]
        while (maker := self.makers.get(name)) is not None and maker.op_type in (*_PASSED, "Pad"):
            if maker.op_type == "Pad":
                added = self.values.get(maker.input[1]) if len(maker.input) > 1 else None
                if added is None and node.op_type == "MaxPool" and _attribute(maker, "mode", b"") == b"edge":
                    return 0, 1  # as the size of the image asks for: Caffe's rounding up
                if added is None or {*pads} != {0}:
                    raise ConfigError(f"{self.where}: how {maker.name} pads is not in the file as numbers.")
                halves = added[: len(added) // 2], added[len(added) // 2 :]
                padded = (halves[0] != 0) | (halves[1] != 0)  # not the axes of images and channels
                sides = [{*half[padded]} for half in halves]
            name = maker.input[0]
        if len({*pads}) > 2 or len(sides[0]) > 2 or len(sides[1]) > 2:
            raise ConfigError(f"{self.where}: {node.name} pads each axis otherwise.")
        return int(max(sides[0], default=0)), int(max(sides[1], default=0))

    def _followed(self, name: str, factor: Numbers, term: Numbers) -> tuple[Numbers, Numbers, str]:
        """The affine operations that alone read a convolution's output, taken in; and what its activation gives."""
        while len(readers := self.readers.get(name, [])) == 1:
            (node,) = readers
            if node.op_type == "BatchNormalization":
                gain, shift, mean, variance = (self.values[key].astype(np.float64) for key in node.input[1:5])
                slope = gain / np.sqrt(variance + _attribute(node, "epsilon", _EPSILON))
                factor, term = factor * slope, (term - mean) * slope + shift
            elif node.op_type in _AFFINE and self._data(node):
                factor, term = self._affine(node, name, factor, term)
            elif node.op_type not in (*_PASSED, "Relu"):
                break  # the sum of a block, whose channels all belong together
            name = node.output[0]
            if node.op_type == "Relu":
                break
        return factor, term, self._source(name)[0]

    def _data(self, node: onnx.NodeProto) -> str:
        """The one input of an affine node that is no constant; empty: both are data."""
        data = [name for name in node.input if name not in self.values]
        return data[0] if len(data) == 1 else ""

    def _affine(self, node: onnx.NodeProto, data: str, factor: Numbers, term: Numbers) -> tuple[Numbers, Numbers]:
        """`factor` and `term` after a sum or product with a constant."""
        (number,) = (self.values[name].astype(np.float64) for name in node.input if name in self.values)
        first = node.input[0] not in self.values
        if number.size not in (1, len(term)) or (node.op_type == "Div" and not first):
            raise ConfigError(f"{self.where}: {node.name} changes not each channel by a number.")
        number = number.reshape(-1)
        match node.op_type:
            case "Add":
                return factor, term + number
            case "Sub":
                return (factor, term - number) if first else (-factor, number - term)
            case "Mul":
                return factor * number, term * number
        return factor / number, term / number

    def _source(self, name: str) -> tuple[str, int]:
        """The tensor behind casts, transpositions, pads and means, and the window of the means."""
        window = 0
        while (node := self.makers.get(name)) is not None and node.op_type in (*_PASSED, "Pad", "AveragePool"):
            if node.op_type == "AveragePool":
                window = int(max(_attribute(node, "kernel_shape", [0])))
            name = node.input[0]
        return name, window


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """All tensors that no image changes: the initializers and what is computed from them alone."""
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    known, nodes = {*values, ""}, []
    for node in model.graph.node:
        if {*node.input} <= known and not node.op_type.startswith("Random"):
            nodes.append(node)
            known |= {*node.output}
    if not nodes:
        return values
    names = [name for node in nodes for name in node.output if name]
    used = {name for node in nodes for name in node.input}
    graph = onnx.helper.make_graph(
        nodes, "constants", [], [onnx.helper.make_empty_tensor_value_info(name) for name in names],
        [item for item in model.graph.initializer if item.name in used],
    )  # fmt: skip
    opsets = list(model.opset_import)
    try:
        results: Any = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets)).run(None, {})
    except Exception as error:  # the evaluator raises any
        raise ConfigError(f"The constants of an ONNX file cannot be computed ({type(error).__name__}).") from None
    return values | dict(zip(names, results, strict=True))
