"""Files written whole or not at all, flushed to disk, and their digests."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medopt.core.errors import StorageError, storage_error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn an error of the system while writing below `path` into a StorageError with the way out."""
    try:
        yield
    except OSError as error:
        if known := storage_error(error, path):
            raise known from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise StorageError(
                f"{path} cannot be written: there is a file where a folder is needed, or a folder where a file is "
                f"({error.filename}). Move it away or choose another name."
            ) from error
        raise


@contextmanager
def local_disk() -> Iterator[None]:
    """Turn what the disk refuses anywhere in the block into a StorageError; other errors pass."""
    try:
        yield
    except OSError as error:
        if known := storage_error(error):
            raise known from error
        raise


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: yields a temporary path, then flushes the file to disk and renames it.

    Raises StorageError where the disk is full, or the folder may not be written to or is not a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic(Path(folder) / "table.csv") as part:
    ...         _ = part.write_text("case_id,logit")
    ...     (Path(folder) / "table.csv").read_text()
    'case_id,logit'
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
        with suppress(OSError):  # in a folder that may not be written to, this fails, too
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length as a CSV file with a header, whole or not at all."""
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")
