"""Files with small weights that compute in float32: smaller, and no faster on a processor.

They are the way out where int8 loses too much and size is what counts: float16 halves a file, int8 weights quarter it,
all but free of error; 4-bit weights leave a sixth of it, with an error that the gate has to judge.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from medopt.compression.mixed_precision import find_producers, remove_dead_nodes
from medopt.core.files import atomic

_BACK = "DequantizeLinear"
_INT4_OPSET, _TOP = 21, 7


def store_float16(source: Path, target: Path) -> None:
    """Write the float32 ONNX file `source` with float16 weights, which engines widen again as they load it.

    A weight beyond float16's range would become infinite: such a layer stays in float32.
    """
    model = onnx.load(source)
    graph = model.graph
    widened = []
    for item in list(graph.initializer):
        if item.data_type != TensorProto.FLOAT or len(item.dims) < 2:
            continue
        values = numpy_helper.to_array(item)
        if np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = f"{item.name}_half"
        widened.append(helper.make_node("Cast", [name], [item.name], to=TensorProto.FLOAT))
        item.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
    nodes = [*widened, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    _write(model, target)


def store_int8_weights(quantized: Path, target: Path) -> None:
    """Write the int8 ONNX file `quantized` without the rounding of what flows between its layers."""
    model = onnx.load(quantized)
    producers = find_producers(model)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in producers and producers[name].op_type == _BACK:
                rounded = producers.get(producers[name].input[0])  # None where a weight is what is widened
                if rounded is not None:
                    node.input[place] = rounded.input[0]
    remove_dead_nodes(model)
    _write(model, target)


def store_int4_weights(source: Path, target: Path) -> None:
    """Write the float32 ONNX file `source` with the convolutions' weights in 4 bits; all else stays in float32.

    About 32 weights of an output channel share a scale, of 9 the one with the smallest squared error. The file gets
    opset 21, which DequantizeLinear needs for 4 bits.
    """
    model = onnx.load(source)
    if model.opset_import[0].version < _INT4_OPSET:
        model = version_converter.convert_version(model, _INT4_OPSET)
    graph, made = model.graph, []
    weights = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    for item in [one for one in graph.initializer if one.name in weights]:
        values, name = numpy_helper.to_array(item), item.name
        blocks = values.reshape(-1, _block_size(values[0].size))
        scales = _block_scales(blocks)
        whole = np.clip(np.rint(blocks / scales[:, None]), -_TOP, _TOP).astype(np.int8)
        graph.initializer.remove(item)
        graph.initializer.extend(
            [
                helper.make_tensor(f"{name}_int4", TensorProto.INT4, whole.shape, _packed(whole), raw=True),
                numpy_helper.from_array(scales, f"{name}_scale"),
                numpy_helper.from_array(np.array(values.shape, np.int64), f"{name}_shape"),
            ]
        )
        made += [
            helper.make_node(_BACK, [f"{name}_int4", f"{name}_scale"], [f"{name}_blocks"], axis=0),
            helper.make_node("Reshape", [f"{name}_blocks", f"{name}_shape"], [name]),
        ]
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    _write(model, target)


def _block_size(weights: int) -> int:
    """How many of a channel's weights share a scale: the divisor nearest to 32 of those from 16 to 128, or all."""
    divisors = [size for size in range(16, 129) if weights % size == 0]
    return min(divisors, key=lambda size: abs(size - 32), default=weights)


def _block_scales(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale (N,) of each of N blocks (N, B)."""
    most = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / _TOP, np.float32(1e-30))
    best, error = most, np.full(most.shape, np.inf, np.float32)
    for share in np.linspace(0.6, 1, 9, dtype=np.float32):
        scale = most * share
        off = blocks - scale * np.clip(np.rint(blocks / scale), -_TOP, _TOP)
        now = np.square(off).sum(axis=1, keepdims=True)
        best, error = np.where(now < error, scale, best), np.minimum(now, error)
    return best[:, 0].astype(np.float32)


def _packed(whole: NDArray[np.int8]) -> bytes:
    """Two numbers a byte, the first in the lower half (ONNX, TensorProto.raw_data of INT4)."""
    flat = whole.ravel().view(np.uint8) & 0xF
    pairs = np.pad(flat, (0, flat.size % 2)).reshape(-1, 2)
    return (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()


def _write(model: onnx.ModelProto, target: Path) -> None:
    onnx.checker.check_model(model)
    with atomic(target) as part:
        onnx.save(model, part)
