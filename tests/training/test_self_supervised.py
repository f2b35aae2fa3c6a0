from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medopt.config import Augment, Study
from medopt.training.job import PreparedSplit
from medopt.training.self_supervised import Embedder, TwoViews, ViewSampler, spread_of, vicreg, view_augment


def test_the_loss_of_equal_embeddings_is_its_variance_term() -> None:
    same = torch.ones(8, 4)
    assert vicreg(same, same).item() == pytest.approx(25 * (1 - 1e-2), rel=1e-5)  # the root of 1e-4 is added


def test_the_loss_of_agreeing_uncorrelated_embeddings_is_none() -> None:
    axes = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]])
    assert vicreg(axes, axes).item() == pytest.approx(0, abs=1e-6)


def test_numbers_that_say_the_same_cost() -> None:
    line = torch.tensor([[3.0, 3.0], [-3.0, -3.0], [3.0, 3.0], [-3.0, -3.0]])
    # Each view has covariance 12 twice, squared and over 2 numbers.
    assert vicreg(line, line).item() == pytest.approx(2 * (2 * 144) / 2)


def test_disagreement_costs_25_times_its_square() -> None:
    axes = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]])
    assert vicreg(axes, axes + 2).item() == pytest.approx(25 * 4)


def test_spread_of_embeddings() -> None:
    random = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    wide = spread_of(random)
    assert wide.deviation == pytest.approx(1, abs=0.02)
    assert 25 < wide.rank <= 32
    assert not wide.has_collapsed
    assert spread_of(torch.ones(64, 32) + 1e-4 * random).has_collapsed
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(64, 32)
    assert spread_of(line).rank == pytest.approx(1, abs=0.01)
    assert spread_of(line).has_collapsed


def test_views_are_at_least_as_different_as_the_study_says() -> None:
    strong = view_augment(Augment(rotate_degrees=90, flip=[], shift="mr", gamma=0))
    assert (strong.rotate_degrees, strong.gamma, strong.flip, strong.shift) == (90, 0.4, [], "mr")


def test_views_follow_from_seed_epoch_and_index(
    tmp_path: Path, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> None:
    study = tiny_study()
    files = tiny_set(tmp_path, study, 6).files
    first, second = TwoViews(study, files)[3, 2]
    again, _ = TwoViews(study, files)[3, 2]
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, TwoViews(study, files)[4, 2][0])
    sampler = ViewSampler(study.seed, 6, 4)
    orders = []
    for sampler.epoch in (0, 1, 0):
        (batch,) = sampler  # the incomplete second one is left out
        orders.append([index for _, index in batch])
    assert orders[0] == orders[2] != orders[1]
    assert len(sampler) == 1


def test_embeddings_of_volumes(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study(prepare={"size": [16, 16, 16]})
    assert Embedder(study)(torch.zeros(2, 1, 16, 16, 16)).shape == (2, 512)
