"""Prepared tensors on disk, keyed by what the file holds and by the chain, never by the path.

A changed file or a changed chain has another key, so nothing stale is ever read. Entries are written whole or not at
all, by however many processes at once; one that is cut off or whose bytes changed is made again.

The chain's values are whole 65535ths: kept as 16-bit integers they lose nothing and take half the room of float32.
Behind them stands a small JSON of how the scan was acquired, so that nothing has to be read twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medopt.core.errors import ConfigError, DataError, StorageError, listed
from medopt.core.files import atomic, file_digest
from medopt.core.records import Case, FloatArray
from medopt.core.reporter import Reporter, SilentReporter
from medopt.imaging.acquisition import Acquisition
from medopt.imaging.parallel import parallel_map
from medopt.imaging.scan_path import files_below, split_part
from medopt.imaging.series_index import series_files
from medopt.transforms.prepare import LEVELS, PrepareChain, from_levels

_DEFAULT_GB = 100.0


def content_digest(path: Path, series: str = "") -> str:
    """SHA-256 of a file, or of all files of a folder (of one series of it) in the order of their digests."""
    if path.is_dir():
        files = (
            series_files(path, series)
            if series
            else [item for item in map(path.joinpath, files_below(path)) if item.is_file()]
        )
        return hashlib.sha256("".join(sorted(map(file_digest, files))).encode()).hexdigest()
    return file_digest(path)


class PreparedCache:
    """A folder of `.npy` files, one a prepared image, memory-mapped when read.

    It holds at most `max_gb` (MEDOPT_CACHE_GB, else 100): what was not used for the longest time goes first, and never
    what the present cases need.
    """

    def __init__(self, folder: Path, chain: PrepareChain, max_gb: float | None = None) -> None:
        self.root = folder
        self.folder = folder / chain.fingerprint[:16]
        self.chain = chain
        self.shape = (chain.config.input_channels, *chain.config.size)
        self.max_bytes = int((_limit_gb() if max_gb is None else max_gb) * 1e9)

    def fill(
        self, cases: Sequence[Case], root: Path, reporter: Reporter | None = None, workers: int | None = None
    ) -> list[Path]:
        """Prepare what is not there yet; returns one file a case, in the order of `cases`.

        Raises DataError that lists every image that could not be read, with its reason.
        """
        reporter = reporter or SilentReporter()
        digests: dict[str, str] = {}
        advance = reporter.progress(len(cases), "preparing images")
        entries: list[Path] = []
        refused: list[str] = []

        def make(case: Case) -> tuple[Path | None, str]:
            try:
                return self._entry(case, root, digests), ""
            except DataError as error:
                return None, str(error)

        for path, reason in parallel_map(make, cases, workers):
            if path is None:
                refused.append(reason)
            else:
                entries.append(path)
            advance(1)
        if refused:
            raise DataError(f"{len(refused)} of {len(cases)} images were refused: {listed(sorted(refused))}")
        self._make_room(entries)
        return entries

    def _entry(self, case: Case, root: Path, digests: dict[str, str]) -> Path:
        images = case.channels or (case.image,)
        content = "+".join(image_digest(root, image, digests) if image else "missing" for image in images)
        key = hashlib.sha256(content.encode()).hexdigest()
        path = self.folder / key[:2] / f"{key[2:34]}.npy"
        if self._is_whole(path):
            os.utime(path)  # used now: the last to go
        else:
            name = f"{root / case.image}"
            paths = tuple(f"{root / image}" if image else "" for image in case.channels)
            volume = self.chain.read(paths or name)
            facts = Acquisition.from_volume(volume)
            _write_entry(path, self.chain.consume(volume, f"{name}: ").numpy(), facts)
        return path

    def _is_whole(self, path: Path) -> bool:
        try:
            levels = np.load(path, mmap_mode="r")
            facts, checksum = _trailer(path)
            _parse_facts(facts)  # an earlier version may have noted others
            is_right = levels.shape == self.shape and levels.dtype == np.uint16
            return bool(is_right and zlib.crc32(facts, zlib.crc32(levels)) == checksum)
        except (OSError, ValueError, EOFError, TypeError, KeyError):
            return False

    def _make_room(self, needed: Iterable[Path]) -> None:
        kept, entries = set(needed), []
        for path in self.root.rglob("*.npy"):
            with suppress(FileNotFoundError):  # another process makes room as well
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            if path not in kept:
                path.unlink(missing_ok=True)
                excess -= size


def image_digest(root: Path, image: str, digests: dict[str, str]) -> str:
    """The digest of an image's file, and which part of it it is; raises DataError where it is not there.

    `digests` keeps the digest of each file, so that an archive is hashed once for all its members.
    """
    place, part = split_part(root / image)
    series = part if place.is_dir() else ""
    source = f"{place}#{series}"
    try:
        digests[source] = digests.get(source) or content_digest(place, series)
    except OSError as error:
        raise DataError(f"{image}: {error.strerror or error}.") from None
    return f"{digests[source]}#{part}"


def _limit_gb() -> float:
    text = os.environ.get("MEDOPT_CACHE_GB", "")
    try:
        limit = float(text or _DEFAULT_GB)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise ConfigError(f"MEDOPT_CACHE_GB is {text!r}: give the largest size of the cache in gigabytes, as in 50.")
    return limit


def _write_entry(path: Path, image: FloatArray, facts: Acquisition) -> None:
    """`image` (C, *size) in 0..1; behind it the facts, their length, and a CRC-32 of both."""
    stored = np.rint(np.ascontiguousarray(image) * np.float32(LEVELS)).astype(np.uint16)
    noted = json.dumps(asdict(facts)).encode()
    entry = io.BytesIO()
    np.save(entry, stored)
    entry.write(noted + len(noted).to_bytes(4, "little") + zlib.crc32(noted, zlib.crc32(stored)).to_bytes(4, "little"))
    with atomic(path) as part:
        part.write_bytes(entry.getbuffer())  # saved to a file, numpy would not say that the disk is full


def _trailer(path: Path) -> tuple[bytes, int]:
    """The facts as they were written, and the checksum."""
    with path.open("rb") as stream:
        end = stream.seek(-8, os.SEEK_END)
        length, checksum = (int.from_bytes(stream.read(4), "little") for _ in range(2))
        stream.seek(max(0, end - length))
        return stream.read(length), checksum


def load_stored(path: Path) -> NDArray[Any]:
    """One cached image as it is stored, (C, *size): 16-bit levels, as a copy in memory.

    Raises StorageError where the entry vanished since the cache was filled.
    """
    return np.array(_mapped(path))


def _mapped(path: Path) -> NDArray[Any]:
    try:
        levels: NDArray[Any] = np.load(path, mmap_mode="r")
        return levels
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(f"The prepared image {path.name} vanished or was damaged ({error}); run again.") from None


def load_prepared(path: Path) -> FloatArray:
    """One cached image, (C, *size) in 0..1.

    Raises StorageError where the entry vanished since the cache was filled.
    """
    levels = _mapped(path)
    return from_levels(levels) if levels.dtype == np.uint16 else levels


class PreparedImages(Sequence[FloatArray]):
    """Cached images by number, each read when it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return load_prepared(self.files[index])


def _parse_facts(noted: bytes) -> Acquisition:
    facts = json.loads(noted)
    return Acquisition(**facts | {key: tuple(facts[key]) for key in ("spacing_mm", "shape")})


def load_facts(path: Path) -> Acquisition:
    """How the scan of a cached image was acquired; raises StorageError where the entry vanished or was damaged."""
    try:
        return _parse_facts(_trailer(path)[0])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"The prepared image {path.name} vanished or was damaged ({error}); run again.") from None


def as_tensor(path: Path) -> torch.Tensor:
    """One cached image as a tensor of its own, (C, *size) in 0..1."""
    return torch.from_numpy(np.array(load_prepared(path)))
