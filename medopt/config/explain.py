"""What each key of a study file or a node file takes: type, default, choices and meaning, read from the schema."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from medopt.config.study import Study
from medopt.config.study_file import annotation_of

_NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """A key by its path, as training.optimizer.lr; `default` is YAML's way to write it, or `required`."""

    path: str
    type: str
    default: str
    meaning: str
    is_section: bool


def describe_keys(root: type[BaseModel] = Study, above: str = "") -> Iterator[KeyDescription]:
    """Every key of a file, each section before its keys; an entry of a list has [] in its path.

    >>> next(key for key in describe_keys() if key.path == "training.mixup").default
    '0.3'
    """
    for name, field in root.model_fields.items():
        sections = list(_sections(field.annotation))
        meaning = " ".join((field.description or "").split())
        if sections and not meaning:
            meaning = " ".join((sections[0].__doc__ or "").split())
        path = f"{above}{name}"
        yield KeyDescription(path, _type_text(field), _default_text(field), meaning, bool(sections))
        is_list = get_origin(field.annotation) is list
        for section in sections:
            yield from describe_keys(section, f"{path}[]." if is_list else f"{path}.")


def describe_key(key: str, root: type[BaseModel] = Study) -> tuple[KeyDescription, ...]:
    """One key, and where it is a section all keys below it; raises ConfigError naming the nearest known key.

    >>> describe_key("model.depth")[0].type
    '14, 26, 50, 101 or 152'
    """
    plain = key.replace("[]", "")
    named = [(one.path.replace("[]", ""), one) for one in describe_keys(root)]
    found = tuple(one for path, one in named if path == plain or path.startswith(f"{plain}."))
    if not found:
        annotation_of(plain, root)  # raises
    return found


def study_schema() -> dict[str, Any]:
    """The JSON Schema of a study file, with which editors complete and check it."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Study.model_json_schema()}


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation holds, in a list or in a choice, too; not those of a table of names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not dict:
        for part in get_args(annotation):
            yield from _sections(part)


def _type_text(field: FieldInfo) -> str:
    return _with_bounds(_of(field.annotation), field.metadata)


def _of(annotation: Any) -> str:
    """A type in words: `whole number ≥ 2`, `auto`, `list of text`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        metadata = [one for item in parts[1:] for one in getattr(item, "metadata", [item])]
        return _with_bounds(_of(parts[0]), metadata)
    if origin is Literal:
        return _either([_yaml(value) for value in parts])
    texts = [_of(part) for part in parts]
    if origin in (Union, types.UnionType):
        return _either(texts)
    composed = {list: "list of {0}", tuple: f"[{', '.join(texts)}]", dict: "table of {0} to {1}"}
    return composed[origin].format(*texts) if origin in composed else _NAMES.get(annotation, "null")


def _either(texts: list[str]) -> str:
    words = list(dict.fromkeys(texts))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _with_bounds(text: str, metadata: list[Any]) -> str:
    """A type with its bounds: `number 0 to 1`, `list of text (2 or more)`, `text like ^[a-z]+$`."""
    names = (*_SIGNS, "min_length", "max_length", "pattern")
    given = {name: getattr(one, name) for one in metadata for name in names if getattr(one, name, None) is not None}
    if {"ge", "le"} <= set(given):
        return f"{text} {_yaml(given['ge'])} to {_yaml(given['le'])}"
    if signs := [f"{sign} {_yaml(given[name])}" for name, sign in _SIGNS.items() if name in given]:
        return f"{text} {' and '.join(signs)}"
    if "pattern" in given:
        return f"{text} like {given['pattern']}"
    low, high = given.get("min_length"), given.get("max_length")
    if low is None or not text.startswith("list"):
        return text
    return f"{text} ({low} or more)" if high is None else f"{text} ({low if low == high else f'{low} to {high}'})"


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or value is PydanticUndefined:
        return ""
    return _yaml(value)


def _yaml(value: Any) -> str:
    """A value as a study file writes it."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        text = f"{value:g}"
        return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML takes 1e-06 for a text
    plain = value.value if isinstance(value, Enum) else value
    return json.dumps(plain, default=str)
