from __future__ import annotations

import pytest
import torch
from torch import nn

from medopt.training.norm_statistics import EarlyStatistics


def batches(count: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [5 + 0.1 * torch.randn(16, 3, 4, 4, generator=random) for _ in range(count)]


def seen(norm: nn.BatchNorm2d, count: int, begin: int = 0) -> nn.BatchNorm2d:
    statistics = EarlyStatistics(nn.Sequential(norm))
    for images in batches(count)[begin:]:
        statistics.before_batch()
        norm.train()(images)
    return norm


@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_first_batches_count_alike(count: int) -> None:
    norm, images = seen(nn.BatchNorm2d(3), count), batches(count)
    means = torch.stack([one.mean((0, 2, 3)) for one in images]).mean(0)
    variances = torch.stack([one.var((0, 2, 3)) for one in images]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)


def test_after_that_the_momentum_is_torchs() -> None:
    norm = seen(nn.BatchNorm2d(3), 30)
    assert norm.momentum == 0.1
    assert abs(float(norm.running_var.mean()) / 0.01 - 1) < 0.1  # torch alone: 5 times as much


def test_a_network_that_goes_on_does_so_from_where_it_was() -> None:
    whole, parts = seen(nn.BatchNorm2d(3), 12), seen(nn.BatchNorm2d(3), 4)
    resumed = nn.BatchNorm2d(3)
    resumed.load_state_dict(parts.state_dict())
    seen(resumed, 12, begin=4)
    assert torch.equal(whole.running_mean, resumed.running_mean) and torch.equal(whole.running_var, resumed.running_var)


@pytest.mark.parametrize("momentum", [0.0, None])
def test_statistics_that_are_fixed_or_counted_otherwise_are_left_alone(momentum: float | None) -> None:
    assert seen(nn.BatchNorm2d(3, momentum=momentum), 3).momentum == momentum


def test_the_freshest_of_several_decides_how_many_batches_were_seen() -> None:
    """As where a new layer stands behind those of a start."""
    trained = seen(nn.BatchNorm2d(3), 12)
    fresh = nn.BatchNorm2d(3)
    statistics = EarlyStatistics(nn.Sequential(trained, fresh))
    for count in (1, 2, 3):
        statistics.before_batch()
        assert trained.momentum == fresh.momentum == pytest.approx(1 / count)


def test_a_network_without_running_statistics_has_none_to_set() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    EarlyStatistics(network).before_batch()
    assert network[1].running_mean is None
