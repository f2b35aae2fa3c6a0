"""Layers of an int8 model left in float: which ones harm most, and the model without their rounding.

The tools can search for them by themselves, which takes minutes and puts most of the network back (NNCF's accuracy
control: 57 of 71 operations). Here one layer at a time is put back in the finished file, no range is measured anew, and
the harm is how far the logits of training images then come nearer to those of the float model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from medopt.compression.head_correction import correct_head
from medopt.core.files import atomic
from medopt.core.records import FloatArray, batches
from medopt.inference.engines import at_once, open_engine

_INPUTS, _WEIGHTS = 0, 1  # of a convolution


def int8_layers(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions that run in int8, from the image to the classifier."""
    producers = find_producers(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and all(_is_rounded(producers, node.input[place]) for place in (_INPUTS, _WEIGHTS))
    ]


def with_float_layers(quantized: onnx.ModelProto, source: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `quantized` whose convolutions `names` compute in float, with the weights of `source`."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    producers, weights = find_producers(model), {item.name: item for item in source.graph.initializer}
    weights_of = {node.name: node.input[_WEIGHTS] for node in source.graph.node if node.op_type == "Conv"}
    for node in model.graph.node:
        if node.name in names:
            dequantize = producers[node.input[_INPUTS]]
            quantize = producers[dequantize.input[0]]
            node.input[_INPUTS] = quantize.input[0]
            node.input[_WEIGHTS] = weights_of[node.name]
            model.graph.initializer.append(weights[weights_of[node.name]])
    remove_dead_nodes(model)
    return model


def rank_by_harm(quantized: Path, source: Path, images: FloatArray) -> list[str]:
    """The int8 layers, the most harmful first: by the squared error of the logits of `images` (N, C, *size) that is
    gone when that layer alone is in float.
    """
    model, whole = onnx.load(quantized), onnx.load(source)
    expected = _logits(source, images)
    errors = {}
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "trial.onnx"
        for name in int8_layers(model):
            onnx.save(with_float_layers(model, whole, [name]), trial)
            errors[name] = float(np.square(_logits(trial, images) - expected).sum())
    return sorted(errors, key=lambda name: errors[name])


def _logits(path: Path, images: FloatArray) -> NDArray[np.float64]:
    engine = open_engine("onnxruntime", path)
    return np.concatenate([engine.run(images[rows]) for rows in batches(len(images), at_once(images[0].size))])


def write_mixed_precision(
    quantized: Path, source: Path, names: Sequence[str], target: Path, calibration: Iterable[FloatArray]
) -> None:
    """Write `quantized` with the layers `names` in float to `target`, its head corrected anew on prepared images."""
    whole = onnx.load(source)
    mixed = with_float_layers(onnx.load(quantized), whole, names)
    with atomic(target) as part:
        onnx.save(correct_head(mixed, whole, calibration), part)


def find_producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Which node each tensor comes from."""
    return {name: node for node in model.graph.node for name in node.output}


def _is_rounded(producers: dict[str, onnx.NodeProto], name: str) -> bool:
    return name in producers and producers[name].op_type == "DequantizeLinear"


def remove_dead_nodes(model: onnx.ModelProto) -> None:
    """Take out the nodes and weights that nothing uses any more."""
    graph = model.graph
    while True:
        used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    for item in [item for item in graph.initializer if item.name not in used]:
        graph.initializer.remove(item)
    for info in [info for info in graph.value_info if info.name not in used]:
        graph.value_info.remove(info)
