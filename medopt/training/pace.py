"""How a training is carried out where the study leaves it open: decided before the first epoch, kept for the run.

Nothing here changes what is trained. What is timed is a fresh training with the real data, on the device that trains.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric

from medopt.config import Study, Training
from medopt.core.files import write_json
from medopt.core.format import duration_text
from medopt.core.reporter import Reporter
from medopt.data.residence import HeldImages, Images, Residence, choose_residence, images_of, stored_bytes
from medopt.training.job import PreparedSplit, TrainingJob
from medopt.training.memory import available_bytes, free_bytes
from medopt.training.step_bench import StepBench

Way = Literal["device", "cpu"]
PACE = "pace.json"
LONG = 600.0
"""Seconds of training below which compiling is not tried: it takes up to minutes, and steps gain a third at best."""
FASTER = 1.03
"""How many times as fast a compiled step has to be."""
TRIAL = 2.0
"""Seconds, and at least MIN_STEPS steps, that each way is timed."""
MIN_STEPS = 5


@dataclass(frozen=True, slots=True)
class Pace:
    """Where images lie, what changes them, whether the network is compiled, and each of these with its reason."""

    residence: Residence
    augment_on: Way
    compile: bool
    reasons: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    """Images a second of the ways that were timed."""

    def of(self, training: Training) -> Training:
        """The training section without anything left open."""
        ways = {"residence": self.residence, "augment_on": self.augment_on, "compile": self.compile}
        return training.model_copy(update=ways)


def settle(job: TrainingJob, fabric: Fabric, reporter: Reporter) -> tuple[TrainingJob, Pace]:
    """The job with its pace: that of the run's folder where it has one and the study does not say otherwise.

    Raises ConfigError where images are to lie where they do not fit.
    """
    pace = _kept(job) if fabric.global_rank == 0 else None
    if fabric.global_rank == 0 and pace is None:
        pace = decide(job, fabric, reporter)
        if pace.reasons:  # what nothing was measured for is decided alike again
            write_json(job.folder / PACE, asdict(pace))
    shared: Pace | None = fabric.broadcast(pace)
    assert shared is not None
    return replace(job, study=_with(job.study, shared)), shared


def _kept(job: TrainingJob) -> Pace | None:
    """What was decided before, unless the study has been changed to say something else."""
    try:
        stored = json.loads((job.folder / PACE).read_text())
        pace = Pace(**stored | {"reasons": tuple(stored["reasons"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    training = job.study.training
    asked = {"residence": training.residence, "augment_on": training.augment_on, "compile": training.compile}
    return pace if all(value in ("auto", getattr(pace, key)) for key, value in asked.items()) else None


def decide(job: TrainingJob, fabric: Fabric, reporter: Reporter) -> Pace:
    """Decide what the study leaves open, on the device of `fabric`."""
    training, on_gpu = job.study.training, fabric.device.type == "cuda"
    needed = stored_bytes(job.train_set.files) + stored_bytes(job.val_set.files)
    share = max(1, fabric.world_size)  # each process holds all images
    free = free_bytes(fabric.device) if on_gpu else None
    residence, why = choose_residence(training.residence, needed, free, available_bytes() // share)
    pace = Pace(residence, "cpu" if training.augment_on == "auto" else training.augment_on, training.compile is True)
    if not on_gpu:
        return pace
    pace = replace(pace, reasons=(f"images: {residence} ({why})",))
    if fabric.world_size > 1:  # the others wait, and one process alone would time something else
        where: Way = "device" if training.augment_on == "auto" else training.augment_on
        return replace(pace, augment_on=where, reasons=(*pace.reasons, "several processes: nothing was timed"))
    return _timed(job, pace, reporter, fabric.device)


def _timed(job: TrainingJob, pace: Pace, reporter: Reporter, device: torch.device) -> Pace:
    """Time the ways to augment, and then a compiled network where that may pay."""
    training = job.study.training
    measured: dict[str, float] = {}
    images = place(job.train_set.files, pace.residence, device)
    if training.augment_on == "auto" and training.residence == "device":
        pace = replace(pace, augment_on="device")  # images that the study puts there are changed there
    elif training.augment_on == "auto":
        ways: dict[Way, Pace] = {"device": replace(pace, augment_on="device"), "cpu": replace(pace, augment_on="cpu")}
        if pace.residence == "device":
            ways["cpu"] = replace(ways["cpu"], residence="disk")
        reporter.message("timing augmentation on the GPU and on the CPU")
        speeds = {
            way: speed(_with(job.study, one), job.train_set, images if one.residence == pace.residence else None)[0]
            for way, one in ways.items()
        }
        way, reason = faster_way(speeds)
        measured |= {f"augmenting on the {'GPU' if key == 'device' else 'CPU'}": value for key, value in speeds.items()}
        pace = replace(ways[way], reasons=(*pace.reasons, reason))
        images = images if ways[way].residence == pace.residence else images_of(job.train_set.files)
    if training.compile == "auto" and not training.recompute and job.study.model.pooling == "none":
        plain = speed(_with(job.study, pace), job.train_set, images)[0]
        left = training.epochs * len(job.train_set.files) / plain
        compiled, first = 0.0, 0.0
        if left >= LONG:
            reporter.message("timing a compiled network")
            compiled, first = speed(_with(job.study, replace(pace, compile=True)), job.train_set, images)
        pays, reason = compiling_pays(plain, compiled, first, left)
        measured |= {"not compiled": plain} | ({"compiled": compiled} if compiled else {})
        pace = replace(pace, compile=pays, reasons=(*pace.reasons, reason))
    return replace(pace, measured=measured)


def faster_way(speeds: dict[Way, float]) -> tuple[Way, str]:
    """Where to augment, by the images a second of whole steps, and the sentence that says so.

    >>> faster_way({"device": 3100.0, "cpu": 1000.0})
    ('device', 'augmenting on the GPU: 3.1x (3100 images/s, on the CPU 1000)')
    """
    device, cpu = speeds["device"], speeds["cpu"]
    if device >= cpu:
        return "device", f"augmenting on the GPU: {device / cpu:.1f}x ({device:.0f} images/s, on the CPU {cpu:.0f})"
    return "cpu", f"augmenting on the CPU: {cpu / device:.1f}x ({cpu:.0f} images/s, on the GPU {device:.0f})"


def compiling_pays(plain: float, compiled: float, first: float, remaining: float) -> tuple[bool, str]:
    """Whether to compile, and why: by images a second of both (0: not tried), the seconds until the first compiled step
    was done, and the seconds that the training takes without.

    >>> compiling_pays(1000.0, 1300.0, 60.0, 7200.0)
    (True, 'compiling: steps are 1.30x as fast, which saves about 28 min of about 2 h; it takes about 60 s')
    >>> compiling_pays(1000.0, 1010.0, 60.0, 7200.0)
    (False, 'not compiling: steps are 1.01x as fast')
    """
    if remaining < LONG:
        return False, f"not compiling: the whole training takes {duration_text(remaining)}"
    if compiled < FASTER * plain:
        return False, f"not compiling: steps are {compiled / plain:.2f}x as fast"
    saved = remaining * (1 - plain / compiled)
    times = f"steps are {compiled / plain:.2f}x as fast"
    if saved <= first:
        return False, f"not compiling: {times}, which saves {duration_text(saved)}; it takes {duration_text(first)}"
    return True, (
        f"compiling: {times}, which saves {duration_text(saved)} of {duration_text(remaining)}; it takes "
        f"{duration_text(first)}"
    )


def speed(
    study: Study, split: PreparedSplit, images: Images | None = None, seconds: float = TRIAL
) -> tuple[float, float]:
    """Images a second of whole steps of a fresh training, data included, and seconds until its kernels were compiled.

    Frozen or settled running statistics come first, as compiling waits for them.
    """
    size, micro = study.training.resolved_sizes
    size = min(size, len(split.cases))
    bench, started, times = StepBench(study, split.cases, split.files, images), time.perf_counter(), []
    steps = bench.times(micro, warm_up=SETTLED if study.training.compile is True else 2)
    times.append(next(steps))
    first = time.perf_counter() - started
    while len(times) < MIN_STEPS or sum(times) < seconds:
        times += islice(steps, 1)
    return size / statistics.median(times), first


SETTLED = 14
"""Steps after which running statistics have their momentum and the network is compiled."""


def place(files: Sequence[Path], residence: Residence, device: torch.device) -> Images:
    """The images where they are to lie."""
    if residence == "disk":
        return images_of(files)
    on_gpu = device.type == "cuda"
    if residence == "device":
        return HeldImages(files, device)
    return HeldImages(files, torch.device("cpu"), pins=on_gpu)


def _with(study: Study, pace: Pace) -> Study:
    return study.model_copy(update={"training": pace.of(study.training)})
