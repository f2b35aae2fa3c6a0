"""Where in an image a network saw evidence: a logit for each position, whose mean is the logit of the image.

Global average pooling and a linear layer commute: the linear layer can be applied at each position, and the mean taken
after it. So the model that answers, int8 or float, gives each position's share of a label's logit, without gradients
(class activation maps, Zhou et al. 2016; for such a network Grad-CAM at its last stage is the same up to a factor,
Selvaraju et al. 2017). The positions are coarse, and the map does not outline a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import FloatArray
from medopt.core.telemetry import without_telemetry
from medopt.inference.depth_evidence import DepthEvidence, linear_parts
from medopt.inference.engines import FEATURES, INPUT, OUTPUT, openvino_core
from medopt.inference.tile_evidence import TileEvidence, tile_outputs
from medopt.transforms.restore import stride_of

with without_telemetry():
    import openvino
    from openvino import opset13

_OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
_TOLERANCE = 1e-3
_MIN_POSITIONS = 12  # a side


class Evidence:
    """A network opened a second time, split before its average over positions."""

    def __init__(self, body: openvino.CompiledModel, head: openvino.CompiledModel) -> None:
        self._body, self._head = body, head

    @classmethod
    def open(cls, path: Path) -> AnyEvidence | None:
        """Open an ONNX file; None where its linear layer does not follow an average over positions (an ensemble)."""
        core = openvino_core()
        model = core.read_model(path)
        found, tiles = linear_parts(_source_of(model.output(OUTPUT))), tile_outputs(model)
        if tiles is not None:
            if found is None:
                return None
            parts, bias = found
            outputs = [*(part.places for part in parts), *tiles, _source_of(model.output(OUTPUT))]
            opened = openvino.Model(outputs, model.get_parameters(), "tiles")
            return TileEvidence(core.compile_model(opened, "CPU", _OPTIONS), parts, bias)
        if found is not None and len(found[0]) > 1:
            parts, bias = found
            outputs = [*(part.places for part in parts), _source_of(model.output(OUTPUT))]
            every = openvino.Model(outputs, model.get_parameters(), "every depth")
            return DepthEvidence(core.compile_model(every, "CPU", _OPTIONS), [part.weight for part in parts], bias)
        features = _source_of(model.output(FEATURES))
        pooling = features.get_node()
        while pooling.get_type_name() in {"Reshape", "Squeeze", "Unsqueeze"}:
            pooling = pooling.input_value(0).get_node()
        if pooling.get_type_name() != "ReduceMean":
            return None
        places = pooling.input_value(0)
        body = openvino.Model([places, _source_of(model.output(OUTPUT))], model.get_parameters(), "body")
        compiled = core.compile_model(body, "CPU", _OPTIONS)
        width = features.get_partial_shape()[1].get_length()
        vectors = opset13.parameter(openvino.PartialShape([-1, width]), np.float32)
        logits = _source_of(model.output(OUTPUT))
        for reader in list(features.get_target_inputs()):
            reader.replace_source_output(vectors.output(0))
        head = openvino.Model([logits], [vectors], "head")
        return cls(compiled, core.compile_model(head, "CPU", _OPTIONS))

    def places(self, image: FloatArray) -> NDArray[np.float64] | None:
        """What each position of an image (C, *size) adds to each logit, without the bias: (K, *positions).

        The mean over the network's own positions plus the bias is the logit. None where it is not: the head is then not
        linear. A network with few positions is run on the image shifted by fractions of their distance, which gives
        those in between (shift and stitch, Sermanet et al. 2013) at the places where `spread_out` expects them.
        """
        own, logits = self._body({INPUT: image[None]}).to_tuple()
        bias = self._head([np.zeros_like(own.reshape(1, own.shape[1], -1)[..., 0])])[0]
        each = self._logits(own, bias)
        if not np.allclose(each.mean(axis=tuple(range(2, each.ndim))) + bias, logits, atol=_TOLERANCE * np.ptp(each)):
            return None
        sides = own.shape[2:]
        strides = [stride_of(*axis) for axis in zip(image.shape[1:], sides, strict=True)]
        wanted = next((n for n in (1, 2) if min(sides) * n >= _MIN_POSITIONS), 4 if len(sides) == 2 else 2)
        between = [min(wanted, stride) for stride in strides]  # an axis that is not halved has all its places
        fine = np.empty((each.shape[1], *[side * n for side, n in zip(sides, between, strict=True)]))
        for part in product(*map(range, between)):
            steps = [stride * at // n for stride, at, n in zip(strides, part, between, strict=True)]
            moved = self._logits(self._body({INPUT: _shifted(image, steps)[None]}).to_tuple()[0], bias)
            fine[(slice(None), *[slice(at, None, n) for at, n in zip(part, between, strict=True)])] = moved[0]
        return fine

    def _logits(self, places: FloatArray, bias: FloatArray) -> NDArray[np.float64]:
        """Features (1, F, *positions) to (1, K, *positions)."""
        vectors = np.ascontiguousarray(places.reshape(places.shape[1], -1).T)
        return np.asarray((self._head([vectors])[0] - bias).T.reshape(1, -1, *places.shape[2:]), np.float64)


AnyEvidence = Evidence | DepthEvidence | TileEvidence
"""All of them have `places`."""


def _shifted(image: FloatArray, steps: Sequence[int]) -> FloatArray:
    """The image moved towards its first pixel by `steps` along each axis; its last rows are repeated."""
    for axis, step in enumerate(steps, start=1):
        image = image.take(np.minimum(np.arange(image.shape[axis]) + step, image.shape[axis] - 1), axis=axis)
    return image


def _source_of(result: openvino.Output) -> openvino.Output:
    """The operation that feeds an output of a model."""
    return result.get_node().input_value(0)
