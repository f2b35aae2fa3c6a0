"""Channels, scale, depth and stem: exact where it can be, and what holds where it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from published_resnets import PublishedResNet, trained
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d

from medopt.core.errors import ConfigError
from medopt.models import build_resnet
from medopt.models.starts.adapt import adapt_channels, fit_start, inflate, resample_kernel, scaled_channels, table_of
from medopt.models.starts.layouts import recognise
from medopt.models.starts.start import IMAGENET, Scaling, Start


@pytest.fixture(scope="module")
def start() -> Start:
    return recognise(trained(PublishedResNet()).state_dict(), "w.pth")


def network_for(start: Start, channels: int, dims: int = 2, **changed: Any) -> Any:
    """A network of the start's architecture for images of `channels`, with the start in it."""
    network = build_resnet(
        **{**start.architecture(), **changed}, spatial_dims=dims, channels=channels, head="every_depth",
        scaled_channels=scaled_channels(start, channels),
    )  # fmt: skip
    network.load_state_dict(fit_start(start, network, "the start").state)
    return network.eval()


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


def test_a_grey_image_is_as_one_that_is_grey_in_colour(start: Start) -> None:
    image = drawn(2, 1, 50, 41)
    with torch.no_grad():
        grey = network_for(start, 1).features(image)
        colour = network_for(start, 3).features(image.repeat(1, 3, 1, 1))
    for mine, other in zip(grey, colour, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_without_a_scale_three_channels_become_their_sum() -> None:
    start = replace(recognise(trained(PublishedResNet()).state_dict(), "w.pth"), scaling=None)
    image = drawn(2, 1, 50, 41)
    assert scaled_channels(start, 1) == 0
    with torch.no_grad():
        grey = network_for(start, 1).features(image)
        colour = network_for(start, 3).features(image.repeat(1, 3, 1, 1))
    for mine, other in zip(grey, colour, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("dims", [2, 3])
def test_equal_channels_give_the_same_response(channels: int, dims: int) -> None:
    weight, image = drawn(5, 3, *[7] * dims) - 0.5, drawn(2, 1, *[20] * dims)
    convolve = conv2d if dims == 2 else conv3d
    adapted = adapt_channels(weight, channels)
    assert adapted.shape[1] == channels
    found = convolve(image.repeat(1, channels, *[1] * dims), adapted, padding=3)
    expected = convolve(image.repeat(1, 3, *[1] * dims), weight, padding=3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_of_a_start_with_one_scale_for_all(channels: int) -> None:
    start = replace(
        recognise(trained(PublishedResNet()).state_dict(), "w.pth"), scaling=Scaling((0.5,) * 3, (0.25,) * 3)
    )
    image = drawn(2, 1, 40, 40)
    with torch.no_grad():
        found = network_for(start, channels).features(image.repeat(1, channels, 1, 1))[-1]
        expected = network_for(start, 3).features(image.repeat(1, 3, 1, 1))[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("high", [1.0, 255.0])
def test_the_scale_is_exact_at_the_border(order: Any, high: float) -> None:
    """As the original library does it: scaled first, then padded with zeros; so also the places at the edge agree."""
    original: Any = trained(PublishedResNet())
    scaling = Scaling(tuple(high * mean for mean in IMAGENET.mean), tuple(high * s for s in IMAGENET.std), high, order)
    start = replace(recognise(original.state_dict(), "w.pth"), scaling=scaling)
    image = drawn(2, 3, 40, 41)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (scaling.mean, scaling.std))
    theirs = ((image.flip(1) if order == "bgr" else image) * high - mean) / std
    network = network_for(start, 3)
    with torch.no_grad():
        stem = network.conv1(network.scaling(image))
        expected = original.conv1(theirs)
    torch.testing.assert_close(stem, expected, rtol=1e-4, atol=1e-4)
    edge = torch.cat([stem[..., 0, :].flatten(), stem[..., -1].flatten()])
    other = torch.cat([expected[..., 0, :].flatten(), expected[..., -1].flatten()])
    torch.testing.assert_close(edge, other, rtol=1e-4, atol=1e-4)


def test_a_network_without_the_scale_is_refused(start: Start) -> None:
    network = build_resnet(**start.architecture(), channels=3)
    with pytest.raises(ConfigError, match="no layer for the scale of the start's images"):
        fit_start(start, network, "the start")


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("depth", [1, 3, 5, 7])
def test_inflation_keeps_what_does_not_change_along_the_depth(kernel: int, depth: int) -> None:
    weight, image = drawn(6, 4, kernel, kernel) - 0.5, drawn(2, 4, 20, 18)
    volume = image.unsqueeze(2).repeat(1, 1, 3 * depth, 1, 1)
    found = conv3d(volume, inflate(weight, depth), padding=(0, kernel // 2, kernel // 2))
    expected = conv2d(image, weight, padding=kernel // 2).unsqueeze(2).expand_as(found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stem", ["large", "slices"])
@pytest.mark.parametrize("averaged", [False, True], ids=["v1.5", "d"])
def test_a_whole_network_of_a_volume_without_change_along_the_depth(stem: str, averaged: bool) -> None:
    """In slices whose field of view does not reach the zeros that pad the volume, each block gives what the image gave.

    Nearer to the ends it does not hold: zeros are no copies of the slices.
    """
    start = recognise(trained(PublishedResNet(averaged=averaged, planes=(4, 8, 8, 8))).state_dict(), "w.pth")
    image = drawn(1, 1, 33, 32)
    flat, deep = network_for(start, 1), network_for(start, 1, 3, stem=stem)
    volume = image.unsqueeze(2).expand(-1, -1, 448, -1, -1)
    maps: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        flat._run(image, maps[0])
        deep._run(volume, maps[1])
    for of_image, of_volume in zip(*maps, strict=True):
        middle = of_volume[:, :, of_volume.shape[2] // 2]
        scale = float(of_image.abs().max())
        torch.testing.assert_close(middle / scale, of_image / scale, rtol=0, atol=1e-5)
    assert maps[1][-1].shape[2] >= 14 and not torch.allclose(maps[1][0][:, :, 0], maps[0][0], atol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [3, 5])
def test_a_resampled_kernel_answers_an_even_image_alike(dims: int, size: int) -> None:
    weight = drawn(6, 2, *[7] * dims) - 0.5
    small = resample_kernel(weight, [size] * dims)
    assert small.shape == (6, 2, *[size] * dims)
    torch.testing.assert_close(small.flatten(2).sum(2), weight.flatten(2).sum(2), rtol=1e-4, atol=1e-4)


def test_a_resampled_kernel_keeps_its_direction() -> None:
    """An edge detector stays one of the same side."""
    weight = torch.zeros(1, 1, 7, 7)
    weight[..., :3], weight[..., 4:] = -1, 1
    small = resample_kernel(weight, (3, 3))[0, 0]
    assert (small[:, 0] < -0.5).all() and (small[:, 2] > 0.5).all() and float(small[:, 1].abs().max()) < 1e-6


@pytest.mark.parametrize("stem", ["small", "medium"])
def test_a_stem_for_small_images(start: Start, stem: str) -> None:
    network = network_for(start, 1, stem=stem)
    fates = {fate.name: fate for fate in fit_start(start, network, "the start").fates}
    assert fates["conv1.weight"].how == "kernel resampled to 3x3"
    with torch.no_grad():
        assert network(drawn(2, 1, 28, 28)).isfinite().all()


def test_widths_by_stage(start: Start) -> None:
    """A whole stem over a half-width body."""
    tensors = trained(PublishedResNet(stem_width=16)).state_dict()
    thin = recognise(tensors, "w.pth")
    assert thin.width == (0.25, 0.125, 0.125, 0.125, 0.125)
    assert thin.architecture()["width"] == [0.25, 0.125, 0.125, 0.125, 0.125]
    assert start.architecture()["width"] == 0.125
    network_for(thin, 1)


def test_what_does_not_fit_is_refused_unless_it_is_said() -> None:
    tensors = trained(PublishedResNet()).state_dict()
    whole = recognise(tensors, "w.pth")
    part = replace(whole, tensors={k: v for k, v in whole.tensors.items() if not k.startswith("layer4.1")})
    network = build_resnet(**whole.architecture(), channels=1, scaled_channels=3)
    with pytest.raises(ConfigError, match=r"(\d+) % of the backbone's weights are in it\. Missing: layer4\.1") as told:
        fit_start(part, network, "w.pth")
    share = int(str(told.value).split("network: ")[1].split(" %")[0])
    fitted = fit_start(part, network, "w.pth", partial=True)
    assert share == int(100 * fitted.share) and 50 < share < 90
    assert table_of(fitted)["new"] > 0
    assert torch.equal(fitted.state["layer4.1.expand.weight"], network.state_dict()["layer4.1.expand.weight"])


def test_nothing_that_fits_is_no_start_even_in_part(start: Start) -> None:
    other = build_resnet(depth=26, width=0.5, channels=1)
    empty = replace(start, tensors={"conv1.weight": torch.zeros(3, 3, 7, 7)}, scaling=None)
    with pytest.raises(ConfigError, match="Nothing in it fits"):
        fit_start(empty, other, "w.pth", partial=True)


def test_the_last_layer_is_never_the_starts() -> None:
    network: nn.Module = trained(build_resnet(26, width=0.125, outputs=1))
    start = recognise(network.state_dict(), "best.safetensors")
    fresh = build_resnet(26, width=0.125, outputs=1, seed=7)
    state = fit_start(start, fresh, "best.safetensors").state
    assert torch.equal(state["fc.weight"], fresh.state_dict()["fc.weight"])
    assert torch.equal(state["layer4.1.expand.weight"], network.state_dict()["layer4.1.expand.weight"])
