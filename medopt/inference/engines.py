"""ONNX Runtime and OpenVINO behind one small interface: a batch in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import openvino
from numpy.typing import NDArray

from medopt.data.cache import load_prepared
from medopt.errors import ReleaseError
from medopt.records import FloatArray, batches

INPUT, OUTPUT, FEATURES = "image", "logits", "features"


Both = tuple[NDArray[np.float64], NDArray[np.float64]]


class Engine(Protocol):
    """A loaded model."""

    name: str

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        """Logits (N, K) of a float32 batch (N, C, *size)."""

    def run_both(self, batch: FloatArray) -> Both:
        """Logits (N, K), and what the classifier saw: features (N, F)."""


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        """Logits (N, K) of a float32 batch (N, C, *size)."""
        return np.asarray(self._session.run([OUTPUT], {INPUT: batch})[0], np.float64)

    def run_both(self, batch: FloatArray) -> Both:
        """Logits (N, K) and features (N, F)."""
        logits, features = self._session.run([OUTPUT, FEATURES], {INPUT: batch})
        return np.asarray(logits, np.float64), np.asarray(features, np.float64)


@cache
def openvino_core() -> openvino.Core:
    """The one core of this process.

    A core's CPU plugin takes over the thread's alternate signal stack (sigaltstack) and, when it goes, gives back what
    it found. Of two cores the first to go leaves the second a stack that is no longer mapped, and the next signal
    (SIGTERM, a child process that ends) then kills the process. So there is one, and it stays.
    """
    return openvino.Core()


class OpenVinoEngine:
    """OpenVINO on the CPU, in float32 where the model is float (no silent bfloat16)."""

    name = "openvino"

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        core = openvino_core()
        self._request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        """Logits (N, K) of a float32 batch (N, C, *size)."""
        return np.array(self._request.infer({INPUT: batch})[OUTPUT], np.float64)

    def run_both(self, batch: FloatArray) -> Both:
        """Logits (N, K) and features (N, F)."""
        found = self._request.infer({INPUT: batch})
        return np.array(found[OUTPUT], np.float64), np.array(found[FEATURES], np.float64)


ENGINES: dict[str, Callable[[Path, int], Engine]] = {"onnxruntime": OnnxRuntimeEngine, "openvino": OpenVinoEngine}


def open_engine(name: str, path: Path, threads: int = 0) -> Engine:
    """Load an ONNX file into the named engine; `threads` 0 takes all cores.

    Raises ReleaseError where the engine is unknown or refuses the file.
    """
    if name not in ENGINES:
        raise ReleaseError(f"There is no engine {name!r}; known: {', '.join(ENGINES)}.")
    try:
        return ENGINES[name](path, threads)
    except Exception as error:  # each engine has its own exception types, and none of them shares a base
        raise ReleaseError(f"{name} cannot load {path.name}: {' '.join(str(error).split())[:300]}") from error


def run_files(engine: Engine, files: Sequence[Path], size: int = 16) -> NDArray[np.float64]:
    """Logits (N, K) of prepared images on disk, a batch of them in memory at a time."""
    return np.concatenate([engine.run(load_batch(files[part])) for part in batches(len(files), size)])


def load_batch(files: Sequence[Path]) -> FloatArray:
    """Prepared images as one batch (N, C, *size)."""
    return np.stack([load_prepared(path) for path in files])
