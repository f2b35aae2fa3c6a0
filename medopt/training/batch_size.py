"""Which micro-batch trains fastest and fits the memory, found by trying; how gradients add up to the step meant.

A step of the optimizer has `training.batch_size` images however many pass at once: the gradients of its micro-batches
add up. Only BatchNorm sees the difference, as its statistics are those of a micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from medopt.config import Study
from medopt.core.errors import TrainingError
from medopt.core.records import Case
from medopt.core.reporter import Reporter, SilentReporter
from medopt.training.hardware import open_fabric
from medopt.training.memory import free_bytes
from medopt.training.step_bench import Measure, measuring, step_images

MAX_MICRO_BATCH = 256
MIN_STEPS = 8
"""A batch size that is chosen leaves an epoch at least so many steps, where the data allow it."""
MARGIN = 0.8
"""Share of the available memory that a choice may take: other parts of a run need some, and need grows with luck."""
ALIKE = 0.9
"""Speeds of at least this share of the best count as equal to it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One micro-batch size: images a second and the most memory taken, or a note on why there are none."""

    micro_batch: int
    images_per_second: float | None
    bytes: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class BatchTest:
    """What was tried and what is chosen: `accumulation` micro-batches of `micro_batch` make a step of `batch_size`."""

    trials: tuple[Trial, ...]
    available_bytes: int
    device: str
    batch_size: int
    micro_batch: int
    accumulation: int
    reason: str

    def json_values(self) -> dict[str, JsonValue]:
        """As JSON holds it."""
        return asdict(self) | {"trials": [asdict(one) for one in self.trials]}


def find_batch_size(
    study: Study,
    cases: Sequence[Case],
    files: Sequence[Path],
    *,
    max_size: int = MAX_MICRO_BATCH,
    seconds: float = 120.0,
    available: int | None = None,
    reporter: Reporter | None = None,
) -> BatchTest:
    """Try micro-batches of 2, 4, 8 ... images (all of a step last) with fresh models, and choose.

    Where the study's batch size is `auto`, the micro-batch chosen is the batch. `available` bytes stand for what the
    machine has. After `seconds` no further size is begun. Speeds are measured: two calls may choose differently.
    Raises TrainingError where not even two images fit.
    """
    sizes = candidate_sizes(study, len(cases), max_size)
    device = open_fabric(study.training).device
    if available is None:
        available = free_bytes(device)
    images = step_images(study, len(cases))
    with measuring(study, cases, files, cuda=device.type == "cuda") as measure:
        trials = try_sizes(sizes, measure, available, images, seconds, reporter or SilentReporter())
    return choose(trials, available, str(device), images)


def candidate_sizes(study: Study, count: int, max_size: int = MAX_MICRO_BATCH) -> list[int]:
    """Powers of two, and the whole step: at most the step or, where that is to be found, what leaves enough steps."""
    fixed = study.training.batch_size
    limit = min(count, max_size, max(2, count // MIN_STEPS)) if fixed == "auto" else min(count, int(fixed))
    powers = [2**power for power in range(1, 20) if 2**power <= limit]
    return powers if fixed == "auto" or limit in powers else [*powers, limit]


def try_sizes(
    sizes: Sequence[int],
    measure: Measure,
    available: int,
    images: int | None,
    seconds: float,
    reporter: Reporter,
) -> list[Trial]:
    """Measure the sizes, smallest first, until one does not fit, would not fit, or time is up.

    `images` of a step; None: each size is the step itself.
    """
    advance = reporter.progress(len(sizes), "trying micro-batches")
    trials: list[Trial] = []
    started = time.perf_counter()
    for size in sizes:
        advance(1, size=size)
        needed = _expected(trials, size)
        if needed > available:
            trials.append(Trial(size, None, None, f"not tried: would need about {needed / 2**30:.1f} GiB"))
            break
        if time.perf_counter() - started > seconds:
            trials.append(Trial(size, None, None, f"not tried: {seconds:g} s were over"))
            break
        measured = measure(size)
        if measured is None:
            trials.append(Trial(size, None, None, "out of memory"))
            break
        trials.append(Trial(size, (images or size) / measured[0], measured[1]))
    advance(len(sizes) - len(trials))
    return trials


def _expected(trials: Sequence[Trial], size: int) -> float:
    """Bytes that `size` will take, on the line through the last two sizes; 0 while there are not two."""
    if len(trials) < 2:
        return 0.0
    (a, taken_a), (b, taken_b) = ((trial.micro_batch, float(trial.bytes or 0)) for trial in trials[-2:])
    return taken_b + max(0.0, taken_b - taken_a) / (b - a) * (size - b)


def choose(trials: Sequence[Trial], available: int, device: str, images: int | None) -> BatchTest:
    """The fastest size within the margin of memory, for a step of `images`; None: the size chosen is the step.

    Of equally fast ones the largest where the step is given (BatchNorm then sees more images), else the smallest (more
    steps an epoch). Raises TrainingError where none fits.
    """
    fitting = [trial for trial in trials if trial.images_per_second and (trial.bytes or 0) <= MARGIN * available]
    if not fitting:
        raise TrainingError(
            f"Not even {trials[0].micro_batch} images fit the {available / 2**30:.1f} GiB free on {device}. Make "
            "the images smaller (prepare.size) or the network (model.width, model.depth), or end other programs."
        )
    best = max(trial.images_per_second or 0.0 for trial in fitting)
    alike = [trial for trial in fitting if (trial.images_per_second or 0.0) >= ALIKE * best]
    chosen = alike[0] if images is None else alike[-1]
    batch = images or chosen.micro_batch
    parts = -(-batch // chosen.micro_batch)
    reason = _reason(trials, chosen, available, batch, parts)
    return BatchTest(tuple(trials), available, device, batch, chosen.micro_batch, parts, reason)


def _reason(trials: Sequence[Trial], chosen: Trial, available: int, batch: int, parts: int) -> str:
    notes = [f"{trial.micro_batch} images: {trial.note}." for trial in trials if trial.note]
    over = [trial for trial in trials if trial.bytes is not None and trial.bytes > MARGIN * available]
    notes += [f"{over[0].micro_batch} images take more."] if over else []
    taken = f"{(chosen.bytes or 0) / 2**30:.2f} of {available / 2**30:.1f} GiB free"
    steps = "all of a step at once" if parts == 1 else f"the gradients of {parts} micro-batches add up"
    return " ".join(
        [
            f"The fastest of what takes at most {MARGIN:.0%} of the memory: {chosen.images_per_second:.1f} images/s, "
            f"{taken}.",
            *notes,
            f"A step has {batch} images: {steps}.",
        ]
    )
