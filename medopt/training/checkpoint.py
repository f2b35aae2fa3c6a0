"""Checkpoints: one safetensors file an epoch, written whole or not at all; no pickle.

A file holds the model, its moving average, the optimizer's state, the random state, and the history as JSON in its
header. The two newest are kept; a damaged newest one falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn, optim

from medopt.errors import TrainingError
from medopt.provenance import atomic
from medopt.records import EpochRecord

KEPT = 2


@dataclass
class TrainingState:
    """All that changes while training; the learning rate and early stopping follow from `history`."""

    model: nn.Module
    optimizer: optim.Optimizer
    average: nn.Module | None
    history: list[EpochRecord]

    @property
    def judged(self) -> nn.Module:
        """The weights that validation and release use: the moving average where there is one."""
        return self.model if self.average is None else self.average.get_submodule("module")


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
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(tensors[name].numpy().data)
    return found.hexdigest()


def save_epoch(folder: Path, state: TrainingState, facts: Mapping[str, Any]) -> None:
    """Write the checkpoint of the epoch that `state.history` ends with, and drop all but the newest two."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": value for name, value in state.average.state_dict().items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(v) for name, v in entry.items() if v is not None}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    history = [asdict(record) for record in state.history]
    write_tensors(folder / f"epoch-{len(history):04d}.safetensors", tensors, {**facts, "history": history})
    for old in sorted(folder.glob("epoch-*.safetensors"))[:-KEPT]:
        old.unlink()


def restore_newest(folder: Path, state: TrainingState, facts: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Load the newest whole checkpoint into `state`, if there is one; `say` hears of damaged ones.

    Raises TrainingError where a checkpoint belongs to another study or chain, or where all are damaged.
    """
    files = sorted(folder.glob("epoch-*.safetensors"), reverse=True)
    for path in files:
        try:
            tensors, found = read_tensors(path)
        except TrainingError as error:
            say(f"{error} Going on from the one before.")
            continue
        if {key: found.get(key) for key in facts} != dict(facts):
            raise TrainingError(
                f"{path} belongs to another study or another chain, or its images were changed since; start anew with "
                "--fresh."
            )
        try:
            _restore(state, tensors, found["history"])
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


def _restore(state: TrainingState, tensors: dict[str, Tensor], history: Sequence[dict[str, Any]]) -> None:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    state.model.load_state_dict(part("model."))
    if state.average is not None:
        state.average.load_state_dict(part("average."))
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer.").items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": entries, "param_groups": groups})
    for parameter, entry in state.optimizer.state.items():  # laid out like its parameter: a step is twice as fast
        for name, value in entry.items():
            if value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter).copy_(value)
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    state.history[:] = [EpochRecord(**record) for record in history]


def save_best(path: Path, state: TrainingState, facts: Mapping[str, Any]) -> None:
    """Write the judged weights alone: what evaluation and export start from."""
    write_tensors(path, dict(state.judged.state_dict()), {**facts, "epoch": state.history[-1].epoch})
