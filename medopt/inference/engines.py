"""ONNX Runtime and OpenVINO behind one small interface: a batch in, logits out; and what this machine can run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from medopt.config import Profile
from medopt.core.errors import ReleaseError
from medopt.core.provenance import physical_cores, processor_quota
from medopt.core.records import FloatArray, batches
from medopt.core.telemetry import without_telemetry
from medopt.data.cache import load_prepared

with without_telemetry():
    import openvino

INPUT, OUTPUT, FEATURES = "image", "logits", "features"
TILES, TILE_WEIGHTS = "tiles", "tile_weights"
"""Of a network of tiles what lies within its graph: the tiles (N * T, C, H, W), and the weight of each (N, T)."""
Mode = Literal["latency", "throughput"]
"""What an engine is opened for: one image as soon as possible, or as many as possible a second."""
SPIN_US = "200"
"""How long idle threads of ONNX Runtime spin while they wait for work. Its default is more than 10 ms: a small network
then took 0.77 ms instead of 0.40, and other work beside it up to ten times as long. Without spinning: 0.78 ms."""
Both = tuple[NDArray[np.float64], NDArray[np.float64]]


class Engine(Protocol):
    """A loaded model."""

    name: str

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        """Logits (N, K) of a float32 batch (N, C, *size)."""

    def run_both(self, batch: FloatArray) -> Both:
        """Logits (N, K) and the last layer's input: features (N, F)."""


class OnnxRuntimeEngine:
    """ONNX Runtime on the CPU, or on the accelerator in its name."""

    def __init__(self, path: Path, threads: int = 0, mode: Mode = "latency", name: str = "onnxruntime") -> None:
        self.name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if mode == "throughput":  # idle threads sleep, and leave the processor to those that decode scans meanwhile
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        else:
            options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        self._session = onnxruntime.InferenceSession(str(path), options, providers=_providers(name))
        accelerator = PROVIDERS.get(name)
        if accelerator and self._session.get_providers()[0] != accelerator.provider:  # it fell back without a message
            raise ReleaseError(f"{name} found no device that {accelerator.provider} can use; its driver may be missing")

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        """Logits (N, K) of a float32 batch (N, C, *size)."""
        return np.asarray(self._session.run([OUTPUT], {INPUT: batch})[0], np.float64)

    def run_both(self, batch: FloatArray) -> Both:
        """Logits (N, K) and features (N, F)."""
        logits, features = self._session.run([OUTPUT, FEATURES], {INPUT: batch})
        return np.asarray(logits, np.float64), np.asarray(features, np.float64)


@dataclass(frozen=True, slots=True)
class Provider:
    """An accelerator of ONNX Runtime: its execution provider, its options, and the package that brings it."""

    provider: str
    options: Mapping[str, str]
    package: str


# float32 stays float32 (no TF32, no half precision), as on the CPU.
PROVIDERS = {
    "onnxruntime-cuda": Provider(
        "CUDAExecutionProvider", {"use_tf32": "0"}, "onnxruntime-gpu (in place of onnxruntime) and an NVIDIA driver"
    ),
    "onnxruntime-tensorrt": Provider(
        "TensorrtExecutionProvider",
        {"trt_fp16_enable": "0", "trt_int8_enable": "1"},
        "onnxruntime-gpu (in place of onnxruntime), tensorrt and an NVIDIA driver",
    ),
}


def _providers(name: str) -> list[Any]:
    """The accelerator first, the CPU for operations that it lacks."""
    if name not in PROVIDERS:
        return ["CPUExecutionProvider"]
    accelerator, present = PROVIDERS[name], onnxruntime.get_available_providers()
    if accelerator.provider not in present:
        raise ReleaseError(
            f"{name} is not available here: this ONNX Runtime has no {accelerator.provider} (it has "
            f"{', '.join(present)}). Install {accelerator.package}, or take another engine: {', '.join(ENGINES)}."
        )
    first = [(accelerator.provider, dict(accelerator.options))]
    if name == "onnxruntime-tensorrt" and "CUDAExecutionProvider" in present:
        first.append(("CUDAExecutionProvider", dict(PROVIDERS["onnxruntime-cuda"].options)))
    return [*first, "CPUExecutionProvider"]


@cache
def openvino_core() -> openvino.Core:
    """The one core of this process.

    A core's CPU plugin replaces the thread's alternate signal stack (sigaltstack) and restores the former one when it
    is destroyed. With two cores, the first to be destroyed leaves the second a stack that is no longer mapped, and the
    next signal (SIGTERM, the end of a child process) kills the process. So there is one core, never destroyed.
    """
    return openvino.Core()


