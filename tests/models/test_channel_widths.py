from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.models import BottleneckLayer, build_model
from medopt.models.channel_widths import WIDTHS, Widths, channel_groups, module_of, narrow_model, take_channels
from medopt.training.checkpoint import write_tensors
from medopt.training.loop import load_best

KINDS = [{"prepare": {"size": [16, 16]}}, {"prepare": {"size": [8, 8, 8]}}, {"model": {"dropout": 0.2}}]


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """All that a normalization holds drawn at random, so that no channel is like another."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            for value in (layer.weight, layer.running_var):
                nn.init.uniform_(value, 0.5, 1.5, generator=generator)
            for value in (layer.bias, layer.running_mean):
                nn.init.uniform_(value, -0.3, 0.3, generator=generator)
    return model


def random_channels(model: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """About two thirds of each group's channels."""
    generator, kept = torch.Generator().manual_seed(seed), {}
    for name, width in Widths.of(model).by_group().items():
        kept[name] = torch.randperm(width, generator=generator)[: max(1, 2 * width // 3)].sort().values
    return kept


def kill(model: nn.Module, kept: dict[str, torch.Tensor]) -> None:
    """Let all writers of the other channels write nothing."""
    with torch.no_grad():
        for group in channel_groups(model):
            for _, norm in group.writers:
                layer = module_of(model, norm)
                dead = torch.ones(layer.num_features, dtype=torch.bool)
                dead[kept[group.name]] = False
                layer.weight[dead] = 0
                layer.bias[dead] = 0


@pytest.mark.parametrize("sections", KINDS, ids=["image", "volume", "dropout"])
def test_without_channels_that_write_nothing_the_logits_are_the_same(
    tiny_study: Callable[..., Study], sections: dict[str, Any]
) -> None:
    study = tiny_study(**sections)
    model = lively(build_model(study)).double().eval()
    kept = random_channels(model)
    image = torch.rand(3, 1, *study.prepare.size, dtype=torch.float64)
    alive = model(image)
    kill(model, kept)
    narrow = take_channels(model, kept)
    assert Widths.of(narrow).by_group() == {name: len(index) for name, index in kept.items()}
    torch.testing.assert_close(narrow(image), model(image), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(model(image), alive, rtol=1e-3)


def test_groups_name_every_layer_that_their_channels_pass(tiny_study: Callable[..., Study]) -> None:
    """Each convolution and normalization writes one group; all but the first convolution read one, and the classifier
    does.
    """
    model = build_model(tiny_study())
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    layers = {name for name, layer in model.named_modules() if isinstance(layer, kinds)}
    groups = channel_groups(model)
    writers = [name for group in groups for pair in group.writers for name in pair]
    readers = [name for group in groups for name in group.readers]
    assert len(set(writers)) == len(writers) and set(writers) == layers - {"fc"}
    convolutions = {name for name in layers if isinstance(module_of(model, name), nn.Conv2d)}
    assert len(set(readers)) == len(readers) and set(readers) == (convolutions - {"conv1"}) | {"fc"}


def test_where_nothing_goes_it_is_the_same_network(tiny_study: Callable[..., Study]) -> None:
    model = lively(build_model(tiny_study())).eval()
    same = take_channels(model, {name: torch.arange(n) for name, n in Widths.of(model).by_group().items()})
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(same(image), model(image)) and not same.training
    with torch.no_grad():
        same.conv1.weight.zero_()  # and none of it is shared
    assert not torch.equal(same(image), model(image))


def test_the_model_is_left_as_it_was(tiny_study: Callable[..., Study]) -> None:
    model = lively(build_model(tiny_study()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    narrow = take_channels(model, random_channels(model))
    with torch.no_grad():
        for value in narrow.state_dict().values():
            value.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_narrow_network_trains(tiny_study: Callable[..., Study]) -> None:
    model = build_model(tiny_study())
    narrow = take_channels(model, random_channels(model)).train()
    narrow(torch.rand(4, 1, 16, 16)).sum().backward()
    shapes = {name: tuple(p.shape) for name, p in narrow.named_parameters()}
    assert all(p.grad is not None and p.grad.shape == p.shape for p in narrow.parameters())
    block = narrow.layer2[0]
    assert isinstance(block, BottleneckLayer) and shapes["layer2.0.norm1.weight"] == (block.reduce.out_channels,)


def test_widths_go_through_json_and_build_the_network_again(tiny_study: Callable[..., Study], tmp_path: Path) -> None:
    study = tiny_study(model={"dropout": 0.1})
    model = lively(build_model(study)).eval()
    narrow = take_channels(model, random_channels(model))
    widths = Widths.of(narrow)
    assert Widths.from_json(widths.to_json()) == widths == Widths.of(narrow_model(study, widths)) != Widths.of(model)
    write_tensors(tmp_path / "narrow.safetensors", narrow.state_dict(), {WIDTHS: widths.to_json()})
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(load_best(study, tmp_path / "narrow.safetensors")(image), narrow(image))


def test_widths_of_another_network_are_refused(tiny_study: Callable[..., Study]) -> None:
    small, large = tiny_study(), tiny_study(model={"width": 0.25})
    deep = tiny_study(model={"depth": 50})
    for study in (large, deep):
        with pytest.raises(TrainingError, match="not the study's"):
            narrow_model(small, Widths.of(build_model(study)))
    for text in ("", "{}", '{"stem": 8, "residual": [8], "inner": [[8]]}'):
        with pytest.raises(TrainingError, match="cannot be read"):
            Widths.from_json(text)
