"""Where a result comes from: digests of values, package versions, the code's version and the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medopt import __version__

PACKAGES = (
    "medopt",
    "torch",
    "monai",
    "numpy",
    "pydicom",
    "nibabel",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "mlflow",
)


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that a number depends on; those not installed are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True, slots=True)
class CodeVersion:
    """medopt's version; in a git checkout also the commit, and whether the tree had no other changes."""

    version: str
    commit: str | None = None
    clean: bool | None = None

    def __str__(self) -> str:
        commit = f", commit `{self.commit}`" if self.commit else ""
        changed = " with changes that are in no commit" if self.clean is False else ""
        return f"medopt {self.version}{commit}{changed}"


@dataclass(frozen=True, slots=True)
class Machine:
    """Processor, cores and interpreter: what a latency belongs to."""

    cpu: str
    cores: int | None
    python: str
    system: str


def code_version() -> CodeVersion:
    """The version that runs."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return CodeVersion(__version__)

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return CodeVersion(__version__, git("rev-parse", "HEAD"), not git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return CodeVersion(__version__)


def machine() -> Machine:
    """The machine that this process runs on."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return Machine(model, os.cpu_count(), platform.python_version(), platform.system())


def physical_cores() -> int:
    """Cores that this process may use; two threads of one core count once, and an unknown topology as one core each."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cpus = Path("/sys/devices/system/cpu")
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add((cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return len(siblings)
