"""Files as other libraries write them: recognised, refused when damaged, and the same features as the original's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_resnets import PublishedResNet, trained
from torch import Tensor, nn

from medopt.core.errors import ConfigError
from medopt.core.telemetry import without_telemetry
from medopt.models import build_resnet
from medopt.models.starts.adapt import fit_start, scaled_channels, table_of
from medopt.models.starts.files import read_start
from medopt.models.starts.layouts import recognise
from medopt.models.starts.start import IMAGENET, Start

with without_telemetry():
    from monai.networks.nets.resnet import ResNet

Tensors = dict[str, Tensor]
MEAN, STD = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))


def numbered(tensors: Tensors) -> Tensors:
    """As RadImageNet's backbone is saved: torchvision's children in order."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = ((*name.partition("."), value) for name, value in tensors.items())
    return {f"backbone.{numbers[first]}.{rest}": value for first, _, rest, value in parts if first in numbers}


def monai() -> nn.Module:
    """MONAI's own class as a bundle configures it: its default stem of stride 1, projections with a bias."""
    return ResNet("bottleneck", [2, 2, 2, 2], [8, 16, 32, 64], spatial_dims=3, n_input_channels=1, num_classes=2)


def monai_features(network: Any, x: Tensor) -> Tensor:
    x = network.maxpool(network.act(network.bn1(network.conv1(x))))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
    return x.flatten(2).mean(2)


@dataclass(frozen=True)
class Case:
    """A library's file: its network, the names in it, what its images look like, and what it is recognised as."""

    layout: str
    network: Callable[[], nn.Module]
    variant: str
    stem: str
    names: Callable[[Tensors], Any] = field(default=lambda tensors: tensors)
    image: Callable[[Tensor], Tensor] = field(default=lambda x: x)
    size: tuple[int, ...] = (3, 65, 48)


CASES = [
    Case("torchvision", PublishedResNet, "v1.5", "large", image=lambda x: (x - MEAN) / STD),
    Case(
        "timm, deep stem", lambda: PublishedResNet(deep=True, averaged=True), "d", "deep",
        image=lambda x: (x - MEAN) / STD,
    ),
    Case("torchvision", lambda: PublishedResNet(averaged=True), "d", "large", image=lambda x: (x - MEAN) / STD),
    Case("RadImageNet", PublishedResNet, "v1.5", "large", names=numbered, image=lambda x: 2 * x - 1),
    Case("Keras", lambda: PublishedResNet(v1=True, bias=True, eps=1.001e-5), "v1", "large"),
    Case(
        "MedicalNet", lambda: PublishedResNet(3, 1, dilated=True), "dilated", "large", size=(1, 33, 40, 36),
        names=lambda tensors: {"state_dict": {f"module.{k}": v for k, v in tensors.items() if k[:2] != "fc"}},
    ),
    Case(
        "torchxrayvision", lambda: PublishedResNet(2, 1, outputs=18), "v1.5", "large", size=(1, 65, 48),
        image=lambda x: 2048 * x - 1024,
    ),
    Case(
        "I3ResNet", lambda: PublishedResNet(3, 3, kernel=(3, 7, 7), stride=(1, 2, 2)), "v1.5", "slices",
        size=(3, 9, 40, 36), names=lambda tensors: {f"encode_image.i3_resnet.{k}": v for k, v in tensors.items()}
        | {"encode_text.weight": torch.zeros(3)},
    ),
    Case("MONAI", monai, "v1.5", "full", size=(1, 17, 20, 18)),
]  # fmt: skip
IDS = ["torchvision", "timm-d", "torchvision-d", "radimagenet", "keras", "medicalnet", "chest", "i3resnet", "monai"]
each_layout = pytest.mark.parametrize("case", CASES, ids=IDS)


def built(start: Start, channels: int, head: str = "every_depth") -> nn.Module:
    return build_resnet(
        **start.architecture(), spatial_dims=start.spatial_dims, channels=channels, outputs=1, head=head,  # type: ignore[arg-type]
        scaled_channels=scaled_channels(start, channels),
    )  # fmt: skip


def with_start(start: Start, channels: int) -> Any:
    network = built(start, channels)
    network.load_state_dict(fit_start(start, network, "the file").state)
    return network.eval()


