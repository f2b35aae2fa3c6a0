"""Networks of tiles as files: float and int8 in both engines, and maps whose mean is the logit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from medopt.compression.export import export_onnx
from medopt.compression.quantize import quantize_int8
from medopt.config import Study
from medopt.core.records import FloatArray
from medopt.evaluation.explain import Explainer
from medopt.inference.engines import ENGINES, open_engine
from medopt.inference.evidence_map import Evidence
from medopt.inference.tile_evidence import TileEvidence
from medopt.models import build_model
from medopt.models.resnet import BottleneckResNet

KINDS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "attention and the whole": ([90, 96], {"pooling": "attention", "tile": [32, 32], "global_view": True}),
    "mean at every depth": ([96, 64], {"pooling": "mean", "tile": [32, 32], "head": "every_depth"}),
    "the best two groups of slices": ([11, 32, 48], {"pooling": "top_k", "slices": 3, "top_k": 2}),
}


@pytest.fixture(scope="module", params=KINDS)
def files(
    request: pytest.FixtureRequest, tiny_study: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A network that weighs its tiles, in torch and as a float and an int8 file."""
    size, model = KINDS[request.param]
    study = tiny_study(prepare={"size": size}, model={"depth": 14, "zero_init_residual": False, "dropout": 0.1} | model)
    network, folder = build_model(study), tmp_path_factory.mktemp("tiles")
    assert isinstance(network, BottleneckResNet) and network.tiling is not None
    if network.tiling.attention is not None:
        nn.init.normal_(network.tiling.attention.score.weight, std=2.0, generator=torch.Generator().manual_seed(1))
    for name, parameter in network.named_parameters():
        if name.endswith("bias") and not name.startswith("layer"):  # the exporter leaves out a term of zero
            nn.init.constant_(parameter, 0.1)
    images = np.random.default_rng(0).random((8, 1, *size), dtype=np.float32)
    images[1, ..., 32:] = 0
    for _ in range(20):
        network.train()(torch.from_numpy(images))
    parity = export_onnx(network, images[:3], folder / "float.onnx", 18)
    quantize_int8(folder / "float.onnx", folder / "int8.onnx", list(images))
    return SimpleNamespace(network=network.eval(), images=images, folder=folder, parity=parity, size=size)


def logits(files: SimpleNamespace) -> FloatArray:
    with torch.inference_mode():
        found: FloatArray = files.network(torch.from_numpy(files.images)).numpy()
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_float_is_the_network_and_int8_is_near(engine: str, files: SimpleNamespace) -> None:
    expected = logits(files)
    found = open_engine(engine, files.folder / "float.onnx").run(files.images)
    assert files.parity < 1e-4
    np.testing.assert_allclose(found, expected, atol=1e-4)
    rounded, features = open_engine(engine, files.folder / "int8.onnx").run_both(files.images)
    assert np.abs(rounded - expected).max() < 0.1 * np.ptp(expected) + 0.02
    assert features.shape == (8, 256)
    np.testing.assert_allclose(
        open_engine(engine, files.folder / "int8.onnx").run(files.images[1:2]), rounded[1:2], atol=1e-4
    )


def test_the_convolutions_are_int8_and_what_weighs_tiles_is_float(files: SimpleNamespace) -> None:
    model = onnx.load(files.folder / "int8.onnx")
    assert [item.name for item in model.graph.output] == ["logits", "features"]
    shape = [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 1, *files.size]
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert [makers.get(node.input[0]) == "DequantizeLinear" for node in convolutions].count(False) == 1
    after = {"Gemm", "Softmax", "TopK", "Div", "ReduceSum", "Tanh", "Sigmoid", "ReduceMax", "CumSum"}
    for node in model.graph.node:
        if node.op_type in after:
            assert "DequantizeLinear" not in {makers.get(name) for name in node.input}, node.op_type


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_the_mean_of_the_map_is_the_logit(kind: str, files: SimpleNamespace) -> None:
    evidence = Evidence.open(files.folder / f"{kind}.onnx")
    assert isinstance(evidence, TileEvidence)
    answers = open_engine("openvino", files.folder / f"{kind}.onnx").run(files.images[:3])
    maps = [evidence.places(image) for image in files.images[:3]]
    means = np.array([each.mean() for each in maps if each is not None])
    assert len(means) == 3
    assert np.ptp(answers[:, 0] - means) < 1e-3  # the bias
    first = maps[0]
    assert first is not None and len(first.shape) == len(files.size) + 1
    if len(files.size) == 3:
        assert first.shape[1] == files.size[0]  # a place a slice, as a group stands for its slices
        np.testing.assert_array_equal(first[:, 3] - first[:, 4], 0)


@pytest.mark.parametrize("files", ["mean at every depth"], indirect=True)
def test_what_changes_in_one_tile_changes_the_map_there(files: SimpleNamespace) -> None:
    evidence, image = Evidence.open(files.folder / "float.onnx"), files.images[2].copy()
    assert evidence is not None
    before = evidence.places(image)
    image[..., 32:64, :32] = 0.9 - 0.8 * image[..., 32:64, :32]
    after = evidence.places(image)
    assert before is not None and after is not None
    moved = np.abs(after - before)[0]
    assert moved[32:64, :32].min() > 0
    moved[32:64, :32] = 0
    assert moved.max() < 1e-5


def test_grad_cam_of_tiles_has_the_size_of_the_image(files: SimpleNamespace) -> None:
    explainer = Explainer([files.network], "layer4")
    found = explainer.map(files.images[0], 0)
    against = explainer.map(files.images[0], 1)
    assert found.shape == against.shape == tuple(files.size)
    assert max(float(found.max()), float(against.max())) > 0
    assert files.network.tiling.at_once is not None  # the copy alone runs all at once
