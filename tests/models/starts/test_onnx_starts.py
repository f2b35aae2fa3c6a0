"""ResNets read from ONNX graphs, as exporters write them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from isolation import STARTED_WITH
from onnx import helper, numpy_helper
from published_resnets import PublishedResNet, trained
from torch import nn

from medopt.core.errors import ConfigError
from medopt.models import build_resnet
from medopt.models.starts.adapt import fit_start, scaled_channels
from medopt.models.starts.catalogue import weights_folder
from medopt.models.starts.files import read_start
from medopt.models.starts.onnx_layout import read_onnx
from medopt.models.starts.opening import open_start
from medopt.models.starts.start import Start

SIZE = (48, 40)


def exported(network: nn.Module, path: Path, dims: int = 2, channels: int = 3, *, keep_norms: bool = False) -> Path:
    """As torch's exporter of old writes it, with the normalizations folded into the convolutions or kept."""
    image = torch.zeros(1, channels, *(SIZE if dims == 2 else (16, 24, 20)))
    mode = torch.onnx.TrainingMode.PRESERVE if keep_norms else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        network, (image,), path, dynamo=False, opset_version=17, training=mode, do_constant_folding=not keep_norms
    )
    return path


def with_start(start: Start, channels: int = 3) -> Any:
    network = build_resnet(
        **start.architecture(), spatial_dims=start.spatial_dims, channels=channels, outputs=1, head="every_depth",
        scaled_channels=scaled_channels(start, channels),
    )  # fmt: skip
    network.load_state_dict(fit_start(start, network, "the file").state)
    return network.eval()


def operations(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


NETWORKS: list[tuple[str, str, int, Callable[[], nn.Module]]] = [
    ("v1.5", "large", 2, PublishedResNet),
    ("v1", "large", 2, lambda: PublishedResNet(v1=True)),
    ("d", "deep", 2, lambda: PublishedResNet(deep=True, averaged=True)),
    ("v1.5", "large", 2, lambda: PublishedResNet(bias=True)),
    ("dilated", "large", 3, lambda: PublishedResNet(3, dilated=True)),
    ("v1.5", "slices", 3, lambda: PublishedResNet(3, kernel=(3, 7, 7), stride=(1, 2, 2))),
]


@pytest.mark.parametrize("keep_norms", [False, True], ids=["folded", "unfolded"])
@pytest.mark.parametrize(("variant", "stem", "dims", "make"), NETWORKS)
def test_an_exported_network_gives_its_features(
    variant: str, stem: str, dims: int, make: Callable[[], nn.Module], keep_norms: bool, tmp_path: Path
) -> None:
    original: Any = trained(make())
    path = exported(original, tmp_path / "w.onnx", dims, keep_norms=keep_norms)
    assert ("BatchNormalization" in operations(path)) == keep_norms
    start = read_start(path)
    assert (start.variant, start.stem, start.scaling, start.layout) == (variant, stem, None, "ONNX")
    image = torch.rand(2, 3, *(SIZE if dims == 2 else (16, 24, 20)), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = with_start(start).features(image), original.features(image)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_the_scale_in_front_of_a_network_is_kept(tmp_path: Path) -> None:
    """Images in 0..255, less a mean and divided, as many exported classifiers begin: exact at the border, too."""
    mean, std = torch.tensor([[[123.0]], [[116.0]], [[103.0]]]), torch.tensor([[[58.0]], [[57.0]], [[56.0]]])

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = trained(PublishedResNet())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network((x * 255 - mean) / std)

    original: Any = Scaled().eval()
    start = read_onnx(exported(original, tmp_path / "w.onnx"))
    image = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    assert scaled_channels(start, 3) == 3
    with torch.no_grad():
        theirs = original.network.features((image * 255 - mean) / std)
        for mine, other in zip(with_start(start).features(image), theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_our_own_release_is_a_start(tmp_path: Path) -> None:
    """A network with the scale of its start, as medopt exports it: means of 3x3 places in its skips."""
    network = trained(build_resnet(26, channels=1, outputs=2, width=0.125, scaled_channels=3))
    network.scaling.scale.copy_(torch.tensor([2.0, 3.0, 4.0]).reshape(3, 1, 1))  # type: ignore[union-attr, operator]
    network.scaling.shift.copy_(torch.tensor([-1.0, 0.5, 0.1]).reshape(3, 1, 1))  # type: ignore[union-attr, operator]
    start = read_onnx(exported(network, tmp_path / "float.onnx", channels=1))
    assert (start.variant, start.channels) == ("pooled", 3)
    image = torch.rand(2, 1, *SIZE)
    with torch.no_grad():
        mine, other = with_start(start, 1).features(image)[-1], network.features(image)[-1]  # type: ignore[operator]
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def replaced(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def first(model: onnx.ModelProto, kind: str, at: int = 0) -> Any:
    return [node for node in model.graph.node if node.op_type == kind][at]


def _cut(model: onnx.ModelProto) -> None:
    """A weight of another shape."""
    name = first(model, "Conv", 10).input[1]
    (old,) = [item for item in model.graph.initializer if item.name == name]
    old.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(old)[:, 1:], name))


def _lose(model: onnx.ModelProto) -> None:
    """A weight that is not in the file."""
    name = first(model, "Conv", 10).input[1]
    kept = [item for item in model.graph.initializer if item.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _attribute(kind: str, at: int, name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = first(model, kind, at)
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _leaky(model: onnx.ModelProto) -> None:
    first(model, "Relu", 3).op_type = "LeakyRelu"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_cut, "does not fill the network"),
        (_lose, "are not in the file as numbers"),
        (_attribute("Conv", 0, "pads", [2, 2, 3, 3]), "another padding than half its kernel"),
        (_attribute("Conv", 0, "strides", [1, 1]), None),
        (_attribute("Conv", 0, "strides", [4, 4]), "with the stride 4x4"),
        (_attribute("Conv", 2, "auto_pad", b"SAME_UPPER"), "pads as SAME_UPPER does"),
        (_attribute("Conv", 2, "dilations", [2, 2]), "another padding than half its kernel"),
        (_attribute("MaxPool", 0, "pads", [0, 0, 0, 0]), "pools with another window or padding"),
        (_leaky, "not a ResNet in float: it has LeakyRelu nodes"),
    ],
)
def test_a_changed_graph_is_refused(
    change: Callable[[onnx.ModelProto], None], said: str | None, tmp_path: Path
) -> None:
    path = exported(trained(PublishedResNet()), tmp_path / "w.onnx")
    network = with_start(read_start(path))
    replaced(path, change)
    if said is None:
        assert read_start(path).stem == "full"
        return
    with pytest.raises(ConfigError, match=said):
        fit_start(read_start(path), network, path.name)


def test_no_network_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"no protobuf" * 9)
    with pytest.raises(ConfigError, match="cannot be read as ONNX"):
        read_start(tmp_path / "w.onnx")
    with pytest.raises(ConfigError, match="There is no file"):
        read_start(tmp_path / "nowhere.onnx")
    exported(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), tmp_path / "w.onnx")
    with pytest.raises(ConfigError, match="does not begin with the stem"):
        read_start(tmp_path / "w.onnx")


