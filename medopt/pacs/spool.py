"""The spool's files: what was received, what is to be sent. A file is safe on disk before anyone is told of it."""

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

STUDIES, RESULTS, AT_WORK, LEDGER, AUDIT = "studies", "results", "work", "ledger.db", "audit.jsonl"
_PART = ".part"


class Spool:
    """A folder for one node. Names in it are hashes of UIDs: nothing that a sender says becomes a path."""

    def __init__(self, root: Path) -> None:
        """Make the folders, readable by their owner alone; raises StorageError."""
        self.root = root
        with storage(root):
            for name in ("", STUDIES, RESULTS, AT_WORK):
                (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            for kind in (STUDIES, RESULTS):  # made once: a folder for each study is one more wait for the disk
                for shelf in range(256):
                    (root / kind / f"{shelf:02x}").mkdir(mode=0o700, exist_ok=True)
                sync(root / kind)

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keep the spool to this process; raises BusyError where another node has it.

        The lock goes with the process, however that ends.
        """
        import fcntl  # where medopt runs without a node, as on Windows, there is none

        with (self.root / "node.lock").open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(
                    f"Another node works in the spool {self.root}. Stop it, or give this one a spool of its own."
                ) from None
            yield

    def free_bytes(self) -> int:
        """Room left on the spool's disk for this user."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def place(self, kind: str, group: str, uid: str) -> str:
        """The path below the spool of an object by its UID, on the shelf of its study."""
        return hashed_place(kind, group, uid)

    def write(self, name: str, content: Iterable[bytes]) -> None:
        """Write a file whole or not at all, so that it outlives a power cut.

        A temporary name, fsync, rename, fsync of the folder. Raises OSError; nothing half-written stays.
        """
        path = self.root / name
        part = path.with_name(f"{uuid.uuid4().hex}{_PART}")
        try:
            with part.open("xb") as stream:
                stream.writelines(content)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        sync(path.parent)

    def adopt(self, part: Path, name: str) -> None:
        """Give a file of the spool, whose bytes are on the disk already, its name; raises OSError."""
        path = self.root / name
        part.replace(path)
        sync(path.parent)

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""
        with suppress(OSError):
            (self.root / name).unlink(missing_ok=True)

    def clean(self) -> None:
        """After a start: remove what an ended process left half-written, and its working folders."""
        for part in self.root.rglob(f"*{_PART}"):
            with suppress(OSError):
                part.unlink()
        for folder in (self.root / AT_WORK).iterdir():
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def gathered(self, names: Iterable[str]) -> Iterator[Path]:
        """A folder that holds these files alone, as links, while they are at work."""
        folder = self.root / AT_WORK / uuid.uuid4().hex
        try:
            folder.mkdir(mode=0o700)
            for name in names:
                os.link(self.root / name, folder / Path(name).name)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def hashed_place(kind: str, group: str, uid: str) -> str:
    """The path below a spool of an object by its UID, on the shelf of its study."""
    return f"{kind}/{hashed(group)[:2]}/{hashed(uid)}.dcm"


def hashed(uid: str) -> str:
    """A UID as a file's name."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]
