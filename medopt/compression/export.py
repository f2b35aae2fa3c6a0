"""The trained network as one float32 ONNX file, checked against the network itself."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from medopt.core.errors import TrainingError
from medopt.core.files import atomic
from medopt.core.records import FloatArray
from medopt.inference.engines import FEATURES, INPUT, OUTPUT, TILE_WEIGHTS, TILES, open_engine
from medopt.models.resnet import BottleneckResNet

# Largest difference of a logit, relative to the largest logit: float32 sums in another order.
PARITY = 1e-3


class _WithTiles(nn.Module):
    """A network of tiles that tells its tiles and their weights beside the logits."""

    def __init__(self, network: BottleneckResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images to logits, weights and tiles."""
        network = self.network
        assert network.tiling is not None
        read = network.tiling.read(image, network, network.reads_every)
        return network.answer(read.pooled), read.weights, read.tiles


def export_onnx(model: nn.Module, examples: FloatArray, path: Path, opset: int) -> float:
    """Write `model` to `path` with a dynamic batch and return the largest logit difference on `examples` (N, C, *size).

    Raises TrainingError where the exported model does not agree with the network; `path` is left as it was then.
    """
    model = model.eval().to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    batch = torch.from_numpy(np.stack([examples[0]] * 2))  # a batch of one could be baked in
    images = np.array(examples)
    tells = isinstance(model, BottleneckResNet) and model.tiling is not None and not model.mirrored
    inside = [TILE_WEIGHTS, TILES] if tells else []
    with atomic(path) as part:
        with _quiet():
            program = torch.onnx.export(
                _WithTiles(model) if isinstance(model, BottleneckResNet) and inside else model,
                (batch,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT, *inside],
                dynamic_shapes=({0: Dim("batch")},),
                verbose=False,
            )
        assert program is not None  # the dynamo exporter always returns a program
        onnx.save(_with_features(_answering(_averages_as_convolutions(_without_traces(program.model_proto)))), part)
        with torch.inference_mode():
            expected = model(torch.from_numpy(images)).double().numpy()
        difference = float(np.abs(open_engine("onnxruntime", part).run(images) - expected).max())
        if not difference <= PARITY * max(1.0, float(np.abs(expected).max())):
            raise TrainingError(
                f"The exported model differs from the network by {difference:.2g} on a logit; not exported."
            )
    return difference


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes: a tenth of a small file, and they tell the paths of this machine."""
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        item.ClearField("metadata_props")
    return model


def _averages_as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model whose averaged skips (variant d, images) take their means by a convolution of each channel alone.

    The means are the same where windows cover the image exactly; others stay a pooling. No engine pools 8-bit integers
    fast, but both convolve them so: a ResNet-26 of a quarter width is 1.1 to 1.3 times as fast in int8. One convolution
    of mean and projection together has 4 times the projection's products: slower in float, and in int8 from
    ResNet-50 on (docs/benchmarks.md). Means with edges that count less ("pooled") would need a product a place.
    """
    graph = model.graph
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.value_info, *graph.input)
    }
    for pool in [node for node in graph.node if node.op_type == "AveragePool"]:
        kept = {item.name: onnx.helper.get_attribute_value(item) for item in pool.attribute}
        window, size = list(kept["kernel_shape"]), shapes.get(pool.input[0], [])
        after = [node for node in graph.node if pool.output[0] in node.input]
        covers = len(size) == 4 and not any(n % k for n, k in zip(size[2:], window, strict=True))
        is_plain = list(kept["strides"]) == window and not any(kept.get("pads", ()))
        if not (covers and is_plain and [node.op_type for node in after] == ["Conv"]):
            continue
        weight = np.full((size[1], 1, *window), 1 / np.prod(window), np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(weight, f"{pool.output[0]}_mean"))
        inputs = [pool.input[0], graph.initializer[-1].name]
        mean = onnx.helper.make_node(
            "Conv", inputs, [*pool.output], pool.name, group=size[1], kernel_shape=window, strides=window
        )
        pool.CopyFrom(mean)
    return model


def _answering(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model whose only output is the logits; what else it told lies within, by its name."""
    graph = model.graph
    told = [item for item in graph.output if item.name != OUTPUT]
    for item in told:
        graph.output.remove(item)
        graph.value_info.append(item)
    return model


def _with_features(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a second output: what its last layer, a matrix product, works on (N, F).

    The out-of-domain check reads it. It costs an engine nothing where only the logits are asked for. Of a head on every
    depth, a sum of such products, it is the last. A network with another last layer gets no such output.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers.get(OUTPUT)
    while last is not None and last.op_type == "Add":
        last = makers.get(last.input[1])
    if last is None or last.op_type != "Gemm":
        return model
    name = last.input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [FEATURES if tensor == name else tensor for tensor in names]
    (known,) = [info for info in graph.value_info if info.name == name]
    graph.value_info.remove(known)
    known.name = FEATURES
    graph.output.append(known)
    return model


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """The exporter prints its progress and warns of its own internals; neither is for the user."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
