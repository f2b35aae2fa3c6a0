from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
import torch
from torch import nn

from medopt.config import Model, Study
from medopt.core.errors import ConfigError
from medopt.models import BottleneckLayer, build_model, build_resnet, resnet

BACKBONE = {50: 23_508_032, 101: 42_500_160, 152: 58_143_808}  # torchvision's ResNets without their 1000-class head


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch, tiny_study: Callable[..., Study]) -> Callable[..., nn.Module]:
    """A network of full width without memory for its weights."""
    monkeypatch.setattr(resnet, "initialize", lambda *args, **options: None)

    def build(**model: Any) -> nn.Module:
        study = tiny_study(prepare={"channels": 3}, model={"width": 1, "stem": "large", **model})
        with torch.device("meta"):
            return build_model(study)

    return build


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_full_width_has_the_published_parameters(depth: int, on_paper: Callable[..., nn.Module]) -> None:
    parameters = sum(parameter.numel() for parameter in on_paper(depth=depth).parameters())
    assert parameters == BACKBONE[depth] + 2048 + 1


@pytest.mark.parametrize("depth", [14, 26, 50, 101, 152])
def test_the_depth_counts_convolutions_and_the_classifier(depth: int, on_paper: Callable[..., nn.Module]) -> None:
    model = on_paper(depth=depth)
    projections = sum(len(convolutions(m.skip)) for m in model.modules() if isinstance(m, BottleneckLayer))
    assert projections == 4
    assert len(convolutions(model)) - projections + 1 == depth


@pytest.mark.parametrize(("size", "dims"), [([32, 48], 2), ([16, 24, 16], 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_volumes_of_one_and_three_channels(
    tiny_study: Callable[..., Study], size: list[int], dims: int, channels: int
) -> None:
    model = build_model(tiny_study(prepare={"size": size, "channels": channels}))
    assert model(torch.rand(2, channels, *size)).shape == (2, 1)
    assert all(isinstance(m, (nn.Conv2d, nn.Conv3d)[dims - 2]) for m in convolutions(model))


@pytest.mark.parametrize(("task", "labels", "outputs"), [("binary", 2, 1), ("multiclass", 5, 5), ("multilabel", 4, 4)])
def test_heads(tiny_study: Callable[..., Study], task: str, labels: int, outputs: int) -> None:
    study = tiny_study(data={"task": task, "labels": [f"l{k}" for k in range(labels)]})
    assert build_model(study)(torch.rand(2, 1, 16, 16)).shape == (2, outputs)


@pytest.mark.parametrize(("stem", "factor"), [("small", 1), ("medium", 2), ("large", 4)])
def test_stems_reduce_the_image_by_their_factor(tiny_study: Callable[..., Study], stem: str, factor: int) -> None:
    model = build_model(tiny_study(model={"stem": stem}))
    seen: list[torch.Size] = []
    model.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model(torch.rand(2, 1, 32, 32))
    assert seen[0][2:] == (32 // factor, 32 // factor)


def test_global_pooling_takes_any_size(tiny_study: Callable[..., Study]) -> None:
    model = build_model(tiny_study()).eval()
    assert model(torch.rand(1, 1, 40, 24)).shape == (1, 1)
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(model(image.tile(2, 2)).shape, model(image).shape)


def test_weights_follow_from_the_seed_alone(tiny_study: Callable[..., Study]) -> None:
    def weights(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        return build_model(tiny_study(seed=seed)).state_dict()

    first, again, other = weights(1, 10), weights(1, 20), weights(2, 10)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_dropout_changes_training_only(tiny_study: Callable[..., Study]) -> None:
    model = build_model(tiny_study(model={"dropout": 0.5}))
    image = torch.rand(4, 1, 16, 16)
    model.eval()
    assert torch.equal(model(image), model(image))
    model.fc.train()
    assert not torch.equal(model(image), model(image))


def test_without_a_study_the_defaults_are_those_of_a_study_file(tiny_study: Callable[..., Study]) -> None:
    defaults = {name: parameter.default for name, parameter in signature(build_resnet).parameters.items()}
    assert Model().architecture().items() <= defaults.items()
    study = tiny_study(prepare={"size": [64, 64]}, model=Model().model_dump())
    own, studys = build_resnet(size=[64, 64]).state_dict(), build_model(study).state_dict()
    assert own.keys() == studys.keys() and all(torch.equal(own[name], studys[name]) for name in own)


def test_without_a_size_the_stem_is_the_published_one() -> None:
    model: Any = build_resnet(channels=3, outputs=2)
    assert model.conv1.kernel_size == (7, 7)
    assert model(torch.rand(2, 3, 70, 50)).shape == (2, 2)


@pytest.mark.parametrize(
    "wrong", [{"depth": 34}, {"spatial_dims": 1}, {"stem": "tiny"}, {"variant": "none"}, {"init": "zeros"}], ids=str
)
def test_a_choice_that_there_is_not_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is .*; give one of"):
        build_resnet(**wrong)
