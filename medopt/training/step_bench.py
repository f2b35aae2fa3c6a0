"""How long a step takes and how much memory, by the size of its micro-batches; how much memory there is.

On a GPU sizes are tried in this process. On a CPU they are tried in a process of their own, because a system that runs
out of memory kills it, and because what a process has held cannot be told apart from what was there before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes

from medopt.config import Optimizer, Study
from medopt.core.records import Case
from medopt.data.loaders import endless_steps
from medopt.data.residence import Images
from medopt.training.hardware import open_fabric
from medopt.training.losses import build_loss
from medopt.training.memory import peak_bytes, ran_out
from medopt.training.step import Stepper, start_state

REPEATS = 3
Measure = Callable[[int], tuple[float, int] | None]
"""Seconds that a step takes with micro-batches of that size, and bytes; None where memory ran out."""


def step_images(study: Study, count: int) -> int | None:
    """Images of a step over a split of `count`; None where that is to be found."""
    fixed = study.training.batch_size
    return None if fixed == "auto" else min(count, int(fixed))


def measuring(
    study: Study, cases: Sequence[Case], files: Sequence[Path], *, cuda: bool
) -> AbstractContextManager[Measure]:
    """Measure steps of a fresh training; smaller sizes must come first, as the peak counts."""
    return (_here if cuda else _beside)(study, cases, files)


class StepBench:
    """A fresh training that takes steps with micro-batches of any size, read, drawn and changed as training does it.

    `images`: where the files are read from; None reads them each time.
    """

    def __init__(
        self, study: Study, cases: Sequence[Case], files: Sequence[Path], images: Images | None = None
    ) -> None:
        self.study, self.cases, self.files = _with(study, optimizer=_slow(study)), cases, images or files
        self.fabric = open_fabric(study.training)
        torch.manual_seed(study.seed)
        self.before = peak_bytes()
        state = start_state(self.study, self.fabric)
        state.network.train()
        self.stepper = Stepper(self.study, self.fabric, state, build_loss(study, cases))
        self.images = step_images(study, len(cases))

    def __call__(self, size: int) -> tuple[float, int]:
        """Seconds a step (the median of a few) and bytes; raises as torch does without memory."""
        cuda = self.fabric.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        seconds = statistics.median(islice(self.times(size), REPEATS))
        taken = torch.cuda.max_memory_allocated(self.fabric.device) if cuda else peak_bytes() - self.before
        return seconds, taken

    def times(self, size: int, warm_up: int = 1) -> Iterator[float]:
        """Seconds of one step after the other, each with its data; the first ones warm up and are left out."""
        study = _with(self.study, batch_size=self.images or size, micro_batch=size)
        steps = endless_steps(study, self.cases, self.files, self.fabric.device)
        for number in count():
            started = time.perf_counter()
            loss, _ = self.stepper.step(next(steps), 1e-5)
            loss.item()
            if number >= warm_up:
                yield time.perf_counter() - started


def _slow(study: Study) -> Optimizer:
    return study.training.optimizer.model_copy(update={"lr": 1e-5})


def _with(study: Study, **changed: Any) -> Study:
    return study.model_copy(update={"training": study.training.model_copy(update=changed)})


def _or_none(bench: StepBench, size: int) -> tuple[float, int] | None:
    try:
        return bench(size)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        return None


@contextmanager
def _here(study: Study, cases: Sequence[Case], files: Sequence[Path]) -> Iterator[Measure]:
    """Measure in this process, and give the GPU's memory back."""
    benches = [StepBench(study, cases, files)]

    def measure(size: int) -> tuple[float, int] | None:
        measured = _or_none(benches[0], size)
        torch.cuda.empty_cache()
        return measured

    try:
        yield measure
    finally:
        benches.clear()
        torch.cuda.empty_cache()


@contextmanager
def _beside(study: Study, cases: Sequence[Case], files: Sequence[Path]) -> Iterator[Measure]:
    """Measure in a process of its own, which may be killed for its memory."""
    ours, theirs = processes.Pipe()
    words = (theirs, torch.get_num_threads(), study, list(cases), list(files))
    child = processes.get_context("spawn").Process(target=_serve, args=words, daemon=True)
    child.start()
    theirs.close()

    def measure(size: int) -> tuple[float, int] | None:
        try:
            ours.send(size)
            measured: tuple[float, int] | Exception | None = ours.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return None  # killed: the system's answer to a process that takes too much
        if isinstance(measured, Exception):
            raise measured
        return measured

    try:
        yield measure
    finally:
        ours.close()
        child.join(10)
        child.kill()
        child.join()


def _serve(pipe: Any, threads: int, study: Study, cases: Sequence[Case], files: Sequence[Path]) -> None:
    """Answer sizes with measurements until nobody asks."""
    torch.set_num_threads(threads)
    try:
        bench: StepBench | None = None
        while True:
            size = pipe.recv()
            try:
                bench = bench or StepBench(study, cases, files)
                pipe.send(_or_none(bench, size))
            except Exception as error:  # raised again in the process that asked
                pipe.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
