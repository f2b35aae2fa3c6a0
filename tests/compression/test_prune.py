from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medopt.compression.prune import gradient_scores, multiply_adds, prune_network, weight_scores
from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.models import build_model
from medopt.models.channel_widths import Widths, channel_groups, module_of, take_channels


def loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def batches(models: SimpleNamespace, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.from_numpy(np.stack([np.load(path) for path in models.train.files]))
    targets = torch.tensor([[float(case.label[0])] for case in models.train.cases])
    yield from zip(images.split(size), targets.split(size), strict=True)


@pytest.mark.parametrize("size", [[16, 24], [8, 12, 8]])
def test_multiply_adds_are_those_that_torch_counts(tiny_study: Callable[..., Study], size: list[int]) -> None:
    study = tiny_study(prepare={"size": size, "channels": 3}, model={"dropout": 0.1})
    model = build_model(study)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert multiply_adds(model, 3, size) == counter.get_total_flops() / 2
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("width", "size"), [(0.25, [32, 32]), (0.5, [16, 16, 16])])
@pytest.mark.parametrize("remove", [0.3, 0.5, 0.75])
def test_the_share_goes_and_little_more(
    tiny_study: Callable[..., Study], width: float, size: list[int], remove: float
) -> None:
    model = build_model(tiny_study(prepare={"size": size}, model={"width": width, "stem": "small"}))
    narrow = prune_network(model, size, remove)
    gone = 1 - multiply_adds(narrow, 1, size) / multiply_adds(model, 1, size)
    assert remove <= gone < remove + 0.03  # the widths go in steps
    whole, left = Widths.of(model).by_group(), Widths.of(narrow).by_group()
    assert all(max(4, whole[name] / 8) <= left[name] <= whole[name] for name in whole)
    assert all(left[name] % 8 == 0 for name in whole if whole[name] >= 32)
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in model.parameters())


def test_nothing_taken_away_is_the_same_network_to_the_bit(tiny_models: SimpleNamespace) -> None:
    image = next(batches(tiny_models))[0]
    same = prune_network(tiny_models.model, [16, 16], 0.0)
    assert torch.equal(same(image), tiny_models.model(image))


@pytest.mark.parametrize("by", ["weights", "gradient"])
def test_dead_channels_go_first_and_the_logits_stay(tiny_models: SimpleNamespace, by: str) -> None:
    """Of each group every second channel writes nothing and is not read."""
    model = take_channels(tiny_models.model, {})
    with torch.no_grad():
        for group in channel_groups(model):
            for _, norm in group.writers:
                module_of(model, norm).weight[::2] = 0
                module_of(model, norm).bias[::2] = 0
            for name in group.readers:
                module_of(model, name).weight[:, ::2] = 0
    scores = gradient_scores(model, batches(tiny_models), loss) if by == "gradient" else None
    narrow = prune_network(model, [16, 16], 0.6, scores)
    image = next(batches(tiny_models))[0]
    torch.testing.assert_close(narrow(image), model(image), rtol=1e-4, atol=1e-5)


def test_scores_tell_what_a_channel_is_worth(tiny_models: SimpleNamespace) -> None:
    """The loss with each channel of a group silenced in turn, in all layers that write it, ranks them alike."""
    model, group = tiny_models.model, next(g for g in channel_groups(tiny_models.model) if g.name == "layer3")
    assert len(group.writers) == 3  # two blocks and the projection
    scores = gradient_scores(model, batches(tiny_models), loss)[group.name]

    def losses(net: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([loss(net(image), target) for image, target in batches(tiny_models)])

    clean, worse = losses(model), []
    for channel in range(0, len(scores), 5):
        harmed = take_channels(model, {})
        with torch.no_grad():
            for _, norm in group.writers:
                for value in (module_of(harmed, norm).weight, module_of(harmed, norm).bias):
                    value[channel] *= 0.9
        worse.append(float((losses(harmed) - clean).square().mean().sqrt()))
    assert spearmanr(scores[::5], worse).statistic > 0.95
    np.testing.assert_allclose(np.array(worse) / 0.1, scores[::5], rtol=0.5, atol=float(scores.max()) / 20)


def test_scores_leave_no_trace_and_do_not_depend_on_the_batch(tiny_models: SimpleNamespace) -> None:
    model = take_channels(tiny_models.model, {}).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (gradient_scores(model, batches(tiny_models, size), loss) for size in (4, 24))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-6)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_blocks_that_write_nothing_yet_can_be_pruned(tiny_study: Callable[..., Study]) -> None:
    """Their last normalization starts at zero, as training begins."""
    model = build_model(tiny_study(model={"zero_init_residual": True}))
    assert all(score.isfinite().all() for score in weight_scores(model).values())
    narrow = prune_network(model, [16, 16], 0.5)
    assert narrow.eval()(torch.rand(1, 1, 16, 16)).isfinite().all()


def test_steps_end_at_the_floor_of_the_first_network_and_too_much_is_refused(tiny_study: Callable[..., Study]) -> None:
    size = [16, 16]
    model = build_model(tiny_study(model={"width": 0.25, "stem": "small"}))
    whole = Widths.of(model)
    with pytest.raises(ConfigError, match=r"99.9% of the multiply-adds cannot go: 9\d.\d% is the most"):
        prune_network(model, size, 0.999)
    narrow = prune_network(model, size, 0.9)
    with pytest.raises(ConfigError):
        prune_network(narrow, size, 0.9, whole=whole)
    assert min(Widths.of(prune_network(narrow, size, 0.5, whole=whole)).inner[3][0]) >= 16
