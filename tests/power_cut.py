"""A disk that forgets: what a power cut would leave of a folder, from the flushes that were really made.

A file is kept with the bytes that it had at its last fsync, and under a name only if its folder was flushed since the
name was given. The operating system may write names earlier than that: `early` has those of now.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

Step = Callable[[str], None]


class Disk:
    """Records the calls that flush, rename and remove below `root`; `on_step` is called after each of them.

    `fail` is the number of the call, from 1, that raises an OSError instead of doing its work.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, on_step: Step = lambda name: None) -> None:
        self.root, self.on_step, self.fail = root, on_step, 0
        self.calls: list[str] = []
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._before = {path.stat().st_ino for path in [root, *root.rglob("*")] if path.is_dir()}
        real_sync, real_replace = os.fsync, os.replace

        def fsync(handle: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
            self._count("fsync folder" if is_folder else "fsync file")
            real_sync(handle)
            path = Path(f"/proc/self/fd/{handle}").readlink()
            if is_folder:
                self._names[os.fstat(handle).st_ino] = {child.name: child.stat().st_ino for child in path.iterdir()}
            else:
                self._bytes[os.fstat(handle).st_ino] = path.read_bytes()  # without what a stream still holds
            self.on_step(self.calls[-1])

        def replace(source: str | Path, target: str | Path) -> None:
            self._count("rename")
            real_replace(source, target)
            self.on_step("rename")

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.fail:
            raise OSError(28, "No space left on device")

    def bytes_of(self, path: Path) -> bytes | None:
        """What a file of this name holds after a power cut; None where the name or the bytes are gone."""
        at = self.root.stat().st_ino
        for part in path.relative_to(self.root).parts:
            names = self._names.get(at)
            if names is None or part not in names:
                return None
            at = names[part]
        return self._bytes.get(at)

    def early(self, pattern: str) -> dict[Path, bytes | None]:
        """The files whose names were written before the folder was flushed: their bytes, None if those are gone."""
        return {path: self._bytes.get(path.stat().st_ino) for path in self.root.rglob(pattern)}