def real_weights(monkeypatch: pytest.MonkeyPatch, name: str) -> Path:
    """The folder of a start in the user's own cache, which the tests' empty home hides."""
    for key in ("MEDOPT_WEIGHTS", "XDG_CACHE_HOME", "HOME"):
        if key in STARTED_WITH:
            monkeypatch.setenv(key, STARTED_WITH[key])
    folder = weights_folder()
    monkeypatch.setenv("HOME", os.devnull)
    monkeypatch.setenv("MEDOPT_WEIGHTS", str(folder))
    if not (folder / name).is_dir():
        pytest.skip(f"no {name} in {folder}: medopt weights show {name} says how to get it")
    return folder / name


def test_the_thin_resnet_gives_the_features_of_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against ONNX Runtime on the file itself, whose input is (N, H, W, BGR) in 0..255 less a mean."""
    path = real_weights(monkeypatch, "nsfw-thin-resnet50") / "open_nsfw.onnx"
    opened = open_start("nsfw-thin-resnet50", Path())
    model = onnx.load(path)
    (means,) = (node.output[0] for node in model.graph.node if node.op_type == "ReduceMean")
    model.graph.output.append(helper.make_tensor_value_info(means, 1, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).random((2, 3, 224, 224), dtype=np.float32)
    theirs = (image.transpose(0, 2, 3, 1)[..., ::-1] * 255 - [104, 117, 123]).astype(np.float32)
    (expected,) = session.run([means], {model.graph.input[0].name: theirs})
    network = with_start(opened.start)
    with torch.no_grad():
        found = network.features(torch.from_numpy(image))[-1].numpy()
    assert np.abs(found - expected).max() < 1e-4
    grey = np.repeat(image[:, :1], 3, 1)
    with torch.no_grad():  # a grey image is the same as one that is grey in each channel
        of_grey = with_start(opened.start, 1).features(torch.from_numpy(image[:, :1]))[-1]
        torch.testing.assert_close(of_grey, network.features(torch.from_numpy(grey))[-1], rtol=0, atol=1e-5)
