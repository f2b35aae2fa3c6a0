"""Tiles of an image and slices of a volume: how they are cut, pooled and computed again in the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medopt.compression.prune import gradient_scores, prune_network
from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.models import build_model
from medopt.models.channel_widths import Widths, channel_groups, narrow_model
from medopt.models.cost import study_cost
from medopt.models.resnet import BottleneckResNet
from medopt.models.starts.adapt import fit_start
from medopt.models.starts.layouts import recognise
from medopt.models.tiles import Tiling
from medopt.training.fine_tuning import freeze

Make = Callable[..., Study]
TILED = {"pooling": "mean", "tile": [32, 32]}


def tiled(make: Make, size: list[int], **model: Any) -> Study:
    return make(prepare={"size": size}, model={"depth": 14, "zero_init_residual": False, "stem": "medium"} | model)


def network(study: Study, uneven: bool = True) -> BottleneckResNet:
    """The study's network, its statistics settled and its attention as if it had learned."""
    model = build_model(study)
    assert isinstance(model, BottleneckResNet) and model.tiling is not None
    if model.tiling.attention is not None and uneven:
        nn.init.normal_(model.tiling.attention.score.weight, std=3.0, generator=torch.Generator().manual_seed(1))
    seen = study.network_input
    model.train().means(torch.rand(8, seen.channels, *seen.size, generator=torch.Generator().manual_seed(2)), True)
    return model.eval()


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_tiles_lie_row_by_row_and_are_filled_with_black() -> None:
    tiling, image = Tiling("mean", 8, tile=[32, 64]), images(2, 3, 70, 100)
    tiles = tiling.cut(image)
    assert tiles.shape == (2, 3 * 2, 3, 32, 64)
    assert torch.equal(tiles[1, 0], image[1, :, :32, :64])
    assert torch.equal(tiles[0, 3, :, :, :36], image[0, :, 32:64, 64:]) and not tiles[0, 3, :, :, 36:].any()
    assert torch.equal(tiles[0, 4, :, :6], image[0, :, 64:, :64]) and not tiles[0, 4, :, 6:].any()


def test_the_whole_image_shrunk_is_one_tile_more() -> None:
    image = images(2, 1, 96, 64)
    tiles = Tiling("mean", 8, tile=[32, 32], global_view=True).cut(image)
    assert tiles.shape == (2, 7, 1, 32, 32)
    torch.testing.assert_close(tiles[0, 6, 0, 5, 7], image[0, 0, 15:18, 14:16].mean())


def test_neighbouring_slices_become_channels() -> None:
    volume = images(2, 2, 7, 8, 8)
    groups = Tiling("mean", 8, slices=3).cut(volume)
    assert groups.shape == (2, 3, 6, 8, 8)
    assert torch.equal(groups[1, 1, 3:], volume[1, 1, 3:6])  # the second channel's slices 3 to 5
    assert torch.equal(groups[0, 2, 0], volume[0, 0, 6]) and not groups[0, 2, 1:3].any()


def test_maps_of_tiles_are_put_together_where_the_tiles_lay() -> None:
    image = images(1, 1, 70, 100)
    tiling = Tiling("mean", 8, tile=[32, 64])
    assert torch.equal(tiling.stitched(tiling.cut(image)[0], (70, 100), lambda tiles: tiles), image)
    volume = images(1, 1, 7, 8, 8)
    first = Tiling("mean", 8, slices=3).stitched(volume[0, 0, ::3, None], (7, 8, 8), lambda slices: slices)
    assert first.shape == (1, 1, 7, 8, 8) and torch.equal(first[0, 0, 5], volume[0, 0, 3])


@pytest.mark.parametrize("pooling", ["mean", "attention", "top_k"])
def test_weights_sum_to_one_and_padding_has_none(pooling: str, tiny_study: Make) -> None:
    model = network(
        tiled(tiny_study, [128, 96], **TILED | {"pooling": pooling} | ({"top_k": 3} if pooling == "top_k" else {}))
    )
    image = images(3, 1, 128, 96)
    image[0, :, 64:] = 0  # two rows of tiles are padding
    image[1, :, 32:64] = 0  # black in the midst of the scan counts, as augmentation may change it
    image[2] = 0
    assert model.tiling is not None
    with torch.no_grad():
        weights = model.tiling.read(image, model, False).weights
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert not weights[0, 6:].any()
    if pooling == "top_k":
        assert (weights > 0).sum(1).tolist() == [3, 3, 3]
    else:
        assert (weights > 0).sum(1).tolist() == [6, 12, 12]
    if pooling == "attention":
        assert weights[1].std() > 1e-4
    if pooling == "mean":
        torch.testing.assert_close(weights[1], torch.full((12,), 1 / 12))


