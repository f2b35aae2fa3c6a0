"""Protocol Buffers' text form, as far as a Triton configuration needs it: written, and read again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_TOKEN = re.compile(r'\s*(?:(#[^\n]*)|([{}\[\],:;])|"((?:[^"\\]|\\.)*)"|([\w.+-]+))')


class Word(str):
    """A name that stands without quotes: of an enumeration's values, or true."""

    __slots__ = ()


def dump(message: Mapping[str, Any], indent: int = 0) -> str:
    """Text of a message: mappings are messages, lists are repeated fields."""
    lines = []
    for key, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            lines.append(" " * indent + _field(key, one, indent))
    return "".join(lines)


def _field(key: str, value: Any, indent: int) -> str:
    if isinstance(value, Mapping):
        return f"{key} {{\n{dump(value, indent + 2)}{' ' * indent}}}\n"
    if isinstance(value, str) and not isinstance(value, Word):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'{key}: "{quoted}"\n'
    return f"{key}: {value}\n"


def parse(text: str) -> dict[str, Any]:
    """The fields of a message; one that stands more than once becomes a list. Raises ValueError."""
    tokens = list(_tokens(text))
    found, place = _message(tokens, 0)
    if place != len(tokens):
        raise ValueError(f"something stands behind the end: {tokens[place]!r}")
    return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place, text = 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"not a token: {text[place : place + 20]!r}")
        place = match.end()
        for kind, value in zip(("comment", "mark", "string", "word"), match.groups(), strict=True):
            if value is not None and kind != "comment":
                yield kind, value


def _message(tokens: list[tuple[str, str]], place: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while place < len(tokens) and tokens[place] != ("mark", "}"):
        kind, key = tokens[place]
        if kind != "word" or place + 1 >= len(tokens):
            raise ValueError(f"a field is wanted, and {key!r} stands there")
        place += 1
        if tokens[place] == ("mark", ":"):
            place += 1
        value, place = _value(tokens, place)
        if key in found:
            found[key] = [*(found[key] if isinstance(found[key], list) else [found[key]]), value]
        else:
            found[key] = value
    return found, place


def _value(tokens: list[tuple[str, str]], place: int) -> tuple[Any, int]:
    if place >= len(tokens):
        raise ValueError("a value is wanted at the end")
    kind, text = tokens[place]
    if (kind, text) == ("mark", "{"):
        found, place = _message(tokens, place + 1)
        if place >= len(tokens):
            raise ValueError("a message is not closed")
        return found, place + 1
    if kind == "string":
        return text.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\"), place + 1
    if kind != "word":
        raise ValueError(f"a value is wanted, and {text!r} stands there")
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else Word(text), place + 1
