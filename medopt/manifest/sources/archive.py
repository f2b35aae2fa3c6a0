"""Unpack a .zip of scans beside the manifest: never outside the folder, and never more than is plausible."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.files import file_digest, storage, write_text
from medopt.core.reporter import Reporter
from medopt.imaging.scan_path import safe_relative_path

MAX_FILES = 2_000_000
MAX_RATIO = 200
"""Highest ratio of unpacked to packed bytes; DICOM with black borders reaches 20 to 60."""
FREE_RATIO_BELOW = 64 << 20
"""An archive that unpacks to at most this many bytes may have any ratio."""
# What the decoders raise; bz2's is an OSError. RuntimeError: a version or a compression that zipfile does not know.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError)
_MARK = ".unpacked_from"
_CHUNK = 1 << 20


def unpack_archive(archive: Path, folder: Path, reporter: Reporter) -> Path:
    """Unpack an archive into `folder`, whole or not at all; one that was unpacked there before is left as it is.

    Raises DataError for a member that leads out of the folder, a link, an encrypted member, an archive that unpacks to
    more than is plausible or than the disk holds, and where the folder holds something else.
    """
    digest = file_digest(archive)
    if folder.exists():
        if _unpacked_from(folder) == digest:
            reporter.message(f"{archive.name} was unpacked into {folder} before")
            return folder
        raise DataError(
            f"{folder} is there already and does not come from {archive.name} as it is now. Move it away, or give "
            "another --out: the archive is unpacked beside the manifest."
        )
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        with storage(folder), zipfile.ZipFile(archive) as opened:
            members = _checked_members(opened, archive, folder)
            advance = reporter.progress(len(members), "unpacking")
            for info, name in members:
                _write(opened, info, part / name, archive)
                advance(1)
            part.mkdir(parents=True, exist_ok=True)
            write_text(part / _MARK, digest)
            part.rename(folder)
    except _DAMAGED as error:
        raise DataError(f"{archive} is damaged, or packed in a way that is not read: {error}. Get it again.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    reporter.message(f"{archive.name}: {len(members)} files unpacked into {folder}")
    return folder


def _unpacked_from(folder: Path) -> str:
    try:
        return (folder / _MARK).read_text(encoding="utf-8")
    except OSError:
        return ""


def _checked_members(opened: zipfile.ZipFile, archive: Path, folder: Path) -> list[tuple[zipfile.ZipInfo, str]]:
    """The members that are files, with their paths below the folder; refuses an archive that could do harm."""
    infos = [info for info in opened.infolist() if not (info.is_dir() or info.filename.endswith("\\"))]
    members = []
    for info in infos:
        try:
            members.append((info, safe_relative_path(info.filename.replace("\\", "/"))))
        except ValueError as error:
            raise DataError(f"{archive} is not unpacked: a file in it has a path that is refused: {error}.") from None
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{archive} is not unpacked: it holds a link, which may lead out of its folder.")
        if info.flag_bits & 1:
            raise DataError(f"{archive} is encrypted. Unpack it yourself and give the folder.")
    if len({name for _, name in members}) < len(members):
        raise DataError(f"{archive} is not unpacked: two of its files have the same path.")
    total, packed = sum(info.file_size for info in infos), archive.stat().st_size
    if len(infos) > MAX_FILES or (total > FREE_RATIO_BELOW and total > MAX_RATIO * packed):
        raise DataError(
            f"{archive} is not unpacked: {len(infos)} files and {total / 1e9:.1f} GB out of {packed / 1e6:.1f} MB look "
            "like an archive made to fill the disk. If you trust it, unpack it yourself and give the folder."
        )
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if total > 0.95 * free:
        raise DataError(
            f"{archive} unpacks to {total / 1e9:.1f} GB, and the disk of {place} has {free / 1e9:.1f} GB free. Free "
            "some space, or give --out on another disk: the archive is unpacked beside the manifest."
        )
    return members


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    """One member, never more bytes than the archive states."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with opened.open(info) as source, target.open("xb") as sink:
        while piece := source.read(_CHUNK):
            left -= len(piece)
            if left < 0:
                raise DataError(f"{archive} is not unpacked: a file in it is larger than it says.")
            sink.write(piece)