def test_masks_of_missing_images_are_no_scan(tiny_study: Make) -> None:
    prepare = {"size": [64, 96], "channels": ["t1", "t2"], "missing_channel": "zeros"}
    model = network(tiny_study(prepare=prepare, model=TILED | {"depth": 14}))
    image = torch.cat([images(1, 2, 64, 96), torch.ones(1, 2, 64, 96)], 1)
    image[:, :2, :, 32:] = 0
    assert model.tiling is not None
    with torch.no_grad():
        weights = model.tiling.read(image, model, False).weights
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0, 0, 0.5, 0, 0]]))


def test_attention_begins_as_the_mean_and_learns(tiny_study: Make) -> None:
    study = tiled(tiny_study, [64, 64], **TILED | {"pooling": "attention"})
    model, plain = network(study, uneven=False), network(tiled(tiny_study, [64, 64], **TILED))
    model.load_state_dict(plain.state_dict(), strict=False)
    image = images(2, 1, 64, 64)
    torch.testing.assert_close(model(image), plain(image))
    model.train()(image).sum().backward()
    assert model.tiling is not None and model.tiling.attention is not None
    assert model.tiling.attention.score.weight.grad is not None and model.tiling.attention.score.weight.grad.any()


def test_the_best_tiles_answer(tiny_study: Make) -> None:
    model = network(tiled(tiny_study, [64, 64], **TILED | {"pooling": "top_k", "top_k": 2}))
    image = images(2, 1, 64, 64) * torch.tensor([0.2, 1.0])[:, None, None, None]
    image[:, :, :32, :32] *= 0.1
    assert model.tiling is not None and model.fc is not None
    with torch.no_grad():
        each = model.fc(model.means(model.tiling.cut(image).flatten(0, 1), False)[0]).view(2, 4)
        torch.testing.assert_close(model(image)[:, 0], each.topk(2, 1).values.mean(1))
    assert each.std(1).min() > 1e-4


KINDS: list[tuple[list[int], dict[str, Any]]] = [
    ([96, 80], {"pooling": "attention", "tile": [32, 32], "global_view": True}),
    ([96, 80], {"pooling": "mean", "tile": [32, 32], "head": "every_depth"}),
    ([96, 80], {"pooling": "top_k", "tile": [32, 32], "top_k": 2}),
    ([9, 32, 40], {"pooling": "attention", "slices": 2}),
]


@pytest.mark.parametrize(("size", "model"), KINDS)
def test_a_few_at_once_give_the_same_answers_and_gradients(
    size: list[int], model: dict[str, Any], tiny_study: Make
) -> None:
    whole = network(tiled(tiny_study, size, **model))
    parts = copy.deepcopy(whole)
    assert whole.tiling is not None and parts.tiling is not None
    whole.tiling.at_once, parts.tiling.at_once = None, 3
    image = images(2, 1, *size)
    image[1, ..., 40:] = 0
    with torch.no_grad():
        torch.testing.assert_close(whole(image), parts(image))
    answers = [net(image) for net in (whole, parts)]  # statistics are held, so that batches do not matter
    torch.testing.assert_close(*answers)
    for answer in answers:
        (answer * torch.tensor([[1.0], [-2.0]])).sum().backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.grad is None or not name.endswith("weight"):
            continue
        assert other.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert any(one.grad is not None and one.grad.abs().max() > 1e-4 for one in parts.parameters())


