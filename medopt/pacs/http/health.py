"""Whether the node does its work: a sentence for each part that does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medopt.pacs.intake import Intake, Refusal

OK = "ok"
_LEAST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class NodeHealth:
    """Where to feel the node's pulse: each returns whether that part is up."""

    receiver: Callable[[], bool]
    worker: Callable[[], bool]
    stopping: Callable[[], bool]


def checks(vital: NodeHealth, intake: Intake) -> dict[str, str]:
    """Each part of the node, `ok` or why not."""
    try:
        intake.room()
        disk = OK
    except Refusal as refusal:
        disk = f"{refusal.reason}: instances are refused (limits.free_mb)"
    return {
        "receiver": OK if vital.receiver() else "the DICOM port is closed",
        "worker": OK if vital.worker() else "the worker process does not run (it starts, or the release is refused)",
        "disk": disk,
        "node": "it stops" if vital.stopping() else OK,
    }


class SpoolSize:
    """Bytes of all files below a folder. Looked at seldom: at most a twentieth of the time goes into it."""

    def __init__(self, root: Path) -> None:
        self._root, self._bytes, self._again = root, 0, 0.0

    def __call__(self) -> int:
        """As of the last look."""
        begun = time.monotonic()
        if begun >= self._again:
            self._bytes = _size(self._root)
            took = time.monotonic() - begun
            self._again = begun + max(_LEAST_SECONDS, 20 * took)
        return self._bytes


def _size(folder: Path | str) -> int:
    total = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                total += _size(entry.path) if entry.is_dir(follow_symlinks=False) else entry.stat().st_size
    except FileNotFoundError:  # it went meanwhile
        pass
    return total
