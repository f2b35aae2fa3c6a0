"""Paths as a manifest or a card may write them: relative, downward only, with `/` between the parts."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from medopt.core.errors import DataError

_PLAIN = re.compile(r"\w[\w .()+=@#-]*(/\w[\w .()+=@#-]*)*", re.UNICODE)


class NpzMember(NamedTuple):
    """One image inside an `.npz` file, written `file.npz#array/index`."""

    file: str
    array: str
    row: int


def safe_relative_path(text: str) -> str:
    """The path in its shortest form.

    Raises ValueError, with the reason, for a path that could lead out of its folder.

    >>> safe_relative_path("./site_a//scan.dcm")
    'site_a/scan.dcm'
    """
    if _PLAIN.fullmatch(text):
        return text  # the fast way for nearly all paths: a million of them take seconds
    path = PurePosixPath(text)
    if "\\" in text:
        raise ValueError("write / between folders, not \\")
    if not text.isprintable():
        raise ValueError("it holds a control character")
    if path.is_absolute() or PureWindowsPath(text).drive:
        raise ValueError("it is absolute; write it relative to the study's folder")
    if ".." in path.parts:
        raise ValueError("it leads out of its folder with ..")
    if path == PurePosixPath("."):
        raise ValueError("it names no file")
    return str(path)


def npz_member(image: str) -> NpzMember | None:
    """The parts of `file.npz#array/index`, or None for the path of a file.

    Raises ValueError where the part after `#` is not `array/index`.

    >>> npz_member("busi.npz#train_images/12")
    NpzMember(file='busi.npz', array='train_images', row=12)
    """
    file, mark, inside = image.partition(".npz#")
    if not mark:
        return None
    array, _, index = inside.rpartition("/")
    if not array or not (index.isascii() and index.isdigit()):
        raise ValueError("an image in an .npz file is written file.npz#array/index")
    return NpzMember(f"{file}.npz", array, int(index))


def split_part(path: Path) -> tuple[Path, str]:
    """The file or folder that a path names, and the part of it: empty for the whole of it.

    A part is a SeriesInstanceUID (`folder#UID`) or a member of an archive (`file.npz#array/index`).
    """
    container, mark, part = str(path).rpartition("#")
    return (path, "") if path.exists() or not mark else (Path(container), part)


def files_below(root: Path) -> list[str]:
    """The sorted paths, with `/`, of all files below `root` except hidden ones.

    Links are followed; a folder that several ways lead to is taken once, where it really is if that is below `root`.
    Raises DataError for a folder that cannot be opened.
    """
    paths, seen, starts = [], set(), [root]
    for start in starts:  # links are appended: real folders come first
        for place, folders, names in os.walk(start, onerror=_refuse_folder):
            folder = Path(place)
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            below = [name for name in sorted(folders) if not name.startswith(".") and name != "__MACOSX"]
            folders[:] = [name for name in below if not (folder / name).is_symlink()]
            starts += [folder / name for name in below if name not in folders]
            relative = folder.relative_to(root).as_posix()
            above = "" if relative == "." else f"{relative}/"
            paths += [f"{above}{name}" for name in names if not name.startswith(".")]
    return sorted(paths)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"The folder {error.filename} cannot be opened: {error.strerror}.") from None
