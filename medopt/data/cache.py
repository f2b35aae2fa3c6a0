"""Prepared tensors on disk, keyed by what the file holds and by the chain, never by the path.

A changed file or a changed chain has another key, so nothing stale is ever read. Entries are written whole or not at
all; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from medopt.errors import DataError, StorageError, listed
from medopt.imaging.series_index import series_files
from medopt.provenance import atomic, file_digest
from medopt.records import Case, FloatArray, Reporter, SilentReporter
from medopt.transforms.prepare import PrepareChain


def content_digest(path: Path, series: str = "") -> str:
    """SHA-256 of a file, or of all files of a folder (of one series of it) in the order of their digests."""
    if path.is_dir():
        files = series_files(path, series) if series else [item for item in path.rglob("*") if item.is_file()]
        return hashlib.sha256("".join(sorted(map(file_digest, files))).encode()).hexdigest()
    return file_digest(path)


class PreparedCache:
    """A folder of `.npy` files, one a prepared image, memory-mapped when read."""

    def __init__(self, folder: Path, chain: PrepareChain) -> None:
        self.folder = folder / chain.fingerprint[:16]
        self.chain = chain
        self.shape = (chain.config.channels, *chain.config.size)

    def fill(
        self, cases: Sequence[Case], root: Path, reporter: Reporter | None = None, workers: int | None = None
    ) -> list[Path]:
        """Prepare what is not there yet; returns one file a case, in the order of `cases`.

        Decoding runs in threads: the decoders and torch release the interpreter. Raises DataError that lists every
        image that could not be read, with its reason.
        """
        reporter = reporter or SilentReporter()
        digests: dict[str, str] = {}
        advance = reporter.progress(len(cases), "preparing images")
        refused: list[str] = []

        def make(case: Case) -> Path | None:
            try:
                return self._entry(case, root, digests)
            except DataError as error:
                refused.append(str(error))
                return None
            finally:
                advance(1)

        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            done = list(pool.map(make, cases))
        if refused:
            raise DataError(f"{len(refused)} of {len(cases)} images were refused: {listed(sorted(refused))}")
        return [path for path in done if path is not None]

    def _entry(self, case: Case, root: Path, digests: dict[str, str]) -> Path:
        name, _, member = case.image.partition("#") if not (root / case.image).exists() else (case.image, "", "")
        source = case.image if (root / name).is_dir() else name  # an archive is hashed once for all its members
        try:
            digests[source] = digests.get(source) or content_digest(root / name, "" if source == name else member)
        except OSError as error:
            raise DataError(f"{case.image}: {error.strerror or error}.") from None
        key = hashlib.sha256(f"{digests[source]}#{member}".encode()).hexdigest()
        path = self.folder / key[:2] / f"{key[2:34]}.npy"
        if not self._is_whole(path):
            # The full path goes to the reader, the manifest's own to the message.
            array = self.chain(f"{root / case.image}").numpy()
            entry = io.BytesIO()
            np.save(entry, np.ascontiguousarray(array, np.float32))
            with atomic(path) as part:
                part.write_bytes(entry.getbuffer())  # saved to a file, numpy would not say that the disk is full
        return path

    def _is_whole(self, path: Path) -> bool:
        try:
            found = np.load(path, mmap_mode="r")
            return bool(found.shape == self.shape and found.dtype == np.float32)
        except (OSError, ValueError, EOFError):
            return False


def load_prepared(path: Path) -> FloatArray:
    """One cached image, (C, *size), mapped from disk.

    Raises StorageError where the entry vanished since the cache was filled.
    """
    try:
        array: FloatArray = np.load(path, mmap_mode="r")
        return array
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(f"The prepared image {path.name} vanished or was damaged ({error}); run again.") from None


def as_tensor(path: Path) -> torch.Tensor:
    """One cached image as a tensor of its own, (C, *size)."""
    return torch.from_numpy(np.array(load_prepared(path)))
