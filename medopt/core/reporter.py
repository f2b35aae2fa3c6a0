"""How a stage reports its progress, without printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Reporter(Protocol):
    """How a stage reports its progress. Nothing below the command line prints."""

    def stage(self, name: str, note: str) -> None:
        """A stage begins, or is skipped (as the note says)."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def progress(self, total: int, what: str) -> Callable[..., None]:
        """Begin a progress bar; the returned function advances it: advance(n, **fields)."""


class SilentReporter:
    """Reports nothing: the default of every function that takes a reporter."""

    def stage(self, name: str, note: str) -> None:
        """Ignore the beginning of a stage."""

    def message(self, text: str) -> None:
        """Ignore a line."""

    def progress(self, total: int, what: str) -> Callable[..., None]:
        """A bar that is not shown."""
        return lambda n=1, **fields: None
