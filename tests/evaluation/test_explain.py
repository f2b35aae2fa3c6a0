"""Grad-CAM: the map is that of the definition, lies where the evidence lies, and depends on the weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from medopt.config import Study
from medopt.core.records import Case
from medopt.evaluation.explain import (
    Explainer,
    check_sanity,
    choose,
    rank_correlation,
    sanity_result,
    scaled,
    similarity,
    stage_of,
)
from medopt.figures.explanations import Explained, explain_figure, joined, nearest_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.metrics.thresholds import OperatingPoint
from medopt.models import build_model, build_resnet
from medopt.pipeline.stages.explain import neighbour_label
from medopt.transforms.display import most_active, overlay


class Halving(nn.Module):
    """Four stages that halve the image and change nothing else; the logit is the mean of what is left."""

    def __init__(self, dims: int, sign: float = 1.0) -> None:
        super().__init__()
        for name in ("layer1", "layer2", "layer3", "layer4"):
            conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 1, 3, stride=2, padding=1, bias=False)
            nn.init.zeros_(conv.weight)
            conv.weight.data[(0, 0, *[1] * dims)] = 1.0
            setattr(self, name, conv)
        self.sign = sign

    def forward(self, image: Tensor) -> Tensor:
        out = image
        for name in ("layer1", "layer2", "layer3", "layer4"):
            out = getattr(self, name)(out)
        return self.sign * out.flatten(1).mean(1, keepdim=True)


@pytest.fixture(scope="module")
def small(tiny_study: Callable[..., Study]) -> SimpleNamespace:
    """A network that has learned nothing yet, and eight images with a blob each."""
    study, random = tiny_study(model={"zero_init_residual": False}), np.random.default_rng(0)
    down, across = np.mgrid[:16, :16]
    places = random.uniform(3, 13, (8, 2))
    images = [np.exp(-((down - y) ** 2 + (across - x) ** 2) / 6)[None].astype(np.float32) for y, x in places]
    return SimpleNamespace(study=study, model=build_model(study).eval(), images=images)


@pytest.mark.parametrize(("size", "at"), [((96, 96), (48, 64)), ((96, 128), (32, 16)), ((96, 96, 128), (32, 64, 48))])
def test_the_map_is_highest_where_the_evidence_lies(size: tuple[int, ...], at: tuple[int, ...]) -> None:
    """The pixel itself, not half a stride beside it."""
    image = np.zeros((1, *size), np.float32)
    image[(0, *at)] = 1.0
    network = Halving(len(size))
    assert stage_of(network, image) == "layer4"
    values = Explainer([network], "layer4").map(image, 0)
    assert values.shape == size
    assert np.unravel_index(int(values.argmax()), size) == at
    assert not Explainer([network], "layer4").map(image, 1).any()  # nothing speaks against
    assert torch.equal(Explainer([Halving(len(size), -1.0)], "layer4").map(image, 1), values)


def test_a_small_image_is_explained_at_an_earlier_stage() -> None:
    assert stage_of(Halving(2), np.zeros((1, 48, 96), np.float32)) == "layer3"
    assert stage_of(Halving(2), np.zeros((1, 8, 8), np.float32)) == "layer1"


def by_hand(network: nn.Module, image: np.ndarray, output: int, stage: str) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2, by autograd, on the stage's own grid."""
    kept: list[Tensor] = []
    handle = dict(network.named_modules())[stage].register_forward_hook(lambda _m, _i, out: kept.append(out))
    logit = network.eval()(torch.from_numpy(image[None]))[0, output]
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    return torch.relu((gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(1))[0].detach()


def test_the_map_is_that_of_the_definition_and_of_an_ensemble_the_mean(small: SimpleNamespace) -> None:
    image, network = small.images[1], small.model
    for stage in ("layer1", "layer2"):
        wanted = by_hand(network, image, 0, stage)
        step = 16 // len(wanted)
        found = Explainer([network], stage).map(image, 0)
        torch.testing.assert_close(found[::step, ::step], wanted, rtol=1e-3, atol=1e-5)
    other = build_model(small.study.model_copy(update={"seed": 5}))
    both = Explainer([network, other], "layer1").map(image, 0)
    torch.testing.assert_close(both, sum(Explainer([one], "layer1").map(image, 0) for one in (network, other)) / 2)


@pytest.mark.parametrize("stage", ["layer1", "layer2", "layer3", "layer4"])
def test_a_head_on_every_depth_counts_where_it_reads(stage: str) -> None:
    """The stage's own part of the head, too, and the last stage, whose output nothing but the head reads."""
    network = build_resnet(26, channels=1, width=0.125, stem="small", head="every_depth", seed=3).eval()
    image = np.random.default_rng(0).random((1, 64, 64)).astype(np.float32)
    wanted = by_hand(network, image, 0, stage)
    found = Explainer([network], stage).map(image, 0)
    step = 64 // len(wanted)
    assert float(wanted.max()) > 0
    torch.testing.assert_close(found[::step, ::step], wanted, rtol=1e-3, atol=1e-5)


def test_a_network_that_answers_for_both_mirror_images_is_explained_for_both(small: SimpleNamespace) -> None:
    network, image = build_model(small.study), small.images[1]
    plain = [Explainer([network], "layer1").map(one, 0) for one in (image, np.ascontiguousarray(image[..., ::-1]))]
    network.mirrored = True
    both = Explainer([network], "layer1").map(image, 0)
    torch.testing.assert_close(both, (plain[0] + plain[1].flip(-1)) / 2)
    assert network.mirrored


def test_maps_depend_on_the_weights(small: SimpleNamespace) -> None:
    before = {key: value.clone() for key, value in small.model.state_dict().items()}
    looked = [(image, index % 2) for index, image in enumerate(small.images)]
    found = check_sanity(small.study, [small.model], looked, "layer1")
    assert 3 <= found.cases <= 8  # a map may be empty
    assert [one.down_to for one in found.drawn_anew] == ["fc", "layer4", "layer3", "layer2", "layer1", "all"]
    assert found.depend and "maps depend on" in found.said
    assert all(torch.equal(value, before[key]) for key, value in small.model.state_dict().items())
    assert not any(one._forward_hooks for one in small.model.modules())
    alike = sanity_result(("fc", "all"), (0.9, 0.9), (0.5, 0.5), 4)
    assert alike.depend is False and "HARDLY DEPEND" in alike.said


def test_empty_maps_say_nothing(small: SimpleNamespace) -> None:
    black = [(np.zeros((1, 96, 96), np.float32), 0)]
    assert check_sanity(small.study, [Halving(2)], black, "layer4").depend is None
    even, slope = np.ones((8, 8), np.float32), np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert rank_correlation(slope, even) == 0 and rank_correlation(slope, slope) == pytest.approx(1)
    assert similarity(slope, slope) == pytest.approx(1) and similarity(slope, slope[::-1]) < 0.5
    assert similarity(np.stack([slope] * 8), np.stack([slope] * 8)) == pytest.approx(1)
    assert not scaled(torch.zeros(3, 3)).any() and scaled(torch.tensor([1.0, 4.0])).max() == 1


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 4), ("multilabel", 3)])
def test_the_surest_errors_and_a_sample_are_chosen(drawn: Callable, task: str, outputs: int) -> None:
    point = OperatingPoint({"binary": 0.5, "multilabel": (0.5,) * 3, "multiclass": None}[task], "fixed")
    scored = CalibratedPredictions(
        drawn(150, outputs, task=task, patients=90, separation=0.5), task, UNCALIBRATED, point
    )
    chosen = choose(scored, 12, seed=3)
    assert chosen == choose(scored, 12, seed=3) and len(chosen) == 12
    patients = [scored.predictions.patient_id[one.row] for one in chosen]
    assert len(set(patients)) == 12
    wrong = scored.decided & ~scored.target
    positives = [one for one in chosen if one.why == "false positive"]
    negatives = [one for one in chosen if one.why == "false negative"]
    assert len(positives) == 4 and all(wrong[one.row, one.output] and one.decided for one in positives)
    assert positives[0].probability == scored.probability[wrong].max()
    assert len(negatives) == (0 if task == "multiclass" else 4)
    assert all(scored.target[one.row, one.output] and not one.decided for one in negatives)
    if negatives:
        missed = ~scored.decided & scored.target
        assert negatives[0].probability == scored.probability[missed].min()
        assert negatives[0].explained(outputs) == outputs + negatives[0].output


