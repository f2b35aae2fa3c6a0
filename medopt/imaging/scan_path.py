"""Paths as a manifest or a card may write them: relative, downward only, with `/` between the parts."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

_PLAIN = re.compile(r"\w[\w .()+=@#-]*(/\w[\w .()+=@#-]*)*", re.UNICODE)


class Member(NamedTuple):
    """One image inside an `.npz` file, written `file.npz#array/index`."""

    file: str
    array: str
    row: int


def below(text: str) -> str:
    """The path in its shortest form, `./a//b` as `a/b`.

    Raises ValueError, saying why, for a path that could lead out of its folder.
    """
    if _PLAIN.fullmatch(text):
        return text  # as nearly all are; a million of them are read in seconds
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


def npz_member(image: str) -> Member | None:
    """The parts of `file.npz#array/index`, or None for the path of a file.

    Raises ValueError where the part behind `#` is not `array/index`.
    """
    file, mark, inside = image.partition(".npz#")
    if not mark:
        return None
    array, _, index = inside.rpartition("/")
    if not array or not (index.isascii() and index.isdigit()):
        raise ValueError("an image in an .npz file is written file.npz#array/index")
    return Member(f"{file}.npz", array, int(index))


def parted(path: Path) -> tuple[Path, str]:
    """The file or folder that a path names, and the part of it that is meant.

    The part is empty, a SeriesInstanceUID (`folder#UID`) or a member of an archive (`file.npz#array/index`).
    """
    place, mark, part = str(path).rpartition("#")
    return (path, "") if path.exists() or not mark else (Path(place), part)
