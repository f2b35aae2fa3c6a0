from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from medopt.compression import export
from medopt.compression.export import export_onnx
from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.experiments.ensemble import merge_mean
from medopt.inference.engines import ENGINES, open_engine
from medopt.models import BottleneckLayer, build_model


def small_net(dims: int, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1)
    block = BottleneckLayer(1, 4, 8, spatial_dims=dims, stride=2)
    return nn.Sequential(block, pool, nn.Flatten(), nn.Linear(8, outputs))


def images(dims: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((count, 1, *(8, 12, 10)[:dims]), dtype=np.float32)


def test_the_networks_logits_are_kept(tiny_models: SimpleNamespace) -> None:
    assert 0 <= tiny_models.parity < 1e-4
    model = onnx.load(tiny_models.float)
    onnx.checker.check_model(model)
    assert [item.name for item in model.graph.input] == ["image"]
    assert [item.name for item in model.graph.output] == ["logits", "features"]
    shape = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 1, 16, 16]
    assert model.opset_import[0].version == tiny_models.study.compression.opset


@pytest.mark.parametrize(("dims", "outputs"), [(3, 1), (2, 4)], ids=["volume", "four classes"])
def test_volumes_and_classes_are_exported(dims: int, outputs: int, tmp_path: Path) -> None:
    model, path = small_net(dims, outputs), tmp_path / "a.onnx"
    assert export_onnx(model, images(dims), path, 18) < 1e-5
    more = images(dims, 7)
    found = open_engine("openvino", path).run(more)
    np.testing.assert_allclose(found, model.eval()(torch.from_numpy(more)).detach(), atol=1e-4)


@pytest.mark.parametrize(
    ("task", "labels", "size"),
    [
        ("binary", 2, [24, 20]),
        ("multiclass", 3, [24, 20]),
        ("multilabel", 3, [24, 20]),
        ("binary", 2, [16, 12, 20]),
        ("multiclass", 3, [16, 12, 20]),
    ],
)
def test_every_head_is_exported_with_its_normalizations_folded(
    tiny_study: Callable[..., Study], tmp_path: Path, task: str, labels: int, size: list[int]
) -> None:
    data = {"labels": [f"l{k}" for k in range(labels)], "task": task}
    study = tiny_study(data=data, prepare={"size": size}, model={"zero_init_residual": False, "dropout": 0.1})
    model, path = build_model(study), tmp_path / "a.onnx"
    batch = np.random.default_rng(0).random((3, 1, *size), dtype=np.float32)
    settled = model.train()(torch.from_numpy(batch))  # the normalizations have statistics of their own
    assert settled.shape == (3, study.data.outputs)
    assert export_onnx(model, batch, path, 18) < 1e-4
    written = onnx.load(path)
    assert "BatchNormalization" not in {node.op_type for node in written.graph.node}
    assert {node.domain for node in written.graph.node} == {""} and not written.functions  # any runtime reads these
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(batch)).numpy()
    for engine in ENGINES:
        if "-" not in engine:
            np.testing.assert_allclose(open_engine(engine, path, 1).run(batch), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "convolved"), [((16, 12), True), ((16, 13), False), ((8, 12, 10), False)], ids=["even", "odd", "volume"]
)
def test_averaged_skips_are_convolutions_where_that_is_exact(
    tmp_path: Path, size: tuple[int, ...], convolved: bool
) -> None:
    torch.manual_seed(0)
    dims, path = len(size), tmp_path / "a.onnx"
    pool = nn.AdaptiveAvgPool2d(1) if dims == 2 else nn.AdaptiveAvgPool3d(1)
    block = BottleneckLayer(3, 4, 8, spatial_dims=dims, stride=2, projects="averaged")
    model = nn.Sequential(block, pool, nn.Flatten(), nn.Linear(8, 2))
    batch = np.random.default_rng(0).random((3, 3, *size), dtype=np.float32)
    model.train()(torch.from_numpy(batch))  # the normalizations have statistics of their own
    assert export_onnx(model, batch, path, 18) < 1e-5
    nodes = [
        (node.op_type, onnx.helper.get_node_attr_value(node, "group"))
        for node in onnx.load(path).graph.node
        if node.op_type == "Conv"
    ]
    pools = any(node.op_type == "AveragePool" for node in onnx.load(path).graph.node)
    assert (("Conv", 3) in nodes, pools) == (convolved, not convolved)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(open_engine("openvino", path).run(batch), expected, atol=1e-5)


def test_one_example_is_enough_for_any_batch(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(small_net(2, 1), images(2, 1), tmp_path / "a.onnx", 18)
    for count in (1, 2, 5):
        assert open_engine("onnxruntime", tmp_path / "a.onnx").run(images(2, count)).shape == (count, 1)
    assert capfd.readouterr().out == ""


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(tiny_models: SimpleNamespace) -> None:
    for path in (tiny_models.float, tiny_models.int8):
        content = path.read_bytes()
        assert b"site-packages" not in content and b".py" not in content
        assert sys.prefix.encode() not in content and str(Path(export.__file__).parents[2]).encode() not in content


def test_an_export_that_differs_is_refused_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"the old one")
    original = onnx.save

    def wrong(model: onnx.ModelProto, target: Any) -> None:
        weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 0.5
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        original(model, target)

    monkeypatch.setattr(export.onnx, "save", wrong)
    with pytest.raises(TrainingError, match=r"differs from the network by .* not exported"):
        export_onnx(small_net(2, 1), images(2), path, 18)
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"] and path.read_bytes() == b"the old one"


def test_a_network_that_gives_no_number_is_refused(tmp_path: Path) -> None:
    model = small_net(2, 1)
    nn.init.constant_(model[3].bias, float("nan"))
    with pytest.raises(TrainingError, match="not exported"):
        export_onnx(model, images(2), tmp_path / "a.onnx", 18)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_second_output_is_what_the_classifier_sees(tiny_models: SimpleNamespace, engine: str) -> None:
    """The features are the network's pooled ones, int8's are near, and the logits of one run are those of the other."""
    batch = np.stack([np.load(path) for path in tiny_models.val.files[:5]])
    seen: list[torch.Tensor] = []
    handle = tiny_models.model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        tiny_models.model.eval()(torch.from_numpy(batch))
    handle.remove()
    wanted = seen[0].numpy()
    for path, tolerance in ((tiny_models.float, 1e-4), (tiny_models.int8, 0.2)):
        opened = open_engine(engine, path, 1)
        logits, features = opened.run_both(batch)
        assert np.linalg.norm(features - wanted) <= tolerance * np.linalg.norm(wanted)
        assert np.array_equal(logits, opened.run(batch))


def test_an_ensemble_has_the_features_of_all_its_members(tiny_models: SimpleNamespace, tmp_path: Path) -> None:
    batch = np.stack([np.load(path) for path in tiny_models.val.files[:2]])
    merge_mean([tiny_models.float, tiny_models.float], tmp_path / "both.onnx")
    logits, features = open_engine("onnxruntime", tiny_models.float, 1).run_both(batch)
    merged, joined = open_engine("onnxruntime", tmp_path / "both.onnx", 1).run_both(batch)
    assert merged == pytest.approx(logits, abs=1e-5)
    assert np.array_equal(joined, np.hstack([features, features]))