@each_layout
def test_features_are_the_originals(case: Case, tmp_path: Path) -> None:
    original: Any = trained(case.network())
    torch.save(case.names(original.state_dict()), tmp_path / "w.pth")
    start = read_start(tmp_path / "w.pth")
    assert (start.layout, start.variant, start.stem) == (case.layout, case.variant, case.stem)
    assert start.depth == 26 and set(start.width) == {0.125}
    assert start.channels == case.size[0] and start.spatial_dims == len(case.size) - 1
    assert start.assumed
    image = torch.from_numpy(np.random.default_rng(1).random((2, *case.size), dtype=np.float32))
    with torch.no_grad():
        ours = with_start(start, case.size[0]).features(image)
        theirs = original.features(case.image(image)) if case.layout != "MONAI" else [monai_features(original, image)]
    for mine, other in zip(ours[-len(theirs) :], theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def loaded(tensors: Tensors, network: nn.Module) -> None:
    """Recognise tensors and fit them to the network of the undamaged start."""
    fit_start(recognise(tensors, "w.pth"), network, "w.pth")


def network_of(tensors: Tensors) -> nn.Module:
    start = recognise(tensors, "w.pth")
    return built(start, start.channels)


def inner(raw: Any) -> Tensors:
    return raw.get("state_dict", raw)


def damages(tensors: Tensors, key: str) -> dict[str, Tensors]:
    """The same file with one tensor missing, called otherwise, or of another shape."""
    others = {name: value for name, value in tensors.items() if name != key}
    return {
        "missing": others,
        "renamed": {**others, f"{key}x": tensors[key]},
        "of another shape": {**others, key: torch.cat([tensors[key], tensors[key]])},
    }


@each_layout
def test_every_tensor_is_missed(case: Case) -> None:
    tensors = inner(case.names(trained(case.network()).state_dict()))
    network = network_of(tensors)
    loaded(tensors, network)
    backbone = [name for name in tensors if not name.endswith("tracked") and ".fc." not in f".{name}"]
    for key in [name for name in backbone if "encode_text" not in name]:
        with pytest.raises(ConfigError):
            loaded({name: value for name, value in tensors.items() if name != key}, network)


@pytest.mark.parametrize("damage", ["missing", "renamed", "of another shape"])
@each_layout
def test_a_damaged_tensor_is_refused_by_name(case: Case, damage: str) -> None:
    tensors = inner(case.names(trained(case.network()).state_dict()))
    key = next(name for name in tensors if name.endswith("1.conv2.weight") and ("layer3" in name or ".6." in name))
    with pytest.raises(ConfigError, match=r"layer3\.1\.(spatial|conv2)|\.6\.1\.conv2") as refused:
        loaded(damages(tensors, key)[damage], network_of(tensors))
    assert "w.pth" in str(refused.value)


def test_our_own_files_come_back_with_their_scale() -> None:
    network = trained(build_resnet(26, channels=1, outputs=2, width=0.125, scaled_channels=3, head="every_depth"))
    network.scaling.scale.copy_(torch.tensor([2.0, 3.0, 4.0]).reshape(3, 1, 1))  # type: ignore[union-attr, operator]
    network.scaling.shift.copy_(torch.tensor([-1.0, 0.5, 0.1]).reshape(3, 1, 1))  # type: ignore[union-attr, operator]
    start = recognise(network.state_dict(), "best.safetensors")
    assert (start.layout, start.variant, start.stem) == ("medopt", "pooled", "large")
    image = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(with_start(start, 1).features(image), network.features(image), rtol=0, atol=0)  # type: ignore[operator]


def test_of_a_checkpoint_the_moving_average_is_taken() -> None:
    model, average = (trained(build_resnet(26, width=0.125), seed) for seed in (1, 2))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    start = recognise(tensors | {"optimizer.0.exp_avg": torch.zeros(3)}, "epoch-0003.safetensors")
    assert torch.equal(start.tensors["conv1.weight"], average.state_dict()["conv1.weight"])
    assert "optimizer.0.exp_avg" in start.left_out


def test_two_networks_in_a_file_are_refused() -> None:
    tensors = PublishedResNet().state_dict()
    both = {f"{name}.{key}": value for name in ("encoder_q", "encoder_k") for key, value in tensors.items()}
    with pytest.raises(ConfigError, match="holds 2 networks"):
        recognise(both, "moco.pth")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {"encoder.patch.weight": torch.zeros(3)}, "no bottleneck ResNet by names that medopt knows"),
        (lambda t: {k: v for k, v in t.items() if not k.startswith("layer4.1")}, r"\[2, 2, 2, 1\] bottleneck blocks"),
        (lambda t: {**t, "layer2.0.se.fc1.weight": torch.zeros(4, 4, 1, 1)}, "layer2.0.se.fc1.weight"),
        (lambda t: {**t, "conv1.weight": torch.zeros(8, 3, 5, 5)}, "begins with a convolution of 5x5"),
    ],
)
def test_other_networks_are_refused(change: Callable[[Tensors], Tensors], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recognise(change(PublishedResNet().state_dict()), "w.pth")


def test_a_wide_residual_network_is_refused() -> None:
    """Its blocks are twice as wide inside, and no wider outside."""
    tensors = PublishedResNet(planes=(8, 16, 32, 64)).state_dict()
    tensors["layer2.1.conv2.weight"] = torch.zeros(32, 32, 3, 3)
    with pytest.raises(ConfigError, match="does not fill the network"):
        loaded(tensors, network_of(PublishedResNet().state_dict()))


def test_the_table_counts_each_tensor() -> None:
    start = recognise(PublishedResNet().state_dict(), "w.pth")
    fitted = fit_start(start, built(start, 1), "w.pth")
    assert fitted.share == 1.0
    counts = table_of(fitted)
    assert counts["taken"] == len(start.tensors)
    assert counts["left out"] == 2 and counts["adapted"] == 2 and counts["new"] == 10  # fc; the scale; nine heads