def test_the_backward_pass_sees_the_statistics_of_the_forward_pass_and_counts_them_once(tiny_study: Make) -> None:
    """In training mode: computed again or kept, the same gradients and the same running statistics."""
    again = network(tiled(tiny_study, [96, 96], **TILED | {"pooling": "attention"})).train()
    kept = copy.deepcopy(again)
    for net in (again, kept):
        assert net.tiling is not None
        net.tiling.at_once = 4
    assert kept.tiling is not None
    kept.tiling._few = lambda tiles, encoder, every: encoder.means(tiles, every)  # type: ignore[method-assign]
    image = images(2, 1, 96, 96)
    for net in (again, kept):
        net(image).square().sum().backward()
    before = int(network(tiled(tiny_study, [96, 96], **TILED)).bn1.num_batches_tracked)
    assert int(again.bn1.num_batches_tracked) == int(kept.bn1.num_batches_tracked) == before + 5  # 18 tiles, 4 at once
    torch.testing.assert_close(again.bn1.running_var, kept.bn1.running_var, rtol=0, atol=0)
    for one, other in zip(again.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_what_is_kept_does_not_grow_with_the_image(tiny_study: Make) -> None:
    model = {"pooling": "mean", "tile": [32, 32], "tiles_at_once": 4}
    small, large = (study_cost(tiled(tiny_study, [side, side], **model)) for side in (64, 256))
    alone = study_cost(tiled(tiny_study, [32, 32]))
    assert large.multiply_adds > 60 * alone.multiply_adds and large.multiply_adds > 15 * small.multiply_adds
    assert large.kept_values == pytest.approx(small.kept_values, abs=10)
    assert large.kept_values <= 4.1 * alone.kept_values

    kept = 0

    def pack(value: Tensor) -> Tensor:
        nonlocal kept
        kept += value.numel()
        return value

    net = network(tiled(tiny_study, [256, 256], **model)).train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        net(images(1, 1, 256, 256))
    assert kept < large.kept_values  # the tiles and their features, no maps


def test_a_start_fills_the_encoder_and_its_attention_is_new(tiny_study: Make) -> None:
    plain, study = tiled(tiny_study, [32, 32]), tiled(tiny_study, [64, 96], **TILED | {"pooling": "attention"})
    source = build_model(plain)
    start = recognise({name: value.clone() for name, value in source.state_dict().items()}, "a file")
    loaded = fit_start(start, build_model(study), "a file")
    assert loaded.share == 1
    assert {fate.fate for fate in loaded.fates if fate.name.startswith("tiling.")} == {"new"}
    torch.testing.assert_close(loaded.state["layer3.0.spatial.weight"], source.state_dict()["layer3.0.spatial.weight"])
    again = recognise(dict(build_model(study).state_dict()), "a run's file")  # and a network of tiles is a start
    assert any(name.startswith("tiling.") for name in again.left_out) and "layer4.0.expand.weight" in again.tensors


def test_the_attention_is_tuned_with_the_last_layer(tiny_study: Make) -> None:
    study = tiled(tiny_study, [64, 64], **TILED | {"pooling": "attention"})
    model, tune = build_model(study), study.training.fine_tune.model_copy(update={"freeze": "layer3"})
    freeze(model, tune)
    trained = {name.partition(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"layer4", "fc", "tiling"}


def test_channels_go_from_the_attention_too(tiny_study: Make) -> None:
    study = tiled(tiny_study, [64, 96], **TILED | {"pooling": "attention", "tiles_at_once": 3})
    model, image = network(study), images(3, 1, 64, 96)
    goals = torch.tensor([[1.0], [0.0], [1.0]])

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return (logits - target).square()[:, 0]

    scores = gradient_scores(model, [(image, goals)], loss)
    single = [gradient_scores(model, [pair], loss) for pair in zip(image.split(1), goals.split(1), strict=True)]
    torch.testing.assert_close(scores["layer3"].square(), sum(one["layer3"].square() for one in single) / 3)
    narrow = prune_network(model, [64, 96], 0.5, scores)
    assert isinstance(narrow, BottleneckResNet) and narrow.tiling is not None and narrow.tiling.attention is not None
    assert narrow.tiling.attention.gate.in_features == Widths.of(narrow).residual[-1] < Widths.of(model).residual[-1]
    assert narrow(image).shape == (3, 1)
    loaded = narrow_model(study, Widths.of(narrow))
    loaded.load_state_dict(narrow.state_dict())
    torch.testing.assert_close(loaded.eval()(image), narrow(image))
    assert {"tiling.attention.value", "tiling.attention.gate"} <= {r for g in channel_groups(model) for r in g.readers}


def test_a_mirrored_network_of_tiles_answers_the_mean(tiny_study: Make) -> None:
    model, image = network(tiled(tiny_study, [64, 64], **TILED | {"mirrored": True})), images(2, 1, 64, 64)
    torch.testing.assert_close(model(image), model(image.flip(-1)))
    model.mirrored = False
    assert not torch.allclose(model(image), model(image.flip(-1)))


def test_a_stem_of_volumes_is_not_one_of_slices(tiny_study: Make) -> None:
    with pytest.raises(ConfigError, match="stem is 'slices'"):
        build_model(tiled(tiny_study, [8, 32, 32], pooling="mean", stem="slices"))
