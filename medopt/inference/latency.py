"""How long one image takes: interleaved runs, medians. A ratio within one call is worth more than either time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

PAUSE = 0.005  # seconds in which spinning threads come to rest


def measure_latency(
    runs: Mapping[str, Callable[[], Any]], rounds: int = 30, warmup: int = 3, seconds: float = 10.0
) -> dict[str, float]:
    """Median milliseconds of each callable, taken in turn (A B C A B C ...), so that a slow moment hits all alike.

    Threads of an engine spin for a while after its work, and take time from whoever comes next (a factor of ten was
    seen): so there is a pause before each, and of two calls the second counts. Stops after `rounds`, or after `seconds`
    and at least five rounds.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(rounds):
        if done >= 5 and time.perf_counter() - started > seconds:
            break
        for name, run in runs.items():
            time.sleep(PAUSE)
            run()
            begin = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: median(values) for name, values in times.items()}
