"""The settings of an engine, and the measurement that finds the fastest one for a machine.

Which engine is fastest depends on the network's size and on the processor (VNNI, AMX, AVX2), and a small network may be
slower with all cores than with one. So each setting is measured, in turn, on the machine that will serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medopt.core.records import FloatArray
from medopt.inference.engines import Engine, Mode, open_engine
from medopt.inference.latency import measure_latency

BATCHES = (1, 4, 8, 16)
# Settings within this share of the fastest count as equally fast; then the one with fewer resources is chosen.
EQUAL_SHARE = 0.03


class Setting(BaseModel):
    """An engine, what it is opened for, its threads (0: all cores), and how many images it is given at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    mode: Mode = "latency"
    threads: int = Field(0, ge=0, le=1024)
    batch: int = Field(1, ge=1, le=1024)

    def open(self, path: Path) -> Engine:
        """The engine with an ONNX file loaded; raises ReleaseError."""
        return open_engine(self.engine, path, self.threads, self.mode)


class MeasuredSetting(BaseModel):
    """The median time of one call of a setting, and its images a second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    setting: Setting
    milliseconds: float
    images_per_second: float


class Tuned(BaseModel):
    """The settings chosen for single images and for batches, and all measurements."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency: Setting
    throughput: Setting
    measured: dict[Mode, list[MeasuredSetting]]

    def setting(self, mode: Mode) -> Setting:
        """The setting chosen for `mode`."""
        return self.latency if mode == "latency" else self.throughput


def candidates(engines: Sequence[str], cores: int, sizes: Sequence[int] = BATCHES) -> dict[Mode, list[Setting]]:
    """The settings to measure: one thread and one for each core; one image for latency, batches for throughput.

    OpenVINO runs a batch in two ways, whole or split among its streams; ONNX Runtime whole only.
    """
    threads = sorted({1, cores})
    pairs = [(engine, count) for engine in engines for count in threads]
    alone = [Setting(engine=engine, threads=count) for engine, count in pairs]
    many = [
        Setting(engine=engine, mode=mode, threads=count, batch=size)
        for engine, count in pairs
        for mode in _modes(engine)
        for size in sizes
        if (mode, count, size) != ("throughput", 1, 1) or engine != "openvino"  # one stream of one thread, as latency
    ]
    return {"latency": alone, "throughput": many}


def _modes(engine: str) -> tuple[Mode, ...]:
    return ("latency", "throughput") if engine == "openvino" else ("throughput",)


def run_trial(path: Path, settings: Mapping[Mode, Sequence[Setting]], image: FloatArray, seconds: float) -> Tuned:
    """Measure all settings of a model file in turn and choose one for each goal.

    `image` (C, *size) is repeated to batches; its content does not change the time. `seconds` bounds the time for each
    goal, after three rounds at least. Raises ReleaseError where an engine cannot load the file.
    """
    measured: dict[Mode, list[MeasuredSetting]] = {}
    for goal, tried in settings.items():
        engines = {key: open_engine(key[0], path, key[2], key[1]) for key in dict.fromkeys(map(_engine_key, tried))}
        runs = {setting: _call(engines[_engine_key(setting)], image, setting.batch) for setting in tried}
        times = measure_latency(runs, rounds=50, warmup=1, seconds=seconds, min_rounds=3)
        measured[goal] = [
            MeasuredSetting(setting=each, milliseconds=times[each], images_per_second=1000 * each.batch / times[each])
            for each in tried
        ]
    latency, throughput = (choose(measured[goal]) for goal in ("latency", "throughput"))
    return Tuned(latency=latency, throughput=throughput, measured=measured)


def _engine_key(setting: Setting) -> tuple[str, Mode, int]:
    return setting.engine, setting.mode, setting.threads


def _call(engine: Engine, image: FloatArray, size: int):  # type: ignore[no-untyped-def]
    batch = np.repeat(image[None], size, axis=0)
    return lambda: engine.run_both(batch)


def choose(measured: Sequence[MeasuredSetting]) -> Setting:
    """The fastest; of equally fast ones, the one with the smallest batch, then with the fewest threads."""
    best = max(run.images_per_second for run in measured)
    fast = [run for run in measured if run.images_per_second >= (1 - EQUAL_SHARE) * best]
    return min(fast, key=lambda run: (run.setting.batch, run.setting.threads, -run.images_per_second)).setting
