"""A result that is kept as a JSON file: typed, closed and frozen, written and read in one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, TypeAdapter, ValidationError

from medopt.core.errors import DataError
from medopt.core.files import write_json
from medopt.core.records import Kind

T = TypeVar("T")
WITH_DEFAULTS = PlainSerializer(lambda section: section.model_dump(mode="json"))
"""For a field that holds a section of a study: all its settings are written, those left at their defaults, too."""


class Result(BaseModel):
    """A record of a result. A field with a default is written only where its value differs from the default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def json_values(self) -> dict[str, Any]:
        """What the file holds, as plain JSON values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all. Raises StorageError where that fails, ValueError for a NaN."""
        write_json(path, self.json_values())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file; raises DataError as `read_json` does."""
        return read_json(path, cls)


def read_json(path: Path, kind: type[T]) -> T:
    """Read a file into a record; raises DataError, naming file and key, where it is absent or holds something else."""
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = f"{key}: {first['msg']}" if key else first["msg"]
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise DataError(f"{path} cannot be read ({reason}). The same `medopt run` writes it again.")


class ByKind(Result, Generic[T]):
    """The same result of both models of a run: `.float` and `.int8`, or `[kind]`."""

    float: T
    int8: T

    def __getitem__(self, kind: Kind) -> T:
        result: T = getattr(self, kind)
        return result


def by_kind(make: Callable[[Kind], T]) -> ByKind[T]:
    """The results of both models, each made for its kind."""
    return ByKind(float=make("float"), int8=make("int8"))
