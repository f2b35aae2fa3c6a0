"""The evidence of places: its mean is the logit, it moves with the image, and it lies where the finding is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medopt.compression.export import export_onnx
from medopt.experiments.ensemble import merge_mean
from medopt.inference.depth_evidence import DepthEvidence
from medopt.inference.engines import load_batch, open_engine
from medopt.inference.evidence_map import Evidence
from medopt.models import build_resnet


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_the_networks_own_places_add_up_to_the_logit(kind: str, tiny_models: SimpleNamespace) -> None:
    images = load_batch(tiny_models.val.files[:4])
    evidence, engine = Evidence.open(getattr(tiny_models, kind)), open_engine("openvino", getattr(tiny_models, kind))
    assert evidence is not None
    found = [evidence.places(image) for image in images]
    own = [places[:, ::4, ::4].mean(axis=(1, 2)) for places in found if places is not None]
    assert len(own) == 4
    rest = engine.run(images) - np.stack(own)  # the bias, which is the same for every image
    assert np.ptp(rest) < 2e-2 * np.ptp(engine.run(images))


def test_the_bias_is_the_float_networks(tiny_models: SimpleNamespace) -> None:
    image = load_batch(tiny_models.val.files[:1])
    evidence = Evidence.open(tiny_models.float)
    assert evidence is not None
    places = evidence.places(image[0])
    assert places is not None
    with torch.inference_mode():
        logit = tiny_models.model(torch.from_numpy(image)).numpy()[0]
    bias = next(layer for layer in tiny_models.model.modules() if isinstance(layer, torch.nn.Linear)).bias
    np.testing.assert_allclose(places[:, ::4, ::4].mean(axis=(1, 2)) + bias.detach().numpy(), logit, atol=1e-3)


def test_places_between_are_those_of_the_shifted_image(tiny_models: SimpleNamespace) -> None:
    image = load_batch(tiny_models.val.files[:1])[0]
    evidence = Evidence.open(tiny_models.float)
    assert evidence is not None
    whole = evidence.places(image)
    assert whole is not None
    stride = image.shape[-1] // (whole.shape[-1] // 4)
    rows = np.minimum(np.arange(image.shape[1]) + stride // 4, image.shape[1] - 1)
    shifted = evidence.places(image[:, rows])
    assert shifted is not None
    np.testing.assert_allclose(shifted[:, ::4, ::4], whole[:, 1::4, ::4], atol=1e-4)
    assert not np.allclose(shifted[:, ::4, ::4], whole[:, ::4, ::4], atol=1e-4)


def test_a_head_on_every_depth_adds_up_and_follows_the_image(tmp_path: Path) -> None:
    network = build_resnet(
        26, width=0.125, size=(32, 32), stem="small", head="every_depth", scaled_channels=3, zero_init_residual=False
    ).eval()
    image = np.zeros((1, 1, 32, 32), np.float32)
    image[..., 20:26, 4:10] = 1
    export_onnx(network, image, tmp_path / "every.onnx", 18)
    evidence = Evidence.open(tmp_path / "every.onnx")
    assert isinstance(evidence, DepthEvidence)
    places = evidence.places(image[0])
    assert places is not None and places.shape == (1, 32, 32)
    with torch.inference_mode():
        logit = network(torch.from_numpy(image)).numpy()[0]
    bias = network.fc.heads[-1].bias.detach().numpy()  # type: ignore[union-attr, index]
    np.testing.assert_allclose(places.mean(axis=(1, 2)) + bias, logit, atol=1e-3)
    spread = np.abs(places[0] - np.median(places[0]))
    assert spread[18:28, 2:12].mean() > 2 * spread[:12, 18:].mean()


def test_an_ensemble_has_none(tiny_models: SimpleNamespace, tmp_path: Path) -> None:
    merge_mean([tiny_models.float, tiny_models.float], tmp_path / "both.onnx")
    assert Evidence.open(tmp_path / "both.onnx") is None
