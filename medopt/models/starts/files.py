"""The tensors of a file of weights, without running anything that is in it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from medopt.core.errors import ConfigError
from medopt.models.starts.layouts import MEDOPT, recognise
from medopt.models.starts.onnx_layout import read_onnx
from medopt.models.starts.start import Start

ARCHITECTURE = "architecture"  # the fact of a file of ours that holds the settings of its network
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".onnx")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "weights")


def read_start(path: Path) -> Start:
    """The start in a file of weights; raises ConfigError where it cannot be read, or is no network that we know."""
    if path.suffix == ".onnx":
        return read_onnx(path)
    start = recognise(read_tensors(path), path.name)
    return _as_noted(start, path) if start.layout == MEDOPT.name else start


def _as_noted(start: Start, path: Path) -> Start:
    """The start with what a file of ours says of it that the shapes of its tensors do not: its stem and its variant."""
    try:
        with safe_open(path, framework="pt") as stream:
            noted = json.loads((stream.metadata() or {})["medopt"])["facts"][ARCHITECTURE]
        return replace(start, stem=str(noted["stem"]), variant=str(noted["variant"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return start


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors, .pt or .pth file, on the CPU in float32, by their names in it.

    A pickle that would build anything but tensors, lists and dictionaries is refused, not run. Raises ConfigError.
    """
    try:
        raw: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"There is no file of weights {path}.") from None
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path.name} holds more than tensors, and reading it would run code that is in it. Ask its source for "
            "safetensors, or save its state_dict alone where you trust it."
        ) from None
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{path.name} cannot be read as {' or '.join(SUFFIXES[:3])} ({reason}).") from None
    found = _tensors_in(raw)
    if not found:
        raise ConfigError(f"{path.name} holds no tensors by name.")
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def _tensors_in(raw: Any) -> dict[str, Tensor]:
    """The tensors of a state_dict, also one below a usual key."""
    if not isinstance(raw, Mapping):
        return {}
    for wrapper in _WRAPPERS:
        if isinstance(raw.get(wrapper), Mapping):
            return _tensors_in(raw[wrapper])
    return {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
