"""Latency by interleaved runs and medians. The ratio of two times of one call is more certain than either time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, TypeVar

Key = TypeVar("Key")
PAUSE = 0.002


def measure_latency(
    runs: Mapping[Key, Callable[[], Any]],
    rounds: int = 30,
    warmup: int = 3,
    seconds: float = 10.0,
    min_rounds: int = 5,
    pause: float = PAUSE,
) -> dict[Key, float]:
    """Median milliseconds of each callable, called in turn (A B C A B C ...), so that a slow moment affects all alike.

    Stops after `rounds`, or after `seconds` and at least `min_rounds` rounds. `pause` seconds pass before each call:
    the idle threads of the engine before would still spin, and slow the next one down.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    times: dict[Key, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= min_rounds and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            if pause:
                time.sleep(pause)
            begin = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: median(values) for name, values in times.items()}
