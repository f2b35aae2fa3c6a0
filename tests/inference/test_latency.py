from __future__ import annotations

from collections.abc import Callable

import pytest

from medopt.inference import latency
from medopt.inference.latency import measure_latency


class Clock:
    """Time that passes only while something runs."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def takes(self, name: str, *milliseconds: float) -> Callable[[], None]:
        left = list(milliseconds)

        def run() -> None:
            self.calls.append(name)
            self.now += (left.pop(0) if len(left) > 1 else left[0]) / 1000

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: made.now)
    return made


def test_runs_take_turns_after_warming_up(clock: Clock) -> None:
    found = measure_latency({"a": clock.takes("a", 4), "b": clock.takes("b", 2)}, rounds=6, warmup=2)
    assert found == pytest.approx({"a": 4, "b": 2})
    assert "".join(clock.calls) == "aabb" + "ab" * 6


def test_slow_moments_and_the_first_runs_do_not_count(clock: Clock) -> None:
    found = measure_latency({"a": clock.takes("a", 900, 800, 5, 5, 70, 5, 5)}, rounds=5, warmup=2)
    assert found == pytest.approx({"a": 5})


def test_time_is_bounded_but_five_rounds_are_taken(clock: Clock) -> None:
    measure_latency({"a": clock.takes("a", 60_000)}, rounds=30, warmup=0, seconds=10)
    assert len(clock.calls) == 5
    clock.calls.clear()
    measure_latency({"a": clock.takes("a", 1000)}, rounds=30, warmup=0, seconds=10)
    assert len(clock.calls) == 11
