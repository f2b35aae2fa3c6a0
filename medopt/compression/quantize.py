"""Static int8 after training: one portable QDQ ONNX file for ONNX Runtime and OpenVINO.

The tools' defaults keep 93 % of the decisions where this recipe keeps 99 %: ranges by minimum and maximum, no bias
correction but the head's (`head_correction.py`), the first convolution and the classifier left in float, and 7-bit
weights' headroom (`overflow_fix`), without which processors that lack VNNI saturate and are wrong. On BreastMNIST the
float first convolution alone takes a quarter off the error of the logits: every rounding of the pixels themselves is
carried through the whole network.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from medopt.compression.head_correction import correct_head
from medopt.config import Profile
from medopt.core.errors import DataError, TrainingError
from medopt.core.files import atomic
from medopt.core.records import FloatArray
from medopt.core.telemetry import without_telemetry
from medopt.inference.engines import INPUT, TILE_WEIGHTS, TILES

with without_telemetry():
    import nncf
    from nncf.common.quantization.structs import QuantizationScheme
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

MIN_CALIBRATION = 8  # fewer images have no ranges to go by


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a profile asks of the int8 file.

    headroom: weights of 7 bits, so that sums of two products fit 16 bits where the processor adds them so (AVX2).
    symmetric: signed activations around zero, the only form that TensorRT reads.
    first: the first convolution is int8, too.
    """

    headroom: bool = True
    symmetric: bool = False
    first: bool = False


RECIPES: dict[Profile, Recipe] = {
    "cpu": Recipe(),
    "cpu-vnni": Recipe(headroom=False),
    "cuda-tensorrt": Recipe(headroom=False, symmetric=True),
    "edge": Recipe(first=True),
}


def quantize_int8(source: Path, target: Path, calibration: Sequence[FloatArray], profile: Profile = "cpu") -> None:
    """Write the int8 form of the float ONNX file `source` to `target`.

    `calibration` holds prepared training images (C, *size) at the size of deployment; they are read one at a time, so
    that it may read them from disk as it is asked.
    """
    model, recipe = onnx.load(source), RECIPES[profile]
    data = nncf.Dataset(range(len(calibration)), lambda index: {INPUT: np.array(calibration[index])[None]})
    parameters = AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if recipe.headroom else OverflowFix.DISABLE,
        disable_bias_correction=True,
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
    )
    if recipe.symmetric:
        parameters.activations_quantization_params = QuantizationParameters(mode=QuantizationScheme.SYMMETRIC)
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        quantized = nncf.quantize(
            model,
            data,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=_left_in_float(model, recipe), types=["Gemm"]),
            advanced_parameters=parameters,
        )
    with atomic(target) as part:
        quantized = quantized if recipe.first else _averaged_in_float(_pooled_in_float(quantized))
        quantized = _signed(quantized) if recipe.symmetric else quantized
        onnx.save(_slim(correct_head(quantized, model, calibration)), part)


def _left_in_float(model: onnx.ModelProto, recipe: Recipe) -> list[str]:
    """The nodes beside the linear layers that stay in float.

    The first convolution, unless the recipe has it in int8; what scales the image before it; the sums of several
    linear layers' logits, which are large and cancel each other; and what weighs tiles, which follows from linear
    layers, or from the image without any convolution.
    """
    names: list[str] = []
    tiled = any(node.op_type == "ReduceMax" for node in model.graph.node)  # it looks for tiles that are black
    summed = {item.name for item in model.graph.input} if tiled else set()
    before = True
    for node in model.graph.node:
        sums = node.op_type != "Conv" and any(name in summed for name in node.input)
        if sums or (before and (node.op_type != "Conv" or not recipe.first)):
            names.append(node.name)
        if sums or node.op_type == "Gemm":
            summed.update(node.output)
        before = before and node.op_type != "Conv"
    return names


def _pooled_in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its max pooling right after the float first convolution, before ReLU and rounding.

    Both never fall as their input rises, so that the largest value may be taken first, and no logit changes. But ONNX
    Runtime's pooling of 8-bit integers takes 0.9 ms where that of floats takes 0.02 ms (16 channels of 112 x 112), a
    third of a small model. The ReLU in between keeps its optimizer from rounding before the pooling again.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    pool = next((node for node in graph.node if node.op_type == "MaxPool"), None)
    if pool is None:
        return model
    chain = [pool]  # upwards: MaxPool, DequantizeLinear, QuantizeLinear, Relu
    for op_type in ("DequantizeLinear", "QuantizeLinear", "Relu"):
        above = producers.get(chain[-1].input[0])
        uses = sum(above is not None and above.output[0] in node.input for node in graph.node)
        if above is None or above.op_type != op_type or uses > 1:
            return model  # what lies in between goes elsewhere, too
        chain.append(above)
    _, widened, rounded, relu = chain
    source, pooled = relu.input[0], pool.output[0]
    pool.input[0], relu.input[0] = source, pooled
    moved = [node.SerializeToString() for node in (relu, rounded, widened)]
    for node in graph.node:
        if node is not relu and node.output[0] != relu.output[0]:
            node.input[:] = [widened.output[0] if name == pooled else name for name in node.input]
    names = {relu.output[0], rounded.output[0], widened.output[0]}
    kept = [node.SerializeToString() for node in graph.node if node.output[0] not in names]
    at = next(index for index, node in enumerate(kept) if onnx.NodeProto.FromString(node).op_type == "MaxPool")
    del graph.node[:]
    graph.node.extend(onnx.NodeProto.FromString(node) for node in (*kept[: at + 1], *moved, *kept[at + 1 :]))
    return model


