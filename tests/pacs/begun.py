"""A fixture's generator: a test begins as many of a thing as it wants, and none is left when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar


class Closable(Protocol):
    def close(self) -> None: ...


Thing = TypeVar("Thing", bound=Closable)


def begun(make: Callable[..., Thing]) -> Iterator[Callable[..., Thing]]:
    """To be left with `yield from`: gives what makes one more."""
    made: list[Thing] = []

    def begin(**changes: Any) -> Thing:
        made.append(make(**changes))
        return made[-1]

    try:
        yield begin
    finally:
        for one in made:
            one.close()