class OpenVinoEngine:
    """OpenVINO on the CPU, or on the device in its name, in float32 where the model is float (no silent bfloat16).

    latency: all threads work on one batch. throughput: a batch is split among streams of few threads each, which do
    not wait for one another.
    """

    def __init__(self, path: Path, threads: int = 0, mode: Mode = "latency", name: str = "openvino") -> None:
        self.name = name
        core, device = openvino_core(), DEVICES.get(name, "CPU")
        if not any(found.split(".")[0] == device for found in core.available_devices):
            raise ReleaseError(
                f"{name} is not available here: OpenVINO finds no {device} (it finds "
                f"{', '.join(core.available_devices)}). Install its driver, or take another engine: "
                f"{', '.join(ENGINES)}."
            )
        options = {"PERFORMANCE_HINT": mode.upper()}
        if device != "NPU":  # which computes in half precision only
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if threads and device == "CPU":
            options["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = core.compile_model(core.read_model(path), device, options)
        self._request = compiled.create_infer_request() if mode == "latency" else None
        self._queue = None if mode == "latency" else openvino.AsyncInferQueue(compiled)

    def run(self, batch: FloatArray) -> NDArray[np.float64]:
        """Logits (N, K) of a float32 batch (N, C, *size)."""
        return self._run(batch, (OUTPUT,))[0]

    def run_both(self, batch: FloatArray) -> Both:
        """Logits (N, K) and features (N, F)."""
        logits, features = self._run(batch, (OUTPUT, FEATURES))
        return logits, features

    def _run(self, batch: FloatArray, names: tuple[str, ...]) -> list[NDArray[np.float64]]:
        if self._request is not None:
            outputs = self._request.infer({INPUT: batch})
            return [np.array(outputs[name], np.float64) for name in names]
        assert self._queue is not None
        parts: dict[int, list[NDArray[np.float64]]] = {}

        def keep(request: openvino.InferRequest, start: int) -> None:
            parts[start] = [np.array(request.get_tensor(name).data, np.float64) for name in names]

        self._queue.set_callback(keep)
        for rows in batches(len(batch), -(-len(batch) // len(self._queue))):
            self._queue.start_async({INPUT: batch[rows]}, rows.start)
        self._queue.wait_all()
        return [np.concatenate([parts[start][index] for start in sorted(parts)]) for index in range(len(names))]


DEVICES = {"openvino-gpu": "GPU", "openvino-npu": "NPU"}
"""Intel's accelerators as OpenVINO calls them."""

# Available wherever medopt is installed; those of PROVIDERS and DEVICES only where their packages and drivers are.
ENGINES: dict[str, Callable[[Path, int, Mode], Engine]] = {
    "onnxruntime": OnnxRuntimeEngine,
    "openvino": OpenVinoEngine,
}


def open_engine(name: str, path: Path, threads: int = 0, mode: Mode = "latency") -> Engine:
    """Load an ONNX file into the named engine; `threads` 0 takes all cores, or as many as a container's quota allows.

    `mode`: latency for one image at a time, throughput for batches; the logits are the same. Raises ReleaseError where
    the engine is unknown, is not available here, or refuses the file.
    """
    if name not in (*ENGINES, *PROVIDERS, *DEVICES):
        raise ReleaseError(f"There is no engine {name!r}; known: {', '.join([*ENGINES, *PROVIDERS, *DEVICES])}.")
    if not threads and processor_quota() is not None:  # the engines count processors and know no quota
        threads = physical_cores()
    try:
        if name in PROVIDERS:
            return OnnxRuntimeEngine(path, threads, mode, name)
        if name in DEVICES:
            return OpenVinoEngine(path, threads, mode, name)
        return ENGINES[name](path, threads, mode)
    except ReleaseError:
        raise
    except Exception as error:  # each engine has its own exception types, and none of them shares a base
        raise ReleaseError(f"{name} cannot load {path.name}: {' '.join(str(error).split())[:300]}") from error


def run_files(engine: Engine, files: Sequence[Path], size: int = 16) -> NDArray[np.float64]:
    """Logits (N, K) of prepared images on disk, a batch of at most `size` of them in memory at a time."""
    return np.concatenate([engine.run(load_batch(files[part])) for part in file_batches(files, size)])


def file_batches(files: Sequence[Path], most: int = 16) -> Iterator[slice]:
    """Slices of so many prepared images as one batch may have: `most`, fewer where they are large."""
    return batches(len(files), at_once(load_prepared(files[0]).size, most) if len(files) else most)


def at_once(numbers: int, most: int = 16) -> int:
    """How many images of so many numbers make a batch: at most 2**25 numbers, 128 MB, and at least one image."""
    return max(1, min(most, 2**25 // numbers))


def load_batch(files: Sequence[Path]) -> FloatArray:
    """Prepared images as one batch (N, C, *size)."""
    return np.stack([load_prepared(path) for path in files])


_VNNI = {"avx512_vnni", "avx_vnni", "asimddp"}  # the last is 64-bit Arm's, whose sums do not saturate either


@cache
def processor_flags() -> frozenset[str]:
    """The processor's feature flags; empty where they are not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(
        word
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    )


def unsupported_reason(profile: Profile) -> str:
    """Why this machine cannot run models of the profile without other results; empty where it can.

    Processors without VNNI add products of 8-bit weights in 16 bits and saturate, without any message: errors of a
    third of a layer's output were measured.
    """
    if profile == "cpu-vnni" and not processor_flags() & _VNNI:
        return "this processor has no VNNI, and would saturate in the products of 8-bit weights"
    if profile == "cuda-tensorrt" and "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        return "ONNX Runtime has no TensorRT here (package onnxruntime-gpu, and an NVIDIA GPU)"
    return ""