def _averaged_in_float(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a ReLU before each average pooling of rounded values, which are never negative: no logit changes.

    It keeps ONNX Runtime from averaging 8-bit integers, for which it has no fast code: a ResNet-26 of a quarter width
    at 224 x 224 takes 1.64 instead of 1.97 ms so.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    nodes = []
    for node in model.graph.node:
        above = producers.get(node.input[0]) if node.op_type == "AveragePool" else None
        if above is not None and above.op_type == "DequantizeLinear" and _is_relu(producers, above):
            whole = f"{above.output[0]}_whole"
            nodes.append(onnx.helper.make_node("Relu", [above.output[0]], [whole], name=whole))
            node.input[0] = whole
        nodes.append(node)
    kept = [node.SerializeToString() for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(map(onnx.NodeProto.FromString, kept))
    return model


def _is_relu(producers: dict[str, onnx.NodeProto], widened: onnx.NodeProto) -> bool:
    """Whether what a DequantizeLinear gives was a ReLU's before it was rounded."""
    rounded = producers.get(widened.input[0])
    return rounded is not None and rounded.input[0] in producers and producers[rounded.input[0]].op_type == "Relu"


def _signed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with int8 where it had uint8 around zero: the steps become 255/127 as wide, the range is the same.

    NNCF takes no other form for an activation that is never negative.
    """
    graph = model.graph
    values = {item.name: item for item in graph.initializer}
    unsigned = {
        (node.input[1], node.input[2])
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and len(node.input) == 3
        and values[node.input[2]].data_type == onnx.TensorProto.UINT8
    }
    for scale, zero in sorted(unsigned):
        if numpy_helper.to_array(values[zero]).any():
            raise TrainingError(f"{zero} is not zero: the model is not symmetric, and TensorRT would refuse it.")
        wider = numpy_helper.to_array(values[scale]) * np.float32(255 / 127)
        values[scale].CopyFrom(numpy_helper.from_array(wider.astype(np.float32), scale))
        values[zero].CopyFrom(
            numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(values[zero]), np.int8), zero)
        )
    for info in graph.value_info:
        if info.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            info.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return model


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with short names for what NNCF put in, and without shapes that engines infer: 3 % of a small file."""
    graph = model.graph
    kept = {item.name for item in (*graph.input, *graph.output)} | {TILES, TILE_WEIGHTS}
    short: dict[str, str] = {"": ""}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = ""
        for names in (node.input, node.output):
            names[:] = [name if name in kept else short.setdefault(name, f"t{len(short)}") for name in names]
    for item in graph.initializer:
        item.name = short.get(item.name, item.name)
    del graph.value_info[:], graph.metadata_props[:], graph.quantization_annotation[:], model.metadata_props[:]
    return model


def choose_calibration(train: Sequence[Path], others: Sequence[Path], count: int, seed: int) -> list[int]:
    """Which training images calibrate: `count` of them at random, in a fixed order, none that is in `others`, too.

    The files are those of the cache of prepared images, whose names are hashes of what is in them.
    """
    known = {path.name for path in others}
    free = [index for index, path in enumerate(train) if path.name not in known]
    picked = np.random.default_rng(seed).permutation(len(free))[:count]
    return sorted(free[int(place)] for place in picked)


def refuse_overlap(calibration: Sequence[Path], others: Sequence[Path]) -> None:
    """Raise DataError where an image that calibrates is one that judges, under whatever name.

    Both are files of the cache, as those of `choose_calibration`. One that is too small to calibrate is refused, too.
    """
    if len(calibration) < MIN_CALIBRATION:
        raise DataError(
            f"{len(calibration)} training images are left to calibrate int8 on, fewer than {MIN_CALIBRATION}: the "
            "others are validation or test images, too. Take the copies out (`medopt manifest check --fix`)."
        )
    shared = {path.name for path in calibration} & {path.name for path in others}
    if shared:
        raise DataError(
            f"{len(shared)} of {len(calibration)} images that int8 would be calibrated on are validation or test "
            "images, so that the gate and the test would judge it by what it was fitted to. Take copies out of the "
            "splits (`medopt manifest check --fix`)."
        )
