"""Keys and lists in the words of a report."""

from __future__ import annotations


def plain(name: str) -> str:
    """A key as words: low_resolution is low resolution."""
    return name.replace("_", " ")


def joined(items: list[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
