"""Files of weights: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_resnets import PublishedResNet, trained
from safetensors.torch import save_file
from torch import Tensor

from medopt.core.errors import ConfigError
from medopt.core.files import file_digest
from medopt.models import build_resnet
from medopt.models.starts.adapt import fit_start, scaled_channels
from medopt.models.starts.files import read_start, read_tensors, start_digest, write_start
from medopt.models.starts.start import Scaling


def weights() -> dict[str, Tensor]:
    return trained(PublishedResNet()).state_dict()


class Trap:
    """Makes a file where the pickle is loaded without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.bin"])
@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(name: str, write: str, tmp_path: Path) -> None:
    path, mark = tmp_path / name, tmp_path / "ran"
    content = {"state_dict": weights(), "extra": Trap(mark)}
    if write == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ConfigError, match="holds more than tensors, and reading it would run code") as refused:
        read_tensors(path)
    assert name in str(refused.value) and not mark.exists()


def test_a_whole_network_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(PublishedResNet(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": t}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_come_back_in_float32(wrap: Callable[[Any], Any], dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save(wrap({"a": torch.ones(3, dtype=dtype), "n": torch.tensor(3)}), tmp_path / "w.pth")
    found = read_tensors(tmp_path / "w.pth")
    assert found["a"].dtype == torch.float32 and found["n"].dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("w.safetensors", b"\x00" * 40, "cannot be read"),
        ("w.safetensors", b"", "cannot be read"),
        ("w.pth", b"", "cannot be read"),
        ("w.pth", b"PK\x03\x04 no archive", "cannot be read"),
        ("w.safetensors.index.json", b"{}", "has no weight_map"),
        ("w.safetensors.index.json", b"no json", "cannot be read"),
    ],
)
def test_files_that_are_none(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_start(tmp_path / name)


def test_no_file_and_no_tensors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file of weights"):
        read_start(tmp_path / "nowhere.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="holds no tensors by name"):
        read_start(tmp_path / "w.pth")


def sharded(folder: Path) -> Path:
    """A volume's network in two safetensors with their index, in bfloat16."""
    tensors = trained(PublishedResNet(3, 3, kernel=(3, 7, 7), stride=(1, 2, 2))).state_dict()
    tensors = {k: v.bfloat16() if v.is_floating_point() else v for k, v in tensors.items()}
    names = sorted(tensors)
    where = {name: f"w-0000{1 + (at > len(names) // 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    index = folder / "w.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_weights_in_several_files_are_one(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    start = read_start(index)
    assert (start.layout, start.stem, start.spatial_dims) == ("I3ResNet", "slices", 3)
    before = start_digest(index)
    part = tmp_path / "w-00002-of-00002.safetensors"
    assert before != file_digest(index)
    save_file({"layer4.1.conv3.weight": torch.zeros(1)}, part)
    assert start_digest(index) != before
    with pytest.raises(ConfigError, match="lack tensors that it names"):
        read_start(index)
    part.unlink()
    with pytest.raises(ConfigError, match=r"not beside it: w-00002"):
        read_start(index)


@pytest.mark.parametrize("outside", ["../w.safetensors", "/etc/passwd", "a/../../w.safetensors"])
def test_an_index_leads_nowhere_else(outside: str, tmp_path: Path) -> None:
    index = tmp_path / "w.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": outside}}))
    with pytest.raises(ConfigError, match="does not lie beside it"):
        read_start(index)


@pytest.mark.parametrize("scaling", [None, Scaling((104.0, 117.0, 123.0), (2.0, 3.0, 4.0), 255.0, "bgr")])
def test_a_written_start_is_the_same_network(scaling: Scaling | None, tmp_path: Path) -> None:
    from dataclasses import replace

    torch.save({f"module.{k}": v for k, v in trained(PublishedResNet(3, 1)).state_dict().items()}, tmp_path / "a.pth")
    torch.save(weights(), tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        start = replace(read_start(tmp_path / name), variant="v1")
        start = replace(start, scaling=scaling if start.channels == 3 else None)
        path = tmp_path / "start.safetensors"
        write_start(path, start, [("licence", "MIT")])
        digest = file_digest(path)
        back = read_start(path)
        assert (back.architecture(), back.spatial_dims, back.channels) == (
            start.architecture(),
            start.spatial_dims,
            start.channels,
        )
        image = torch.rand(2, start.channels, *([32] * start.spatial_dims))
        features = []
        for each in (start, back):
            network = build_resnet(
                **each.architecture(), spatial_dims=each.spatial_dims, channels=each.channels, head="every_depth",
                scaled_channels=scaled_channels(each, each.channels),
            )  # fmt: skip
            network.load_state_dict(fit_start(each, network, name).state)
            with torch.no_grad():
                features.append(network.eval().features(image)[-1])  # type: ignore[operator]
        np.testing.assert_allclose(features[1], features[0], rtol=1e-5, atol=1e-6)
        write_start(path, start, [("licence", "MIT")])
        assert file_digest(path) == digest
