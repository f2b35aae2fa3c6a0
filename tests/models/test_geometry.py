"""Strides and kernels of a number an axis: thick slices are neither halved nor mixed before the plane has caught up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medopt.compression.export import export_onnx
from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.inference.evidence_map import Evidence
from medopt.models import build_model, build_resnet
from medopt.models.channel_widths import Widths, narrow_model, take_channels
from medopt.models.cost import multiply_adds, study_cost
from medopt.models.geometry import Axes, choose_stem, fit_geometry, isotropic, resolve_geometry
from medopt.models.resnet import network_note
from medopt.models.starts.adapt import fit_start
from medopt.models.starts.files import read_start, write_start
from medopt.models.starts.layouts import recognise
from medopt.pipeline.start import resolve_start
from medopt.transforms.restore import stride_of

THICK, STEP = (20, 64, 64), (5.0, 0.5, 0.5)
AUTO: dict[str, Any] = {"strides": "auto", "kernels": "auto"}


def thick(**given: Any) -> Any:
    given = {"width": 0.125, "size": THICK, "spacing": STEP, **AUTO, "zero_init_residual": False, **given}
    return build_resnet(26, spatial_dims=3, **given).eval()


def test_slices_are_halved_when_the_plane_has_caught_up() -> None:
    found = fit_geometry((20, 320, 320), (5, 0.5, 0.5))
    assert found.stem == "large"
    assert [step[0] for step in found.strides] == [1, 1, 1, 2, 2]  # 0.5 -> 4 mm in the plane first
    assert [step[1:] for step in found.strides] == [(2, 2)] * 5
    assert found.kernels == ((1, 7, 7), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_thick_axis_may_be_any(axis: int) -> None:
    size, step = [128, 128, 128], [1.0, 1.0, 1.0]
    size[axis], step[axis] = 24, 6.0
    found = fit_geometry(size, step)
    assert [s[axis] for s in found.strides][:2] == [1, 1] and found.kernels[0][axis] == 1


@pytest.mark.parametrize("size", [(64, 64, 64), (96, 96, 96), (200, 200, 200), (28, 28)])
def test_even_volumes_have_the_published_network(size: tuple[int, ...]) -> None:
    found = fit_geometry(size, [1.0] * len(size))
    stem = "small" if size[0] < 48 else "medium" if size[0] < 96 else "large"
    assert found == isotropic(stem, len(size)) and found.settings()["strides"] == "isotropic"


def test_a_small_volume_is_halved_early_and_no_more_often() -> None:
    found = fit_geometry((40, 40, 40), (1, 1, 1))
    assert found.stem == "medium" and np.prod(found.strides, axis=0).tolist() == [8, 8, 8]


def test_no_axis_is_halved_below_three_places() -> None:
    for size in ((5, 200, 200), (12, 256, 256), (40, 52, 36), (3, 3, 3)):
        for step in ((1, 1, 1), (9, 1, 1)):
            last = np.divide(size, np.prod(fit_geometry(size, step).strides, axis=0))
            assert all(left >= min(3, side) for left, side in zip(last, size, strict=True))


def test_one_rule_decides_stem_and_cost_in_plan_and_model(tiny_study: Callable[..., Study]) -> None:
    prepare = {"size": [20, 320, 320], "spacing_mm": [5, 0.5, 0.5]}
    by_itself = study_cost(tiny_study(prepare=prepare, model={"stem": "auto", "width": 0.125, **AUTO}))
    settings = fit_geometry((20, 320, 320), (5, 0.5, 0.5)).settings()
    planned = study_cost(tiny_study(prepare=prepare, model={"width": 0.125, **settings}))
    halved = study_cost(tiny_study(prepare=prepare, model={"stem": "auto", "width": 0.125}))
    assert planned == by_itself
    assert by_itself.multiply_adds < 0.2 * halved.multiply_adds


def test_the_cost_without_computing_is_that_of_a_pass(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(prepare={"size": [8, 32, 32], "spacing_mm": [5, 1, 1]}, model={"stem": "auto", **AUTO})
    cost = study_cost(study)
    assert cost.multiply_adds == multiply_adds(build_model(study), 1, [8, 32, 32]) > 0
    assert cost.kept_values > 8 * 32 * 32


def test_the_network_has_the_strides_and_kernels_that_were_fitted() -> None:
    network, fitted = thick(), fit_geometry(THICK, STEP)
    maps = network.features(torch.rand(2, 1, *THICK))
    assert len(maps) == 9 and network(torch.rand(2, 1, *THICK)).shape == (2, 1)
    assert (network.conv1.kernel_size, network.conv1.stride) == (fitted.kernels[0], fitted.strides[0])
    for number, name in enumerate(("layer1", "layer2", "layer3", "layer4")):
        first = getattr(network, name)[0].spatial
        assert first.kernel_size == fitted.kernels[1 + number]
        assert first.stride == (fitted.strides[1 + number] if number else (1, 1, 1))


@pytest.mark.parametrize("variant", ["pooled", "v1", "v1.5", "d", "dilated", "caffe"])
@pytest.mark.parametrize("stem", ["small", "large", "deep", "full", "slices"])
def test_every_variant_and_stem_takes_them(variant: Any, stem: Any) -> None:
    network = thick(variant=variant, stem=stem, size=(8, 64, 64), width=0.0625)
    shapes: list[tuple[int, ...]] = []
    network.layer4.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[2:])))
    network(torch.rand(1, 1, 8, 64, 64))
    assert shapes[0][0] >= 3 and shapes[0][1] < 64


def test_strides_change_no_weight_and_kernels_do() -> None:
    usual = build_resnet(26, spatial_dims=3, width=0.125, stem="medium").state_dict()
    strided = thick(stem="medium", kernels="isotropic").state_dict()
    assert {name: value.shape for name, value in usual.items()} == {name: v.shape for name, v in strided.items()}
    assert thick(stem="medium").state_dict()["conv1.weight"].shape[2:] == (1, 3, 3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"strides": [[1, 2]] * 5}, "five lists of 3 numbers"),
        ({"strides": [[1, 2, 2]] * 4}, "five lists of 3 numbers"),
        ({"kernels": [[2, 3, 3]] * 5}, "2 is none of 1, 3, 5, 7"),
        ({"strides": [[1, 2, 4]] * 5}, "4 is none of 1, 2"),
        ({"strides": "thick"}, "give one of isotropic, auto"),
        ({"strides": "auto", "size": None}, "need the size"),
        ({"strides": [[1, 2, 2]] * 5, "stem": "medium"}, "has no pooling"),
        ({"strides": [[1, 2, 2]] * 5, "variant": "dilated"}, "halve nothing"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_resnet(**{"spatial_dims": 3, "size": THICK, "stem": "large", **wrong})


def test_a_study_refuses_lists_of_other_axes(tiny_study: Callable[..., Study]) -> None:
    with pytest.raises(ValueError, match=r"model.strides has lists of 3 numbers; the network has 2 axes"):
        tiny_study(model={"strides": [[1, 2, 2]] * 5})


def test_lists_without_a_stem_have_the_one_that_they_need() -> None:
    def stem(*strides: list[int]) -> str:
        return resolve_geometry(3, "auto", strides, "isotropic", THICK, None).stem

    plane, none = [1, 2, 2], [1, 1, 1]
    assert stem(plane, plane, plane, plane, plane) == "large"
    assert stem(plane, none, plane, plane, plane) == "medium"
    assert stem(none, none, plane, plane, plane) == "small"


def test_a_training_from_before_keeps_its_key(tiny_study: Callable[..., Study]) -> None:
    assert tiny_study().training_digest() == tiny_study(model={"strides": "isotropic"}).training_digest()
    assert tiny_study().training_digest() != tiny_study(model={"strides": "auto"}).training_digest()


@pytest.mark.parametrize("variant", ["pooled", "v1.5", "d"])
def test_a_file_of_weights_says_strides_and_kernels(variant: Any, tmp_path: Path) -> None:
    network, geometry = thick(variant=variant), fit_geometry(THICK, STEP)
    start = recognise(network.state_dict(), "w", {"variant": variant, **geometry.settings()})
    write_start(tmp_path / "start.safetensors", start)
    again = read_start(tmp_path / "start.safetensors")
    assert again.architecture() == start.architecture()
    assert again.architecture()["kernels"] == geometry.settings()["kernels"] != "isotropic"
    built: Any = build_resnet(**again.architecture(), spatial_dims=3).eval()
    built.load_state_dict(fit_start(again, built, "w").state)
    image = torch.rand(1, 1, *THICK)
    torch.testing.assert_close(built.features(image), network.features(image))
    with pytest.raises(ConfigError, match="does not fill the network"):
        fit_start(again, build_resnet(**again.architecture() | {"kernels": "isotropic"}, spatial_dims=3), "w")


def test_an_images_start_becomes_as_deep_as_the_kernels() -> None:
    flat = recognise(build_resnet(26, width=0.125, stem="medium", variant="v1.5").state_dict(), "w")
    network = thick(stem="medium", variant="v1.5")
    loaded = fit_start(flat, network, "w")
    assert loaded.share == 1 and loaded.state["conv1.weight"].shape[2:] == (1, 3, 3)


def test_a_pruned_network_keeps_its_geometry(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(prepare={"size": [8, 32, 32], "spacing_mm": [5, 1, 1]}, model={"stem": "auto", **AUTO})
    model = build_model(study)
    narrow = take_channels(model, {"layer1.0.spatial": torch.arange(2)})
    again: Any = narrow_model(study, Widths.of(narrow))
    again.load_state_dict(narrow.state_dict())
    image = torch.rand(1, 1, 8, 32, 32)
    torch.testing.assert_close(again.eval()(image), narrow.eval()(image))
    assert again.layer1[0].spatial.kernel_size == build_model(study).layer1[0].spatial.kernel_size  # type: ignore[index]
    assert network_note(study)["kernels"] != "isotropic"


@pytest.mark.parametrize(("head", "variant"), [("last", "pooled"), ("every_depth", "v1.5")])
def test_its_onnx_is_a_start_and_shows_its_evidence(head: Any, variant: Any, tmp_path: Path) -> None:
    network = thick(variant=variant, head=head)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr, operator]
    path = tmp_path / "model.onnx"
    image = np.random.default_rng(0).random((1, *THICK), np.float32)
    export_onnx(network, image[None], path, 18)
    start = read_start(path)
    geometry = fit_geometry(THICK, STEP)
    built: Any = build_resnet(**start.architecture(), spatial_dims=3, head=head).eval()
    built.load_state_dict(fit_start(start, built, "w").state)
    batch = torch.from_numpy(image[None])
    torch.testing.assert_close(built.features(batch), network.features(batch), atol=1e-4, rtol=1e-3)
    settings = {key: start.architecture()[key] for key in ("stem", "strides", "kernels")}
    assert settings == geometry.settings()
    evidence = Evidence.open(path)
    assert evidence is not None
    places = evidence.places(image)
    assert places is not None
    for side, count in zip(THICK, places.shape[1:], strict=True):
        assert 0 < count <= side and -(-side // stride_of(side, count)) == count


@pytest.mark.parametrize("pixels", [9, 17, 20, 33, 40, 65, 224, 225, 320])
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_a_stride_follows_from_pixels_and_places(pixels: int, stride: int) -> None:
    places = -(-pixels // stride)
    assert places == 1 or stride_of(pixels, places) == stride


def test_a_start_decides_the_kernels_and_the_study_may_halve_otherwise(tmp_path: Path) -> None:
    geometry, path = fit_geometry(THICK, STEP), tmp_path / "start.safetensors"
    write_start(path, recognise(thick().state_dict(), "w", {"variant": "pooled", **geometry.settings()}))

    def resolved(**model: Any) -> Study:
        prepare = {"size": [20, 64, 64], "spacing_mm": [5, 0.5, 0.5]}
        data = {"manifest": "m.csv", "labels": ["no", "yes"]}
        raw = {"name": "s", "question": "?", "data": data, "prepare": prepare, "model": {"start": str(path), **model}}
        return resolve_start(Study.model_validate(raw), tmp_path)

    settings, plain = geometry.settings(), resolved()
    assert (plain.model.strides, plain.model.kernels) == (settings["strides"], settings["kernels"])
    assert resolve_start(plain, tmp_path) == plain
    otherwise = [[1, 2, 2], [1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2]]
    chosen = resolved(strides=otherwise, kernels="auto")
    assert (chosen.model.strides, chosen.model.kernels) == (otherwise, settings["kernels"])
    fit_start(read_start(path), build_model(chosen), "w")
    with pytest.raises(ConfigError, match=r"model\.kernels is isotropic, but the start"):
        resolved(kernels="isotropic")


ONE, TWO = (1, 1, 1), (2, 2, 2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("stem", "kernel", "stride", "pooling"),
    [
        ("small", (3, 3, 3), ONE, ONE),
        ("medium", (3, 3, 3), TWO, ONE),
        ("large", (7, 7, 7), TWO, TWO),
        ("deep", (3, 3, 3), TWO, TWO),
        ("full", (7, 7, 7), ONE, TWO),
        ("slices", (3, 7, 7), (1, 2, 2), TWO),
    ],
)
def test_each_stem_by_itself(dims: int, stem: str, kernel: Axes, stride: Axes, pooling: Axes) -> None:
    found = isotropic(stem, dims)
    assert found.strides == (stride[-dims:], pooling[-dims:], *[(2,) * dims] * 3)
    assert found.kernels == (kernel[-dims:], *[(3,) * dims] * 4)


def test_the_stem_follows_the_size() -> None:
    sides = [choose_stem([side, 500]) for side in (47, 48, 95, 96)]
    assert sides == ["small", "medium", "medium", "large"]
    assert choose_stem(None) == choose_stem([]) == "large"
    fitted = [fit_geometry([side] * dims).stem for dims in (2, 3) for side in (47, 48, 96)]
    assert fitted == ["small", "medium", "large", "medium", "medium", "large"]  # a volume is halved at once
    assert fit_geometry([20, 96]).stem == "large"  # the longest side, of which most places are left


def test_an_axis_twice_as_thick_waits_and_one_of_five_places_is_never_halved() -> None:
    """Exactly at the limits: a step of twice the finest, and 6 places, which leave 3."""
    assert [s[0] for s in fit_geometry((6, 64, 64), (2, 1, 1)).strides] == [1, 1, 2, 1, 1]
    assert [s[0] for s in fit_geometry((6, 64, 64), (1.99, 1, 1)).strides] == [2, 1, 1, 1, 1]
    assert [s[0] for s in fit_geometry((5, 64, 64), (1, 1, 1)).strides] == [1] * 5
    assert [k[0] for k in fit_geometry((6, 64, 64), (2, 1, 1)).kernels] == [1, 3, 3, 3, 3]
    assert [k[0] for k in fit_geometry((6, 64, 64), (1.99, 1, 1)).kernels] == [3] * 5
    assert fit_geometry((12, 12, 12)).strides == (TWO, ONE, TWO, ONE, ONE)
    # an axis that has mixed goes on to, also where it is halved alone because the others have no places left
    assert [k[0] for k in fit_geometry((64, 12, 12), (4, 1, 1)).kernels] == [1, 1, 3, 3, 3]


def test_without_a_spacing_pixels_are_square_and_volumes_equally_long() -> None:
    assert fit_geometry((64, 20)).strides == ((2, 2), (1, 1), (2, 2), (2, 1), (2, 1))
    assert fit_geometry((64, 20), (1, 1)) == fit_geometry((64, 20))
    assert fit_geometry((40, 80, 160)) == fit_geometry((40, 80, 160), (4, 2, 1)) != fit_geometry((40, 80, 160), ONE)
    assert fit_geometry((40, 80, 160)).strides == ((1, 1, 2), (1, 2, 2), TWO, TWO, TWO)


def test_what_is_said_is_taken_and_what_is_auto_is_fitted() -> None:
    fitted, own = fit_geometry(THICK, STEP, "large"), isotropic("large", 3)
    for strides, kernels in (("auto", "isotropic"), ("isotropic", "auto"), ("auto", "auto")):
        found = resolve_geometry(3, "large", strides, kernels, THICK, STEP)
        assert found.strides == (fitted if strides == "auto" else own).strides
        assert found.kernels == (fitted if kernels == "auto" else own).kernels
        assert found.settings()["strides"] == (
            "isotropic" if strides == "isotropic" else [list(s) for s in found.strides]
        )
        assert found.settings()["kernels"] == (
            "isotropic" if kernels == "isotropic" else [list(k) for k in found.kernels]
        )
    assert resolve_geometry(3, "auto", "auto", "auto", THICK, STEP).stem == "medium"
    assert resolve_geometry(3, "auto", "isotropic", "isotropic", None, None).stem == "large"
    assert (
        resolve_geometry(3, "auto", "isotropic", "isotropic", (20, 64, 64), None).stem == "small"
    )  # its shortest side
    sides = [[1, 3, 5], [7, 7, 7], [3, 3, 3], [1, 1, 1], [3, 3, 3]]
    assert resolve_geometry(3, "large", "isotropic", sides, None, None).kernels == tuple(map(tuple, sides))


def test_the_last_two_stages_of_a_dilated_network_halve_nothing() -> None:
    thick = resolve_geometry(3, "large", "auto", "auto", THICK, STEP, dilated=True)
    assert thick.strides == (*fit_geometry(THICK, STEP, "large").strides[:3], ONE, ONE)
    assert resolve_geometry(3, "large", "isotropic", "isotropic", THICK, STEP, dilated=True) == isotropic("large", 3)
    lists = [[1, 2, 2], [1, 2, 2], [1, 2, 2], [1, 1, 1], [1, 1, 1]]
    assert resolve_geometry(3, "large", lists, "auto", THICK, STEP, dilated=True).strides == tuple(map(tuple, lists))
    for stage in (3, 4):
        wrong = [[*step] for step in lists]
        wrong[stage] = [1, 1, 2]
        with pytest.raises(ConfigError, match="layer3 and layer4 of the variant dilated halve nothing"):
            resolve_geometry(3, "large", wrong, "auto", THICK, STEP, dilated=True)
        assert resolve_geometry(3, "large", wrong, "auto", THICK, STEP).strides[stage] == (1, 1, 2)