def test_pictures_are_drawn_in_the_scans_own_shape(tmp_path) -> None:
    flat = Explained([np.full((60, 40), 0.5, np.float32)], np.zeros((60, 40), np.float32), "case a")
    assert np.allclose(overlay(flat.images[0], flat.map), 0.5)  # no map, no colour
    deep = np.zeros((9, 20, 30), np.float32)
    deep[6, 5:9, 5:9] = 1
    volume = Explained([np.random.default_rng(0).random(deep.shape, np.float32)], deep, "case b")
    image, values = most_active(volume.images[0], volume.map)
    assert np.array_equal(values, deep[6]) and np.array_equal(image, volume.images[0][6])
    case = Explained([volume.images[0], 1 - volume.images[0]], deep, "case c")
    explain_figure([flat, volume, case], tmp_path / "cases.png", caption="words")
    nearest_figure([("case a", [("error", flat.images[0]), ("no, 0.3", deep)])], tmp_path / "nearest.png")
    for name in ("cases", "nearest"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.width > 600


def test_pictures_are_joined_with_a_gap() -> None:
    dark, light = np.zeros((8, 90, 3), np.float32), np.full((8, 90, 3), 0.5, np.float32)
    beside, below = joined([dark, light], 1), joined([dark, light], 0)
    assert beside.shape == (8, 182, 3) and beside[0, :, 0].tolist() == [0] * 90 + [1] * 2 + [0.5] * 90
    assert below.shape == (17, 90, 3) and below[:, 0, 0].tolist() == [0] * 8 + [1] + [0.5] * 8


def test_a_label_that_is_not_known_is_not_called_absent(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(data={"task": "multilabel", "labels": ["mass", "fluid"]})
    labels = [(1, None), (0, 0), (0, None), (None, None), (1, 1)]
    named = [neighbour_label(study, Case("c", "p", "x.png", label, "train")) for label in labels]
    assert named == ["mass", "none", "none known", "none known", "mass;fluid"]
