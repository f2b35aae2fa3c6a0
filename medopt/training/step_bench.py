"""How long a step takes and how much memory, by the size of its micro-batches.

On a GPU sizes are tried in this process. On a CPU they are tried in a process of their own, because a system that runs
out of memory kills it, and because what a process has held cannot be told apart from what was there before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as processes
from torch import Tensor

from medopt.config import Study
from medopt.core.records import Case
from medopt.data.loaders import KeyedDataset
from medopt.training.hardware import open_fabric
from medopt.training.losses import build_loss
from medopt.training.memory import peak_bytes
from medopt.training.state import start_state
from medopt.training.step import Stepper

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
    """Measure steps of a fresh training; smaller sizes must come first, as the most that was held counts."""
    return (_here if cuda else _beside)(study, cases, files)


class _Bench:
    """A fresh training that takes the same step again and again, with micro-batches of any size."""

    def __init__(self, study: Study, cases: Sequence[Case], files: Sequence[Path]) -> None:
        number = study.training.optimizer.model_copy(update={"lr": 1e-5})
        training = study.training.model_copy(update={"optimizer": number})
        self.study = study.model_copy(update={"training": training})
        self.fabric = open_fabric(training)
        torch.manual_seed(study.seed)
        self.before = peak_bytes()
        state = start_state(self.study, self.fabric)
        state.network.train()
        self.stepper = Stepper(self.study, self.fabric, state, build_loss(study, cases))
        self.data = KeyedDataset(study, cases, files)
        self.images = step_images(study, len(cases))

    def __call__(self, size: int) -> tuple[float, int]:
        """Seconds a step (the fastest: others met other programs) and bytes; raises as torch does without memory."""
        cuda = self.fabric.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        batch, times = self._batch(size), []
        for repeat in range(REPEATS + 1):
            started = time.perf_counter()
            loss, _ = self.stepper.step(batch, 1e-5)
            loss.item()
            if repeat:  # the first one warms up
                times.append(time.perf_counter() - started)
        taken = torch.cuda.max_memory_allocated(self.fabric.device) if cuda else peak_bytes() - self.before
        return min(times), taken

    def _batch(self, size: int) -> list[tuple[Tensor, Tensor]]:
        images = self.images or size
        parts = -(-images // size)
        rows = [self.data[(-1, index % len(self.data), 0)] for index in range(images)]
        cuts = [rows[images * part // parts : images * (part + 1) // parts] for part in range(parts)]
        return [(torch.stack([row[0] for row in cut]), torch.stack([row[1] for row in cut])) for cut in cuts]


def _or_none(bench: _Bench, size: int) -> tuple[float, int] | None:
    try:
        return bench(size)
    except (MemoryError, torch.OutOfMemoryError):
        return None
    except RuntimeError as error:  # what torch's allocator for the CPU and some libraries raise
        if not any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")):
            raise
        return None


@contextmanager
def _here(study: Study, cases: Sequence[Case], files: Sequence[Path]) -> Iterator[Measure]:
    """Measure in this process, and give the GPU's memory back."""
    benches = [_Bench(study, cases, files)]

    def measure(size: int) -> tuple[float, int] | None:
        found = _or_none(benches[0], size)
        torch.cuda.empty_cache()
        return found

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
            found: tuple[float, int] | Exception | None = ours.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return None  # killed: the system's answer to a process that takes too much
        if isinstance(found, Exception):
            raise found
        return found

    try:
        yield measure
    finally:
        ours.close()
        child.join(10)
        child.kill()
        child.join()


def _serve(asked: Any, threads: int, study: Study, cases: Sequence[Case], files: Sequence[Path]) -> None:
    """Answer sizes with measurements until nobody asks."""
    torch.set_num_threads(threads)
    try:
        bench: _Bench | None = None
        while True:
            size = asked.recv()
            try:
                bench = bench or _Bench(study, cases, files)
                asked.send(_or_none(bench, size))
            except Exception as error:  # told to the one who asked
                asked.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
