"""How long a step takes and how much memory, by the size of its micro-batches; how much memory there is.

On a GPU sizes are tried in this process. On a CPU they are tried in a process of their own, because a system that runs
out of memory kills it, and because what a process has held cannot be told apart from what was there before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.multiprocessing as processes
from torch import Tensor

from medopt.config import Study
from medopt.core.records import Case
from medopt.data.loaders import KeyedDataset
from medopt.training.hardware import open_fabric
from medopt.training.losses import build_loss
from medopt.training.step import Stepper, start_state

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self")
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
        bench: _Bench | None = None
        while True:
            size = pipe.recv()
            try:
                bench = bench or _Bench(study, cases, files)
                pipe.send(_or_none(bench, size))
            except Exception as error:  # raised again in the process that asked
                pipe.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass


def available_bytes(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes of main memory that are free to this process: the machine's, or less where a container is limited.

    A container's limit stands in its control group, or in one above it; memory that only caches files counts as free.
    """
    return min([psutil.virtual_memory().available, *_free_of_groups(groups, own)])


def _free_of_groups(groups: Path, own: Path) -> Iterator[int]:
    """What each limited control group of this process still has, of version 2 and version 1."""
    try:
        lines = [line.split(":", 2) for line in (own / "cgroup").read_text().splitlines()]
    except OSError:
        return  # no Linux: there are none
    for _, controllers, path in lines:
        if not controllers:
            yield from _free(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _free(groups / "memory", path, *names)


def _free(root: Path, path: str, limit: str, used: str, cached: str) -> Iterator[int]:
    place = root / path.strip("/")
    for folder in (place, *place.parents):
        if folder != root and root not in folder.parents:
            return
        try:
            limited_to, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not limited ("max"), or a group that only the host can see
            continue
        yield max(0, limited_to - taken + int(stat.get(cached, 0)))


def peak_bytes(own: Path = _OWN) -> int:
    """The peak of this process's main memory, in bytes.

    Linux tells it for the program that runs; getrusage would count what stood there before it was started.
    """
    try:
        lines = (own / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
