"""How many images a second each stage of a training takes here, alone, and how near that is to what the device can do.

The ceilings are measured, not looked up: a matrix product in the precision that trains, and a copy within the device's
memory.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from medopt.config import Study
from medopt.core.records import Volume
from medopt.core.reporter import Reporter
from medopt.data.loaders import worker_count
from medopt.data.residence import as_images, images_of
from medopt.imaging.channels import ScanPath
from medopt.models.cost import study_cost
from medopt.training.auto_settings import with_sizes
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit, TrainingJob
from medopt.training.pace import SETTLED, Pace, decide
from medopt.training.step_bench import StepBench
from medopt.transforms.augment import apply, draw
from medopt.transforms.prepare import PrepareChain

PASSES = 3
"""A step costs as much as three forward passes: the backward pass takes the gradient of inputs and of weights."""
AT_ONCE_ON_CPU = 8
READ = 16
"""Scans that are read."""


@dataclass(frozen=True, slots=True)
class StageSpeed:
    """Images a second of one stage alone, and the share of the ceiling that bounds it; None where none does."""

    name: str
    images_per_second: float
    share: float | None = None
    ceiling: Literal["", "product", "copy"] = ""


@dataclass(frozen=True, slots=True)
class Throughput:
    """All stages of one study's training on one device, in the order of the data."""

    device: str
    precision: str
    threads: int
    batch: int
    tera_operations: float
    """Of a matrix product, a second: a multiply-add is two."""
    copied_gb: float
    """Read and written by a copy within the device's memory, a second."""
    stages: tuple[StageSpeed, ...]
    pace: Pace
    workers: int


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device does at most: operations and bytes a second."""

    operations: float
    bytes: float


def measure_throughput(
    study: Study,
    split: PreparedSplit,
    scans: Sequence[ScanPath],
    reporter: Reporter,
    *,
    compiles: bool,
    seconds: float,
    total: int | None = None,
) -> Throughput:
    """Time every stage for about `seconds` each, on the device that would train.

    `scans` are the files of some cases, whose prepared images are the split's; they stand for `total` images.
    """
    study = with_sizes(study)
    fabric = open_fabric(study.training)
    at_once = min(study.training.resolved_sizes[1], AT_ONCE_ON_CPU if fabric.device.type == "cpu" else 4096)
    bench = _Stages(study, split, at_once, fabric, seconds)
    advance = reporter.progress(8 if compiles else 7, "stages")
    top = ceilings(fabric.device, _low_precision(fabric), seconds / 2)
    advance(1)
    stages = []
    for stage in bench.stages(scans, top, compiles):
        stages.append(stage)
        advance(1, stage=stage.name)
    pace = decide(_whole_job(study, split, total or len(split.files)), fabric, reporter)
    precision = "bf16" if _low_precision(fabric) is torch.bfloat16 else fabric.strategy.precision.precision
    return Throughput(
        *(str(fabric.device), str(precision), torch.get_num_threads(), bench.count),
        *(top.operations / 1e12, top.bytes / 1e9, tuple(stages), pace),
        worker_count(study.training, fabric.device),
    )


def _whole_job(study: Study, split: PreparedSplit, total: int) -> TrainingJob:
    """A training of `total` images, which those that there are stand for."""
    files, cases = list(islice(cycle(split.files), total)), list(islice(cycle(split.cases), total))
    return TrainingJob(study, PreparedSplit(cases, files), PreparedSplit([], []), Path(), {})


def _low_precision(fabric: Fabric) -> torch.dtype:
    """What the network's products are computed in."""
    name = str(fabric.strategy.precision.precision)
    return torch.bfloat16 if "bf16" in name else torch.float16 if "16" in name else torch.float32


def ceilings(device: torch.device, kind: torch.dtype, seconds: float = 1.0) -> Ceilings:
    """The best of repeated products of square matrices in `kind`, and of repeated copies of 64 MB (1 GB on a GPU)."""
    side, size = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    a = torch.rand(side, side, device=device).to(kind)
    product = min(_times(lambda: torch.mm(a, a), device, seconds))
    source = torch.rand(size, device=device)
    target = torch.empty_like(source)
    copy = min(_times(lambda: target.copy_(source), device, seconds))
    return Ceilings(2 * side**3 / product, 2 * source.nbytes / copy)


