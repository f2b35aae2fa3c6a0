"""Where a network with a linear layer on every depth saw evidence: the shares of all depths, laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.records import FloatArray
from medopt.core.telemetry import without_telemetry
from medopt.inference.engines import INPUT

with without_telemetry():
    import openvino

_TOLERANCE = 1e-3
_PASSED = {"Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class LinearPart:
    """One depth of a head: the map that is averaged, as an output of the graph, and the layer's weight (K, C)."""

    places: openvino.Output
    weight: NDArray[np.float64]


def linear_parts(logits: openvino.Output) -> tuple[list[LinearPart], NDArray[np.float64]] | None:
    """The linear layers whose sum is the logits, and the sum of their biases; None where the head is another one."""
    parts: list[LinearPart] = []
    bias, waiting = np.zeros(1), [(logits.get_node(), 1.0)]
    while waiting:
        node, factor = waiting.pop()
        constant, inputs = _constant(node), [value.get_node() for value in node.input_values()]
        if constant is not None:
            bias = bias + factor * constant
        elif node.get_type_name() == "Add":
            waiting += [(each, factor) for each in inputs]
        elif node.get_type_name() == "Multiply" and (scale := _constant(inputs[1])) is not None and scale.size == 1:
            waiting.append((inputs[0], factor * float(scale.item())))
        elif node.get_type_name() == "MatMul" and (part := _part(node, factor)) is not None:
            parts.append(part)
        else:
            return None
    return parts, bias


def _constant(node: Any) -> NDArray[np.float64] | None:
    """The value of a constant, or of a product of two."""
    if node.get_type_name() == "Constant":
        return np.asarray(node.data, np.float64)
    if node.get_type_name() != "Multiply":
        return None
    values = [_constant(value.get_node()) for value in node.input_values()]
    return None if values[0] is None or values[1] is None else values[0] * values[1]


def _part(node: Any, factor: float) -> LinearPart | None:
    weight, features = _constant(node.input_value(1).get_node()), _passed(node.input_value(0).get_node())
    if features.get_type_name() == "ReduceSum":  # over tiles, each times its weight
        features = next(map(_passed, _factors(features)), features)
    if weight is None or features.get_type_name() != "ReduceMean":
        return None
    by_output = weight if node.get_attributes()["transpose_b"] else weight.T  # (K, C)
    return LinearPart(features.input_value(0), factor * by_output)


def _passed(node: Any) -> Any:
    """The node behind those that only give a tensor another shape."""
    while node.get_type_name() in _PASSED:
        node = node.input_value(0).get_node()
    return node


def _factors(summed: Any) -> list[Any]:
    """Of a sum of products the factors that are means over positions."""
    product = _passed(summed.input_value(0).get_node())
    found = [value.get_node() for value in product.input_values()] if product.get_type_name() == "Multiply" else []
    return [node for node in found if _passed(node).get_type_name() == "ReduceMean"]


class DepthEvidence:
    """A network opened a second time with the maps of all depths among its outputs."""

    def __init__(self, compiled: openvino.CompiledModel, weights: Sequence[NDArray[np.float64]], bias: Any) -> None:
        self._compiled, self._weights, self._bias = compiled, weights, bias

    def places(self, image: FloatArray) -> NDArray[np.float64] | None:
        """What each position of an image (C, *size) adds to each logit, without the bias: (K, *positions).

        The positions are those of the finest depth; a coarser one adds the same to all that are nearest. The mean plus
        the bias is the logit. None where it is not.
        """
        *maps, logits = self._compiled({INPUT: image[None]}).to_tuple()
        shares = [np.tensordot(weight, each[0], axes=1) for weight, each in zip(self._weights, maps, strict=True)]
        finest = tuple(max(sides) for sides in zip(*(share.shape[1:] for share in shares), strict=True))
        total = np.sum([spread(share, finest) for share in shares], axis=0)
        mean = total.mean(axis=tuple(range(1, total.ndim)))
        if not np.allclose(mean + self._bias.ravel(), logits[0], atol=_TOLERANCE * max(1.0, float(np.ptp(total)))):
            return None
        return total


def spread(share: NDArray[np.float64], sides: Sequence[int]) -> NDArray[np.float64]:
    """A coarse map (K, *positions) on a finer grid: each takes the nearest, as place i of either lies on i * stride.

    The mean stays.
    """
    mean = share.mean(axis=tuple(range(1, share.ndim)), keepdims=True)
    for axis, side in enumerate(sides, start=1):
        nearest = np.floor(np.arange(side) * share.shape[axis] / side + 0.5).astype(int)
        share = share.take(np.minimum(nearest, share.shape[axis] - 1), axis=axis)
    return share + mean - share.mean(axis=tuple(range(1, share.ndim)), keepdims=True)
