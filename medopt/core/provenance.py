"""Where a result comes from: hashes, pseudonyms, package versions, the code's version, and safe writing."""

from __future__ import annotations

import csv
import errno
import hashlib
import hmac
import json
import os
import platform
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from medopt import __version__
from medopt.core.errors import StorageError

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


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pseudonym(identifier: str) -> str:
    """A stable stand-in for a patient's or an image's identifier: 16 hex digits of a keyed hash.

    The key is MEDOPT_PSEUDONYM_KEY. Set it at a site whose patient numbers are short enough to be tried one by one.
    """
    key = os.environb.get(b"MEDOPT_PSEUDONYM_KEY", b"medopt")
    return hmac.digest(key, identifier.encode(), "sha256").hex()[:16]


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
    root = Path(__file__).resolve().parent.parent
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


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write below `path` into a StorageError with the way out."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"The disk is full: writing {path} failed. Nothing half-written was left behind. Free some space, then "
                "give the same command again (a run goes on where it was), or write to another disk."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{path} may not be written to ({error.strerror}). Change its permissions or choose another folder."
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise StorageError(
                f"{path} cannot be written: a file stands where a folder is needed, or a folder where a file is "
                f"({error.filename}). Move it away or choose another name."
            ) from error
        raise


def sync(path: Path) -> None:
    """Return once a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary name, then flushes it to disk and renames it.

    Raises StorageError where the disk is full, the folder may not be written to, or is none.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder", str(path))
            yield part
            sync(part)
            part.replace(path)
    finally:
        with suppress(OSError):  # a folder that may not be written to refuses this, too
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of one length as a CSV file with their names above, whole or not at all."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")
