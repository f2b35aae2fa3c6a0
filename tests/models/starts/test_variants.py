"""Each variant and stem that a start may ask for: exported, pruned, and pruned again after that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_resnets import trained

from medopt.compression.export import export_onnx
from medopt.compression.prune import multiply_adds, prune_network
from medopt.core.errors import ConfigError
from medopt.inference.engines import open_engine
from medopt.models import build_resnet
from medopt.models.channel_widths import Widths
from medopt.models.variants import VARIANTS

BUILDS: list[dict[str, Any]] = [
    *({"variant": variant} for variant in VARIANTS if variant != "pooled"),
    {"variant": "d", "stem": "deep"},
    {"variant": "v1.5", "stem": "full"},
    {"variant": "dilated", "spatial_dims": 3},
    {"variant": "v1.5", "spatial_dims": 3, "stem": "slices"},
    {"variant": "caffe", "width": [0.5, 0.25, 0.25, 0.25, 0.25]},
]


def network(head: str, **changed: Any) -> Any:
    given = {"stem": "large", "width": 0.25, "channels": 1, "outputs": 2, "scaled_channels": 3, "head": head} | changed
    return trained(build_resnet(26, **given))


def size_of(build: dict[str, Any]) -> list[int]:
    return [33, 40] if build.get("spatial_dims", 2) == 2 else [9, 24, 20]


@pytest.mark.parametrize("head", ["last", "every_depth"])
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: "-".join(map(str, build.values())))
def test_it_is_pruned(build: dict[str, Any], head: str) -> None:
    model, size = network(head, **build), size_of(build)
    narrow = prune_network(model, size, 0.4)
    gone = 1 - multiply_adds(narrow, 3, size) / multiply_adds(model, 3, size)
    assert 0.4 <= gone < 0.5
    image = torch.rand(2, 1, *size)
    with torch.no_grad():
        assert narrow(image).shape == (2, 2) and narrow(image).isfinite().all()
        assert torch.equal(prune_network(model, size, 0.0)(image), model(image))
    again = prune_network(narrow, size, 0.3, whole=Widths.of(model))
    assert multiply_adds(again, 3, size) < multiply_adds(narrow, 3, size)


def _names(build: dict[str, Any]) -> str:
    return "-".join(map(str, build.values()))


# torch's exporter takes seconds for each: two of them always, all with the long tests.
EXPORTED_ALWAYS = ({"variant": "d", "stem": "deep"}, {"variant": "caffe"})


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=_names(build), marks=() if build in EXPORTED_ALWAYS else pytest.mark.long)
        for build in BUILDS
    ],
)
def test_it_is_exported(build: dict[str, Any], tmp_path: Path) -> None:
    """Pruned, with a head on every depth and the scale of its start: the same logits from ONNX Runtime, any batch."""
    model, size = network("every_depth", **build), size_of(build)
    narrow = prune_network(model, size, 0.4)
    images = np.random.default_rng(0).random((3, 1, *size), dtype=np.float32)
    assert export_onnx(narrow, images, tmp_path / "model.onnx", 18) < 1e-3
    with torch.no_grad():
        expected = narrow(torch.from_numpy(images)).numpy()
    found = open_engine("onnxruntime", tmp_path / "model.onnx").run(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_an_image_has_no_slices() -> None:
    with pytest.raises(ConfigError, match="which only a volume has"):
        build_resnet(stem="slices")
