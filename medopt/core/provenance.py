"""Where a result comes from: digests of values, package versions, the code's version and the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_version() -> dict[str, Any]:
    """medopt's version and, in a git checkout, the commit and whether it was clean."""
    found: dict[str, Any] = {"version": __version__}
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return found

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        found["commit"] = git("rev-parse", "HEAD")
        found["clean"] = not git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        pass
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and interpreter: what a latency belongs to."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def physical_cores() -> int:
    """Cores that this process may use, two threads of one core counted once; what is not known counts as a core."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    places = Path("/sys/devices/system/cpu")
    siblings = set()
    for one in allowed:
        try:
            siblings.add((places / f"cpu{one}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(one))
    return len(siblings)
