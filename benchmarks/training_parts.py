"""Where the time of medopt's training loop goes, and what other ways would bring. Shown by benchmarks/training.py."""

from __future__ import annotations

import queue
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from loading import interleaved
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from training import OURS, Arena, bare, medopt_epochs, plain_step

from medopt.data.loaders import train_loader
from medopt.training.step import update_average


def parts(arena: Arena, rounds: int) -> dict[str, Any]:
    """Milliseconds a step of each part, and of each other way; medians of interleaved rounds."""
    works = _parts(arena) | _gains(arena)
    times = interleaved({name: work for name, (work, _) in works.items()}, rounds)
    return {"step_ms": {name: statistics.median(values) / works[name][1] for name, values in times.items()}}


def _parts(arena: Arena) -> dict[str, tuple[Callable[[], Any], int]]:
    """Each part of a step alone, and how many steps one call makes."""
    epochs, steps = medopt_epochs(arena), arena.images // arena.size
    stepper, state, fabric = epochs.stepper, epochs.state, epochs.fabric
    state.network.train()
    epochs.sampler.epoch = 0
    images, target, _ = next(iter(epochs.loader))
    device = fabric.device
    on_device = (images.to(device), target.to(device))
    stepper.step([on_device], 1e-5)  # gradients, for clipping
    naive = AveragedModel(state.model, avg_fn=get_ema_avg_fn(0.99), use_buffers=True)

    def clip() -> None:
        fabric.clip_gradients(state.network, state.optimizer, max_norm=1e9, error_if_nonfinite=False)

    def step() -> None:
        stepper.step([on_device], 1e-5)[0].item()

    def transfer() -> None:
        images.to(device)
        target.to(device)

    return {
        "bare step": (bare(arena), steps),
        "medopt's step: with clipping and the moving average": (step, 1),
        "clipping alone": (clip, 1),
        "moving average alone (foreach)": (lambda: update_average(state, 0.99, False), 1),
        "moving average, a tensor at a time": (lambda: naive.update_parameters(state.model), 1),
        "reading, augmenting and collating a batch": (lambda: _drain(train_loader(*_data(arena))), steps),
        "moving a batch to the device": (transfer, 1),
    }


def _data(arena: Arena) -> tuple[Any, Any, Any]:
    return arena.study, arena.prepared.cases, arena.prepared.files


def _drain(found: tuple[Iterable[Any], Any]) -> None:
    loader, sampler = found
    sampler.epoch = 0
    for _ in loader:
        pass


def _gains(arena: Arena) -> dict[str, tuple[Callable[[], Any], int]]:
    """Other ways to load and to step, each over whole epochs."""
    steps = arena.images // arena.size
    ways: dict[str, tuple[Callable[[], Any], int]] = {OURS: (medopt_epochs(arena).train, steps)}
    for workers in (1, 2):
        changed = arena.study.training.model_copy(update={"workers": workers})
        study = arena.study.model_copy(update={"training": changed})
        other = Arena(study, arena.radiographs, arena.prepared, arena.folder)
        ways[f"medopt, {workers} loader process{'es' if workers > 1 else ''}"] = (medopt_epochs(other).train, steps)
    ahead = medopt_epochs(arena)
    ahead.loader = Ahead(ahead.loader)  # type: ignore[assignment]
    ways["medopt, a thread that loads ahead"] = (ahead.train, steps)
    ways["bare step, loss.item() each"] = (_looking(arena), steps)
    if compiled := _compiled(arena):
        ways["bare step, torch.compile"] = (compiled, steps)
    return ways


class Ahead:
    """A loader whose batches one thread makes while the model is at work on the last."""

    def __init__(self, loader: Iterable[Any], depth: int = 2) -> None:
        self.loader, self.depth = loader, depth

    def __iter__(self) -> Iterator[Any]:
        made: queue.Queue[Any] = queue.Queue(self.depth)
        end = object()

        def fill() -> None:
            for batch in self.loader:
                made.put(batch)
            made.put(end)

        threading.Thread(target=fill, daemon=True).start()
        while (batch := made.get()) is not end:
            yield batch

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def _steps(arena: Arena, look: bool, compiled: bool) -> Callable[[], None]:
    model, optimizer = arena.net()
    device = next(model.parameters()).device
    net: Any = torch.compile(model) if compiled else model
    step = plain_step(net, optimizer, arena.study.training.precision == "bf16-mixed")
    image = torch.rand(arena.size, 1, *arena.study.prepare.size, device=device)
    target = (torch.arange(arena.size, device=device) % 2).float()[:, None]

    def epoch() -> None:
        for _ in range(arena.images // arena.size):
            loss = step(image, target)
            if look:
                loss.item()
        loss.item()

    return epoch


def _looking(arena: Arena) -> Callable[[], None]:
    return _steps(arena, look=True, compiled=False)


def _compiled(arena: Arena) -> Callable[[], None] | None:
    """None where this machine has no compiler for torch.compile."""
    epoch = _steps(arena, look=False, compiled=True)
    try:
        epoch()
    except Exception as error:  # whatever its many layers raise
        Console().print(f"torch.compile does not work here: {type(error).__name__}", markup=False)
        return None
    return epoch


def show_parts(found: Mapping[str, Any]) -> None:
    """The table of parts and other ways."""
    base = found["step_ms"]["bare step"]
    title = f"milliseconds a step of {found['batch']} images, medians"
    table = Table("", "ms", "of the bare step", title=title, title_justify="left")
    for name, value in found["step_ms"].items():
        if name == OURS:
            table.add_section()
        table.add_row(name, f"{value:.2f}", f"{value / base:.1%}")
    Console().print(table)
