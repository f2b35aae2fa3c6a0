from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau

from medopt.config import Schedule
from medopt.training.schedules import learning_rate, one_cycle, plateau_drops

STEPS, EPOCHS, BASE = 7, 12, 0.03
TOTAL = STEPS * EPOCHS


def schedule(name: str, **settings: Any) -> Schedule:
    return Schedule.model_validate({"name": name, **settings})


def ours(config: Schedule, steps: Iterable[int] = range(TOTAL)) -> list[float]:
    return [learning_rate(config, BASE, step, STEPS, EPOCHS) for step in steps]


def optimizer() -> Optimizer:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)


def test_cosine_is_torchs() -> None:
    peer = optimizer()
    torchs, expected = CosineAnnealingLR(peer, TOTAL, eta_min=1e-4), []
    for _ in range(TOTAL):
        expected.append(torchs.get_last_lr()[0])
        peer.step()
        torchs.step()
    np.testing.assert_allclose(ours(schedule("cosine", warmup=0, eta_min=1e-4)), expected, rtol=1e-6)


@pytest.mark.parametrize(("t_0", "t_mult"), [(3, 1), (2, 2), (1, 3)])
def test_warm_restarts_are_torchs(t_0: int, t_mult: int) -> None:
    peer = optimizer()
    torchs, expected = CosineAnnealingWarmRestarts(peer, t_0, t_mult, eta_min=1e-4), []
    for step in range(TOTAL):
        torchs.step(step / STEPS)
        expected.append(peer.param_groups[0]["lr"])
    found = ours(schedule("cosine_restarts", t_0=t_0, t_mult=t_mult, eta_min=1e-4))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == found[t_0 * STEPS] == BASE


@pytest.mark.parametrize("rise", [1, 8, 40])
def test_one_cycle_is_torchs(rise: int) -> None:
    peer = optimizer()
    # torch's first phase ends one step before its share of the steps.
    share = {"pct_start": (rise + 1) / TOTAL, "div_factor": 25, "final_div_factor": 1e4, "cycle_momentum": False}
    torchs, expected = OneCycleLR(peer, BASE, total_steps=TOTAL, **share), []
    for _ in range(TOTAL):
        expected.append(torchs.get_last_lr()[0])
        peer.step()
        if len(expected) < TOTAL:
            torchs.step()
    np.testing.assert_allclose(ours(schedule("one_cycle", warmup=rise / TOTAL)), expected, rtol=1e-6)


def test_one_cycle_starts_low_peaks_once_and_ends_near_zero() -> None:
    found = [one_cycle(1.0, step, 101, 0.2) for step in range(101)]
    assert found[0] == pytest.approx(1 / 25) and found[-1] == pytest.approx(1 / 250_000)
    peak = int(np.argmax(found))
    assert max(found) == pytest.approx(1, abs=0.02) and peak in (20, 21)
    assert (np.diff(found[: peak + 1]) > 0).all() and (np.diff(found[peak:]) < 0).all()


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_one_cycle_of_a_few_steps_stays_between_its_bounds(total: int, warmup: float) -> None:
    found = [one_cycle(1.0, step, total, warmup) for step in range(total)]
    assert all(1 / 250_000 <= rate <= 1 for rate in found)


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_warm_up_rises_in_equal_steps_to_the_full_rate(name: str) -> None:
    found = ours(schedule(name, warmup=10 / TOTAL, eta_min=0))
    np.testing.assert_allclose(found[:10], BASE * np.arange(1, 11) / 10, rtol=1e-9)
    assert found[10] == pytest.approx(BASE)
    assert (found[11:] == [BASE] * (TOTAL - 11)) if name == "constant" else (np.diff(found[10:]) < 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_plateau_is_torchs(seed: int) -> None:
    scores = np.random.default_rng(seed).random(40).round(2)
    scores[7] = math.nan
    peer = optimizer()
    config = schedule("plateau", patience=3, factor=0.5, eta_min=1e-3)
    torchs = ReduceLROnPlateau(peer, "max", factor=0.5, patience=2, threshold=0, min_lr=1e-3, eps=0)
    for epoch, score in enumerate(scores):
        torchs.step(score)
        found = learning_rate(config, BASE, 0, STEPS, 40, scores[: epoch + 1].tolist())
        assert found == pytest.approx(peer.param_groups[0]["lr"])
    assert peer.param_groups[0]["lr"] < BASE


def test_the_plateau_counts_from_the_last_fall() -> None:
    assert [plateau_drops([1.0] + [0.5] * count, 2) for count in range(6)] == [0, 0, 1, 1, 2, 2]
    assert plateau_drops([1, 0.5, 2, 0.5, 3, 0.5], 2) == 0
    assert plateau_drops([], 1) == 0


@pytest.mark.parametrize("name", ["constant", "cosine", "cosine_restarts", "one_cycle", "plateau"])
@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (3, 2), (50, 7)])
def test_every_rate_is_positive_and_at_most_the_base(name: str, steps: int, epochs: int) -> None:
    rates = [learning_rate(schedule(name), BASE, step, steps, epochs, [0.5] * 30) for step in range(steps * epochs)]
    assert all(0 < rate <= BASE * (1 + 1e-12) for rate in rates)
