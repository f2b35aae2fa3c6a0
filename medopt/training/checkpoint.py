"""Checkpoints: one safetensors file an epoch, written whole or not at all; no pickle.

A file holds the model, its moving average, the optimizer's state, and in its header as JSON the history and the loss
scale. What is random follows from the seed and the epoch. The two newest are kept; a damaged newest one falls back to
the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from medopt.core.errors import TrainingError, listed
from medopt.core.files import atomic
from medopt.core.records import EpochRecord
from medopt.training.step import TrainingState, spread, whole

MAX_CHECKPOINTS = 2


def write_tensors(path: Path, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts, with a checksum, to one safetensors file, whole or not at all."""
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # One note only: safetensors writes several in an order of its own, and equal weights shall be equal files.
    data = save(kept, {"medopt": json.dumps({"facts": dict(facts), "sha256": _checksum(kept)})})
    with atomic(path) as part:
        part.write_bytes(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write_tensors` wrote.

    Raises TrainingError naming a file that is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            notes = json.loads((stream.metadata() or {})["medopt"])
        tensors = load_file(path)
        if notes["sha256"] != _checksum(tensors):
            raise ValueError("its checksum is wrong")
        return tensors, notes["facts"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"The checkpoint {path} is damaged or missing ({error}).") from None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the values, in the order of the names: safetensors itself notices a short file, not a changed byte."""
    checksum = hashlib.sha256()
    for name in sorted(tensors):
        checksum.update(tensors[name].numpy().data)
    return checksum.hexdigest()


def save_epoch(folder: Path, state: TrainingState, facts: Mapping[str, Any], *, write: bool = True) -> None:
    """Write the checkpoint of the epoch that `state.history` ends with, and drop all but the newest two.

    Where several processes train, all have to call this, and one to `write`.
    """
    tensors = {f"model.{name}": whole(value) for name, value in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": whole(value) for name, value in state.average.state_dict().items()}
    for index, entry in state.optimizer.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": whole(_tensor(v)) for name, v in entry.items() if v is not None}
    if not write:
        return
    kept = {**facts, "history": [asdict(record) for record in state.history]}
    if state.scaler is not None:
        kept["scaler"] = state.scaler.state_dict()
    write_tensors(folder / f"epoch-{len(state.history):04d}.safetensors", tensors, kept)
    for old in sorted(folder.glob("epoch-*.safetensors"))[:-MAX_CHECKPOINTS]:
        old.unlink()


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def restore_newest(
    folder: Path,
    state: TrainingState,
    facts: Mapping[str, Any],
    say: Callable[[str], None],
    take_optimizer: Callable[[list[float]], None],
) -> None:
    """Load the newest whole checkpoint into `state`, if there is one; `say` hears of damaged ones.

    `take_optimizer` gives the state the optimizer in force after these scores. Raises TrainingError where a checkpoint
    belongs to another study or chain, or where all are damaged.
    """
    files = sorted(folder.glob("epoch-*.safetensors"), reverse=True)
    for path in files:
        try:
            tensors, stored = read_tensors(path)
        except TrainingError as error:
            say(f"{error} Going on from the one before.")
            continue
        if {key: stored.get(key) for key in facts} != dict(facts):
            raise TrainingError(
                f"{path} belongs to another study or another chain, or its images were changed since; start anew with "
                "--fresh."
            )
        try:
            _restore(state, tensors, stored, take_optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{path} was written by another version of the program and does not fit its network "
                f"({' '.join(str(error).split())[:200]}); give this run a folder of its own."
            ) from error
        return
    if files:
        raise TrainingError(
            f"None of the {len(files)} checkpoints in {folder} can be read; remove that folder to train from the start."
        )


def _restore(
    state: TrainingState, tensors: dict[str, Tensor], stored: dict[str, Any], take: Callable[[list[float]], None]
) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    history = [EpochRecord(**record) for record in stored["history"]]
    _load(state.model, part("model."))
    if state.average is not None:
        _load(state.average, part("average."))
    take([record.val_metric for record in history[:-1]])  # the one that made the last epoch
    restore_optimizer(state.optimizer.optimizer, part("optimizer."))
    if state.scaler is not None and "scaler" in stored:
        state.scaler.load_state_dict(stored["scaler"])
    state.history[:] = history


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, kept: Mapping[str, Tensor]) -> None:
    """Give a fresh optimizer what a checkpoint kept of one: INDEX.NAME of the parameters in their order.

    Each value is laid out like its parameter: a fused kernel takes both in the order of memory, and without one a step
    is twice as fast. It also takes the count of steps from the parameter's device.
    """
    places = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in kept.items():
        index, _, name = key.partition(".")
        parameter, group = places[int(index)]
        if value.shape != parameter.shape:
            placed = value.to(parameter.device) if group.get("fused") else value
        else:
            whole_value = spread(value.to(parameter.device), parameter)
            placed = torch.empty_like(parameter, requires_grad=False).copy_(whole_value)
        optimizer.state[parameter][name] = placed


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    targets = module.state_dict()
    if targets.keys() != tensors.keys():
        raise ValueError(f"it has other layers: {listed(sorted(targets.keys() ^ tensors.keys()), 3)}")
    for name, target in targets.items():
        target.copy_(spread(tensors[name].to(target.device), target))


def save_best(path: Path, state: TrainingState, facts: Mapping[str, Any], *, write: bool = True) -> None:
    """Write the judged weights alone: what evaluation and export start from. All processes have to call this."""
    tensors = {name: whole(value) for name, value in state.judged.state_dict().items()}
    if write:
        write_tensors(path, tensors, {**facts, "epoch": state.history[-1].epoch})
