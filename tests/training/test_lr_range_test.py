"""The learning-rate range test: what it tries, when it ends, and what it suggests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.training.job import PreparedSplit
from medopt.training.lr_range_test import RangeTest, judge, range_test


@pytest.fixture(scope="module")
def tried(
    tmp_path_factory: pytest.TempPathFactory, tiny_study: Callable[..., Study], tiny_set: Callable[..., PreparedSplit]
) -> Callable[..., RangeTest]:
    folder = tmp_path_factory.mktemp("range")
    prepared = tiny_set(folder, tiny_study(), 40)

    def run(steps: int = 40, high: float = 100.0, low: float = 1e-4, **training: object) -> RangeTest:
        study = tiny_study(training={"batch_size": 8, **training}, augment={"probability": 0.2, "flip": []})
        return range_test(study, prepared.cases, prepared.files, low=low, high=high, steps=steps)

    return run


@pytest.fixture(scope="module")
def sgd(tried: Callable[..., RangeTest]) -> RangeTest:
    return tried(optimizer={"name": "sgd", "lr": "auto", "weight_decay": 0.0}, clip_norm=0)


def test_it_ends_when_the_loss_explodes_and_suggests_less_than_what_diverged(sgd: RangeTest) -> None:
    assert sgd.exploded is not None and sgd.exploded == sgd.rates[-1] < 100
    assert sgd.suggestion is not None and sgd.suggestion <= sgd.exploded / 10 and sgd.suggestion < sgd.turn
    assert f"turns at {sgd.turn:.1e}" in sgd.reason and f"explodes at {sgd.exploded:.1e}" in sgd.reason


def test_the_rates_rise_by_the_same_factor(sgd: RangeTest) -> None:
    factors = np.diff(np.log(sgd.rates))
    np.testing.assert_allclose(factors, math.log(100 / 1e-4) / 39, rtol=1e-9)
    assert len(sgd.rates) == len(sgd.losses) == len(sgd.smoothed) == len(sgd.slope)


def test_the_suggested_rate_trains_and_the_exploded_one_does_not(
    tried: Callable[..., RangeTest], sgd: RangeTest
) -> None:
    def end(rate: float) -> float:
        optimizer = {"name": "sgd", "lr": 1.0, "weight_decay": 0.0}
        found = tried(low=rate, high=rate * 1.0001, steps=30, optimizer=optimizer, clip_norm=0)
        return float(np.mean(found.losses[-8:])) if len(found.losses) == 30 else math.inf

    assert sgd.suggestion is not None and sgd.exploded is not None
    assert end(sgd.suggestion) < 0.8 * sgd.smoothed[0] < end(sgd.exploded)


def test_the_same_study_gives_the_same_answer(tried: Callable[..., RangeTest]) -> None:
    first, again = (tried(steps=12, high=1e-2) for _ in range(2))
    assert first.losses == again.losses and first.suggestion == again.suggestion and first.exploded is None


def test_accumulated_micro_batches_are_steps_of_the_same_size(tried: Callable[..., RangeTest]) -> None:
    assert len(tried(steps=10, high=1e-3, micro_batch=4).losses) == 10


def curve(rates: np.ndarray, falls: float, turn: float) -> np.ndarray:
    """A loss that falls by a share up to a rate and rises fast behind it."""
    x = np.log10(rates / turn)
    return np.where(x < 0, 1 - falls / (1 + np.exp(-4 * (x + 1))), 1 - falls + 2 * x**2)


def test_the_suggestion_is_half_the_turn() -> None:
    rates = np.geomspace(1e-5, 10, 100)
    found = judge(rates.tolist(), curve(rates, 0.6, 1e-2).tolist(), None)
    assert 0.5e-2 < found.turn < 2e-2 and found.suggestion == pytest.approx(found.turn / 2, rel=0.05)


def test_noise_moves_it_little() -> None:
    rates = np.geomspace(1e-5, 10, 100)
    noise = np.random.default_rng(0).normal(0, 0.08, (20, 100))
    clean = judge(rates.tolist(), curve(rates, 0.6, 1e-2).tolist(), None).suggestion
    noisy = [judge(rates.tolist(), (curve(rates, 0.6, 1e-2) + one).tolist(), None).suggestion for one in noise]
    assert clean is not None and all(clean / 3 < (one or 0) < clean * 3 for one in noisy)


def test_a_suggestion_stays_a_factor_of_ten_below_what_exploded() -> None:
    rates = np.geomspace(1e-5, 1e-2, 60)
    losses = np.linspace(1, 0.4, 60)  # falls until it explodes at once
    losses[-1] = math.inf
    found = judge(rates.tolist(), losses.tolist(), float(rates[-1]))
    assert found.suggestion == pytest.approx(1e-3) and "A tenth of the rate that exploded." in found.reason
    assert json.loads(json.dumps(found.json_values(), allow_nan=False))["losses"][-1] is None


@pytest.mark.parametrize("losses", [[0.7] * 40, np.linspace(0.7, 2, 40).tolist(), [math.nan] * 40])
def test_a_loss_that_never_fell_suggests_nothing_and_says_so(losses: list[float]) -> None:
    found = judge(np.geomspace(1e-5, 1, 40).tolist(), losses, None)
    assert found.suggestion is None and found.reason.startswith("No rate is suggested")
    json.dumps(found.json_values(), allow_nan=False)


@pytest.mark.parametrize("wrong", [{"low": 1.0, "high": 0.1}, {"low": 0.0}, {"steps": 3}])
def test_rates_that_make_no_sense(tried: Callable[..., RangeTest], wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="from a lower to a higher rate in at least 10 steps"):
        tried(**wrong)
