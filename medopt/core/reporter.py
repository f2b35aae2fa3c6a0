"""How a stage tells a person what goes on, without printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reporter(Protocol):
    """How a stage tells a person what goes on. Nothing below the command line prints."""

    def stage(self, name: str, note: str) -> None:
        """A stage begins, or is skipped (the note says so)."""

    def message(self, text: str) -> None:
        """One line that a person should see."""

    def progress(self, total: int, what: str) -> Callable[..., None]:
        """Begin a bar; the function returned advances it: advance(n, **fields)."""


class SilentReporter:
    """Says nothing: the default of every function that takes a reporter."""

    def stage(self, name: str, note: str) -> None:
        """Ignore the beginning of a stage."""

    def message(self, text: str) -> None:
        """Ignore a line."""

    def progress(self, total: int, what: str) -> Callable[..., None]:
        """A bar that nobody sees."""
        return lambda n=1, **fields: None
