"""The tensors of a file of weights, without running anything that is in it; and a start written as one."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from medopt.core.errors import ConfigError, listed
from medopt.core.files import atomic, file_digest
from medopt.models.starts.adapt import in_rgb, scaling_tensors
from medopt.models.starts.layouts import recognise
from medopt.models.starts.onnx_layout import read_onnx
from medopt.models.starts.start import Start

ARCHITECTURE = "architecture"  # the fact of a file of ours that holds the settings of its network
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx")
INDEX = ".safetensors.index.json"
_NOTE = "medopt_start"  # what a converted start says of itself, in its header
_WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "weights")


def read_start(path: Path) -> Start:
    """The start in a file of weights; raises ConfigError where it cannot be read, or is no network that we know.

    Of weights in several safetensors, `path` is their index (`.safetensors.index.json`).
    """
    if path.suffix == ".onnx":
        return read_onnx(path)
    return recognise(read_tensors(path), path.name, _said(path))


def start_digest(path: Path) -> str:
    """SHA-256 of a file of weights; of several, that of the SHA-256s of the index and of all, in the index's order."""
    if not path.name.endswith(INDEX):
        return file_digest(path)
    digests = [file_digest(each) for each in (path, *_parts(path))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .pt or .pth file, on the CPU in float32, by their names in it.

    A pickle that would build anything but tensors, lists and dictionaries is refused, not run. Raises ConfigError.
    """
    try:
        raw = _raw(path)
    except FileNotFoundError:
        raise ConfigError(f"There is no file of weights {path}.") from None
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path.name} holds more than tensors, and reading it would run code that is in it. Ask its source for "
            "safetensors, or save its state_dict alone where you trust it."
        ) from None
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{path.name} cannot be read as {' or '.join(SUFFIXES[:3])} ({reason}).") from None
    found = _tensors_in(raw)
    if not found:
        raise ConfigError(f"{path.name} holds no tensors by name.")
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def _raw(path: Path) -> Any:
    if path.name.endswith(INDEX):
        return _sharded(path)
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)


def _parts(index: Path) -> list[Path]:
    """The files that an index names, each once; raises ConfigError for one that does not lie beside it."""
    names = list(dict.fromkeys(_weight_map(index).values()))
    if elsewhere := [name for name in names if Path(name).name != name]:
        raise ConfigError(f"{index.name} names a file that does not lie beside it: {listed(elsewhere, 1)}.")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise ConfigError(f"{index.name} names files that are not beside it: {listed(absent, 3)}.")
    return [index.parent / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    names = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{index.name} has no weight_map: it is not a safetensors index.")
    return names


def _sharded(index: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part in _parts(index):
        tensors |= load_file(part)
    if absent := sorted(_weight_map(index).keys() - tensors.keys()):
        raise ConfigError(f"The files of {index.name} lack tensors that it names: {listed(absent, 3)}.")
    return tensors


def _tensors_in(raw: Any) -> dict[str, Tensor]:
    """The tensors of a state_dict, also one below a usual key."""
    if not isinstance(raw, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(raw.get(wrapper), Mapping):
            return _tensors_in(raw[wrapper])
    return {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}


def _said(path: Path) -> dict[str, Any]:
    """What a start that medopt wrote says of itself: its variant, its stem, and strides that are not the stem's own."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as stream:
        notes = stream.metadata() or {}
    said = json.loads(notes.get(_NOTE, "{}")) or json.loads(notes.get("medopt", "{}")).get("facts", {})
    said = said.get(ARCHITECTURE, said)
    return {key: said[key] for key in ("variant", "stem", "strides") if said.get(key)}


def write_start(path: Path, start: Start, facts: Iterable[tuple[str, str]] = ()) -> None:
    """Write a start as safetensors by our names, with the scale of its images in it, whole or not at all.

    `facts` go into the header: where it comes from, its licence. Equal starts are equal files.
    """
    tensors = {name: value.contiguous() for name, value in in_rgb(start).items()} | scaling_tensors(start)
    note = {"variant": start.variant, "stem": start.stem, "layout": start.layout} | dict(facts)
    note |= {} if start.strides == "isotropic" else {"strides": start.strides}
    data = save(tensors, {_NOTE: json.dumps(note, sort_keys=True)})
    with atomic(path) as part:
        part.write_bytes(data)
