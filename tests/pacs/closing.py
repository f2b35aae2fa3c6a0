"""A fixture's generator: a test creates as many objects as it needs, and all of them are closed when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


Thing = TypeVar("Thing", bound=Closable)


def closing_all(create: Callable[..., Thing]) -> Iterator[Callable[..., Thing]]:
    """Use it with `yield from`: yields a function that creates one more object."""
    objects: list[Thing] = []

    def create_and_remember(**changes: Any) -> Thing:
        objects.append(create(**changes))
        return objects[-1]

    try:
        yield create_and_remember
    finally:
        for each in objects:
            each.close()
