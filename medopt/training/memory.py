"""How much memory there is and was taken, and whether an error says that it ran out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self")
_REFUSALS = ("can't allocate memory", "not enough memory", "out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's allocator for the CPU, and libraries, raise a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device that trains."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_bytes()


def available_bytes(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes of main memory that are free to this process: the machine's, or less where a container is limited.

    A container's limit stands in its control group, or in one above it; memory that only caches files counts as free.
    """
    return min([psutil.virtual_memory().available, *_free_of_groups(groups, own)])


def _free_of_groups(groups: Path, own: Path) -> Iterator[int]:
    """What each limited control group of this process still has, of version 2 and version 1."""
    try:
        lines = [line.split(":", 2) for line in (own / "cgroup").read_text().splitlines()]
    except OSError:
        return  # no Linux: there are none
    for _, controllers, path in lines:
        if not controllers:
            yield from _free(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _free(groups / "memory", path, *names)


def _free(root: Path, path: str, limit: str, used: str, cached: str) -> Iterator[int]:
    place = root / path.strip("/")
    for folder in (place, *place.parents):
        if folder != root and root not in folder.parents:
            return
        try:
            limited_to, taken = int((folder / limit).read_text()), int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not limited ("max"), or a group that only the host can see
            continue
        yield max(0, limited_to - taken + int(stat.get(cached, 0)))


def peak_bytes(own: Path = _OWN) -> int:
    """The peak of this process's main memory, in bytes.

    Linux tells it for the program that runs; getrusage would count what stood there before it was started.
    """
    try:
        lines = (own / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
