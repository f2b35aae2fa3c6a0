"""Download the files of a card: checked against the published checksum, unpacked to where the manifest expects them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import pooch
from requests.exceptions import HTTPError, RequestException

from medopt.core.errors import DataError
from medopt.core.files import atomic, file_digest, storage
from medopt.core.reporter import Reporter, SilentReporter
from medopt.imaging.scan_path import safe_relative_path
from medopt.manifest.card import Card, Download

CHUNK = 1 << 18
TIMEOUT_S = 30


def fetch_files(card: Card, data: Path, reporter: Reporter | None = None, retries: int = 2) -> list[Path]:
    """Download the files of a card into the data folder and unpack them; files that are there already are kept.

    Nothing is overwritten and no file is left half-written. Returns the files that the manifest can use. Raises
    DataError with the address and the path of a file that cannot be downloaded, and where the card names no files.
    """
    reporter = reporter or SilentReporter()
    if not card.files:
        raise DataError(f"{card.title} cannot be downloaded by this command. {card.get}")
    placed = []
    for file in card.files:
        archive = _download(file, data, reporter, retries)
        placed += [archive] if file.unpack == "none" else _unpack(archive, file, data)
    reporter.message(f"{card.title}: {len(placed)} files in place below {data}. Licence: {card.licence}")
    return placed


def _download(file: Download, data: Path, reporter: Reporter, retries: int) -> Path:
    """The file as published, from the data folder or from its address."""
    target = data / file.path
    algorithm, _, checksum = file.checksum.partition(":")
    if target.exists():
        if pooch.file_hash(str(target), alg=algorithm) != checksum:
            raise DataError(
                f"{target} is there already and is not the published file ({file.checksum}). It is not overwritten: "
                "move it away, then give the same command again."
            )
        reporter.message(f"{target} is there already, with the published checksum.")
        return target
    download(file.url, target, reporter, retries, checksum=file.checksum)
    return target


def download(
    url: str, target: Path, reporter: Reporter, retries: int = 2, *, checksum: str | None = None, check: str = ""
) -> None:
    """Download one file with a bar of its bytes; what is half there is not left behind.

    `checksum` is compared ("sha256:..."); `check` says it in the message, else the checksum does. Raises DataError with
    the address, the reason, and where to put the file.
    """
    source = pooch.create(
        path=target.parent, base_url="", registry={target.name: checksum}, urls={target.name: url},
        retry_if_failed=retries,
    )  # fmt: skip
    bar = _PoochBar(reporter, f"{target.name} (bytes)")
    try:
        with storage(target), _quiet_pooch():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.fetch(
                target.name, downloader=pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT_S)
            )
    except (RequestException, ValueError) as error:
        raise DataError(
            f"{url} could not be downloaded: {_reason(error)}. Get it by another way, check that its "
            f"{check or f'checksum is {checksum}'}, place it as {target}, then give the same command again."
        ) from None


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Silence pooch, which writes each download to stderr."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError) and not isinstance(error, RequestException):
        return "what came does not have the published checksum, so it was cut off or changed, and was thrown away"
    if isinstance(error, HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    return f"the server could not be reached, or broke off ({type(error).__name__})"


class _PoochBar:
    """The bar of a Reporter behind the interface that pooch expects: each attempt sets a total, then fills the bar."""

    def __init__(self, reporter: Reporter, what: str) -> None:
        self._reporter, self._what = reporter, what

    @property
    def total(self) -> int:
        """Bytes that this attempt still has to download."""
        return self._left

    @total.setter
    def total(self, value: int) -> None:
        self._left = value
        self._advance = self._reporter.progress(value, self._what)

    def update(self, count: int) -> None:
        """Advance by `count` bytes, never past the total."""
        step = min(count, self.total)
        self._left -= step
        self._advance(step)

    def reset(self) -> None:
        """Keep the count; pooch fills the rest afterwards."""

    def close(self) -> None:
        """Nothing to do: the bar closes at its total."""


def _unpack(archive: Path, file: Download, data: Path) -> list[Path]:
    """Write the members of an archive to where the card puts them; raises DataError for one that leads elsewhere."""
    placed = []
    try:
        for name, stream in _members(archive, file.unpack):
            place = _target(name, file)
            if place is None:
                continue
            if stream is None:
                raise DataError(f"{archive} holds {name!r}, which is a link or a device: it is not unpacked.")
            _write(stream, data / place)
            placed.append(data / place)
    except (ValueError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive} cannot be unpacked as {file.unpack}: {error}.") from None
    if not placed:
        raise DataError(f"{archive} holds none of the folders {', '.join(file.move) or 'expected'}: its card is wrong.")
    return placed


def _members(archive: Path, kind: str) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Names and contents of the files of an archive; no content for links and devices."""
    if kind == "zip":
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    with packed.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            if not member.isdir():
                yield member.name, opened.extractfile(member) if member.isfile() else None


def _target(name: str, file: Download) -> str | None:
    """Where a member goes below the data folder; None for what is not needed, such as the notes of macOS."""
    path = PurePosixPath(name)
    if path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts:
        return None
    try:
        inside = safe_relative_path(name)
    except ValueError as error:
        raise ValueError(f"the member {name!r} is refused, {error}") from None
    if not file.move:
        return str(PurePosixPath(file.path).parent / inside)
    for source, target in file.move.items():
        if inside.startswith(f"{source}/"):
            return target + inside.removeprefix(source)
    return None


def _write(stream: IO[bytes], target: Path) -> None:
    if target.exists():
        if hashlib.file_digest(stream, "sha256").hexdigest() != file_digest(target):  # type: ignore[arg-type]
            raise DataError(
                f"{target} is there already with other content. It is not overwritten: move it away, then give the "
                "same command again."
            )
        return
    with atomic(target) as part, part.open("wb") as out:
        shutil.copyfileobj(stream, out, CHUNK)