def _times(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of repeated calls, at least three, after one that warms up."""
    work()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 10_000):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Stages:
    """The stages of one study on one device."""

    def __init__(self, study: Study, split: PreparedSplit, count: int, fabric: Fabric, seconds: float) -> None:
        self.study, self.split, self.fabric, self.seconds = study, split, fabric, seconds
        self.count = min(count, max(2, len(split.files)))
        chosen = [index % len(split.files) for index in range(self.count)]
        self.images = as_images(images_of(split.files).take(chosen))
        self.operations = 2 * study_cost(study).multiply_adds
        sized = {"batch_size": self.count, "micro_batch": self.count, "workers": 0, "compile": False}
        self.study = study.model_copy(update={"training": study.training.model_copy(update=sized)})

    def stages(self, scans: Sequence[ScanPath], top: Ceilings, compiles: bool) -> Iterator[StageSpeed]:
        """Each stage, in the order of the data."""
        volumes: list[Volume] = []
        chain = PrepareChain(self.study.prepare)
        yield self._reading("read and decode", scans, lambda scan: volumes.append(chain.read(scan)))
        yield self._reading("prepare", volumes, lambda volume: chain.consume(volume, ""))
        for device in dict.fromkeys([torch.device("cpu"), self.fabric.device]):
            yield self._augmenting(device, top if device == self.fabric.device else None)
        yield self._forward(top)
        yield self._stepping("step, images in memory", top)
        yield self._training(top)
        if compiles:
            yield self._stepping("compiled step, images in memory", top, compiled=True)

    def _reading(self, name: str, items: Sequence[object], work: Callable[..., object]) -> StageSpeed:
        """One process, one item after the other, each once: a second reading would find the file in memory."""
        times = []
        for item in items:
            started = time.perf_counter()
            work(item)
            times.append(time.perf_counter() - started)
        return StageSpeed(name, 1 / statistics.median(times))

    def _augmenting(self, device: torch.device, top: Ceilings | None) -> StageSpeed:
        images, study, number = self.images.to(device), self.study, iter(range(10**9))

        def work() -> Tensor:
            random = [np.random.default_rng((study.seed, next(number))) for _ in range(len(images))]
            return apply(images, [draw(study.augment, study.spatial_dims, one) for one in random])

        rate = self._rate(_times(work, device, self.seconds))
        share = rate * 2 * images[0].nbytes / top.bytes if top else None
        return StageSpeed(f"augment on the {'CPU' if device.type == 'cpu' else 'device'}", rate, share, "copy")

    def _forward(self, top: Ceilings) -> StageSpeed:
        bench, images = StepBench(self.study, self.split.cases, self.split.files), self.images.to(self.fabric.device)
        network = bench.stepper.state.network.eval()

        def work() -> None:
            with torch.inference_mode():
                network(images)

        rate = self._rate(_times(work, self.fabric.device, self.seconds))
        return StageSpeed("forward pass", rate, rate * self.operations / top.operations, "product")

    def _stepping(self, name: str, top: Ceilings, *, compiled: bool = False) -> StageSpeed:
        """The optimizer's step on one batch that lies on the device."""
        study = self.study.model_copy(update={"training": self.study.training.model_copy(update={"compile": compiled})})
        stepper = StepBench(study, self.split.cases, self.split.files).stepper
        images = self.images.to(self.fabric.device)
        width = study.data.outputs + study.data.encoded_covariates
        target = torch.zeros(len(images), width, device=self.fabric.device)
        for _ in range(SETTLED if compiled else 0):
            stepper.step([(images, target)], 1e-5)
        rate = self._rate(_times(lambda: stepper.step([(images, target)], 1e-5), self.fabric.device, self.seconds))
        return StageSpeed(name, rate, PASSES * rate * self.operations / top.operations, "product")

    def _training(self, top: Ceilings) -> StageSpeed:
        """Whole steps: read, drawn, changed, and the optimizer's step."""
        count = math.ceil(self.count / len(self.split.files))
        bench = StepBench(self.study, [*self.split.cases] * count, [*self.split.files] * count)
        times: list[float] = []
        for taken in bench.times(self.count):
            times.append(taken)
            if len(times) >= 3 and sum(times) >= self.seconds:
                break
        rate = self._rate(times)
        return StageSpeed("training, with its data", rate, PASSES * rate * self.operations / top.operations, "product")

    def _rate(self, times: Sequence[float]) -> float:
        return self.count / statistics.median(times)
