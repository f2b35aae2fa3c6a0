"""Where a result comes from: digests of values, package versions, the code's version and the machine."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medopt import __version__

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self")
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


def usable_cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Processors that this process may use at once: those it may run on, at most its container's quota, rounded up."""
    count = len(_allowed_processors())
    quota = processor_quota(groups, own)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def physical_cores() -> int:
    """As `usable_cores`; two threads of one core count once, and an unknown topology as one core each."""
    cpus = Path("/sys/devices/system/cpu")
    siblings = set()
    for cpu in _allowed_processors():
        try:
            siblings.add((cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text())
        except OSError:
            siblings.add(str(cpu))
    return min(len(siblings), usable_cores())


def _allowed_processors() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def processor_quota(groups: Path = _GROUPS, own: Path = _OWN) -> float | None:
    """How many processors' time the control groups of this process allow (`docker run --cpus`); None: all.

    The smallest quota counts, of the group or of one above it; cgroup version 2 (cpu.max) and 1 (cpu.cfs_quota_us).
    """
    try:
        lines = [line.split(":", 2) for line in (own / "cgroup").read_text().splitlines()]
    except OSError:
        return None  # no Linux: there are none
    quotas = []
    for _, controllers, path in lines:
        if not controllers:
            quotas += [_quota_2(folder) for folder in _group_folders(groups, path)]
        elif "cpu" in controllers.split(","):
            roots = (groups / "cpu", groups / controllers)
            quotas += [_quota_1(folder) for root in roots for folder in _group_folders(root, path)]
    return min((quota for quota in quotas if quota), default=None)


def _group_folders(root: Path, path: str) -> list[Path]:
    """A control group and those above it; inside a container only the root may be there."""
    place = root / path.strip("/")
    return [folder for folder in (place, *place.parents) if folder == root or root in folder.parents]


def _quota_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # not limited ("max"), or a group that only the host can see
        return None


def _quota_1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def limit_threads() -> None:
    """Let numerical libraries that this process loads from now on start no more threads than its container's quota.

    They count the processors and know no quota: with half a processor, two threads take twice the time of one.
    """
    if processor_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
