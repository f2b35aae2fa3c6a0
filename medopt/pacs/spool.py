"""The spool's files: received instances, and results to send. A file is safe on disk before anybody learns of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medopt.core.errors import BusyError
from medopt.core.files import storage, sync

STUDIES, RESULTS, WORK, LEDGER, AUDIT = "studies", "results", "work", "ledger.db", "audit.jsonl"
PART = ".part"
"""The suffix of a file that is not yet complete."""


class Spool:
    """A folder for one node. Names in it are hashes of UIDs: nothing that a sender wrote becomes a path."""

    def __init__(self, root: Path) -> None:
        """Create the folders, readable by their owner alone; raises StorageError."""
        self.root = root
        with storage(root):
            for name in ("", STUDIES, RESULTS, WORK):
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (STUDIES, RESULTS):  # created once: a folder for each study would cost one more fsync
                for number in range(256):
                    (root / name / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
                sync(root / name)
            sync(root)  # else a power cut may take a new spool with all that is in it
            with suppress(PermissionError):  # who may not read the parent has not made the spool in it
                sync(root.parent)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the spool to this process; raises BusyError if another node has it.

        The lock ends with the process, however that ends.
        """
        import fcntl  # not on Windows, where medopt runs without a node

        with (self.root / "node.lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(
                    f"Another node works in the spool {self.root}. Stop it, or give this one a spool of its own."
                ) from None
            yield

    def free_bytes(self) -> int:
        """Free space on the spool's disk for this user."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def write(self, name: str, content: Iterable[bytes]) -> None:
        """Write a file whole or not at all, so that it survives a power cut.

        A temporary name, fsync, rename, fsync of the folder. Raises OSError; no partial file stays.
        """
        path = self.root / name
        part = path.with_name(f"{uuid.uuid4().hex}{PART}")
        try:
            with part.open("xb") as stream:
                stream.writelines(content)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        sync(path.parent)

    def move_in(self, part: Path, name: str) -> None:
        """Give a temporary file of the spool, whose bytes are already on the disk, its name; raises OSError."""
        path = self.root / name
        part.replace(path)
        sync(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(OSError):
            (self.root / name).unlink()

    def clean_up(self) -> None:
        """After a start: remove the partial files and working folders of a process that ended early."""
        for part in self.root.rglob(f"*{PART}"):
            with suppress(OSError):
                part.unlink()
        for folder in (self.root / WORK).iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def working_folder(self, names: Iterable[str]) -> Iterator[Path]:
        """A temporary folder that holds links to these files alone."""
        folder = self.root / WORK / uuid.uuid4().hex
        try:
            folder.mkdir(mode=0o700)
            for name in names:
                os.link(self.root / name, folder / Path(name).name)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def spool_file(folder: str, study_uid: str, sop_uid: str) -> str:
    """The path below a spool of an instance in STUDIES or RESULTS; the subfolder follows from its study."""
    return f"{folder}/{_hashed(study_uid)[:2]}/{_hashed(sop_uid)}.dcm"


def _hashed(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
