"""Files with small weights that compute in float32: smaller, no faster on a processor, and all but free of error.

They are the way out where int8 loses too much and size is what counts: float16 halves a file, int8 weights quarter it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from medopt.compression.mixed_precision import find_producers, remove_dead_nodes
from medopt.core.files import atomic

_BACK = "DequantizeLinear"


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


def _write(model: onnx.ModelProto, target: Path) -> None:
    onnx.checker.check_model(model)
    with atomic(target) as part:
        onnx.save(model, part)
