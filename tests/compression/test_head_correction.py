"""The float layers at a network's end take back what rounding does to their features: heads of two layers, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from medopt.compression.head_correction import SLOPES, correct_head
from medopt.inference.engines import open_engine


def head_alone(scale: float, shift: float, *, bias: bool = True, outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
    """Two linear layers on the means of three channels, whose logits add up; rounding is a scale and a shift."""
    draw = np.random.default_rng(0).normal
    values = {
        "scale": np.float32(scale),
        "shift": np.float32(shift),
        "one": draw(size=(2, 3)),
        "two": draw(size=(2, 3)),
    }
    values |= {"bias": draw(size=2)} if bias else {}
    make = onnx.helper.make_node
    nodes = [
        make("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
        make("Mul", ["means", "scale"], ["scaled"]),
        make("Add", ["scaled", "shift"], ["features"]),
        make("Gemm", ["features", "one"], ["first"], name="first", transB=1),
        make("Gemm", ["features", "two", *(["bias"] if bias else [])], ["last"], name="last", transB=1),
        make("Add", ["first", "last"], ["logits"]),
    ]
    inputs = [onnx.helper.make_tensor_value_info("image", 1, ["n", 3, 4, 4])]
    logits = onnx.helper.make_tensor_value_info("logits", 1, ["n", 2])
    given = [logits, *(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)]
    weights = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "head", inputs, given, weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_takes_back_what_rounding_does_to_its_features(tmp_path: Path, bias: bool) -> None:
    source, moved = head_alone(1, 0, bias=bias), head_alone(0.8, 0.3, bias=bias)
    random = np.random.default_rng(1)
    images, others = (random.random((20, 3, 4, 4), dtype=np.float32) for _ in range(2))
    corrected = correct_head(moved, source, images)
    logits = {}
    for name, model in (("source", source), ("moved", moved), ("corrected", corrected)):
        onnx.save(model, tmp_path / f"{name}.onnx")
        logits[name] = open_engine("onnxruntime", tmp_path / f"{name}.onnx").run(others)
    if bias:
        np.testing.assert_allclose(logits["corrected"], logits["source"], atol=1e-5)
        assert np.abs(logits["moved"] - logits["source"]).max() > 0.1
    else:  # nowhere to put the offset
        np.testing.assert_array_equal(logits["corrected"], logits["moved"])


def test_a_feature_that_never_changes_keeps_its_weight() -> None:
    source, moved = head_alone(1, 0), head_alone(0, 0.3)
    images = np.random.default_rng(1).random((20, 3, 4, 4), dtype=np.float32)
    found = {item.name: numpy_helper.to_array(item) for item in correct_head(moved, source, images).graph.initializer}
    known = {item.name: numpy_helper.to_array(item) for item in source.graph.initializer}
    np.testing.assert_array_equal(found["one"], known["one"])
    wanted = known["bias"] + (known["one"] + known["two"]) @ (images.mean((0, 2, 3)) - 0.3)
    np.testing.assert_allclose(found["bias"], wanted, rtol=1e-4)


def values_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


IMAGES = np.random.default_rng(1).random((20, 3, 4, 4), dtype=np.float32)


@pytest.mark.parametrize(("scale", "slope"), [(0.6, 1 / 0.6), (1.8, 1 / 1.8), (0.2, 2.0), (5.0, 0.5)])
def test_a_line_is_no_steeper_than_twice_and_no_flatter_than_half(scale: float, slope: float) -> None:
    """Weight and bias written out; the means agree whatever the slope is."""
    assert SLOPES == (0.5, 2.0)
    source, moved = head_alone(1, 0), head_alone(scale, 0.3)
    found, known = values_of(correct_head(moved, source, iter(IMAGES))), values_of(source)
    means = IMAGES.mean((0, 2, 3))
    for name in ("one", "two"):
        np.testing.assert_allclose(found[name], slope * known[name], rtol=1e-4)
    offset = means - slope * (scale * means + 0.3)
    np.testing.assert_allclose(found["bias"], known["bias"] + (known["one"] + known["two"]) @ offset, rtol=1e-3)
    assert values_of(moved)["one"].tolist() == known["one"].tolist()  # what was given is not changed


def test_features_that_the_model_also_gives_are_read_once() -> None:
    """The models of a run have their features as a second output."""
    plain, given = (
        correct_head(head_alone(0.8, 0.3, outputs=more), head_alone(1, 0, outputs=more), IMAGES)
        for more in ((), ("features",))
    )
    assert [item.name for item in given.graph.output] == ["logits", "features"]
    assert {name: value.tolist() for name, value in values_of(plain).items()} == {
        name: value.tolist() for name, value in values_of(given).items()
    }


def test_a_layer_of_another_name_stays_and_the_others_are_corrected() -> None:
    source, moved = head_alone(1, 0), head_alone(0.8, 0.3)
    next(node for node in moved.graph.node if node.name == "first").name = "other"
    found, known = values_of(correct_head(moved, source, IMAGES)), values_of(source)
    np.testing.assert_array_equal(found["one"], known["one"])
    np.testing.assert_allclose(found["two"], known["two"] / 0.8, rtol=1e-4)
    np.testing.assert_allclose(found["bias"], known["bias"] - known["two"] @ np.full(3, 0.3 / 0.8), rtol=1e-3)
