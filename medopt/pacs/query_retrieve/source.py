"""What can be asked of a PACS, in whatever protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from typing import Protocol

Stopping = Callable[[], bool]
MOST_STUDIES = 20_000


class StudySource(Protocol):
    """A PACS. Every method raises Unanswered."""

    def studies(self, since: date, modality: str) -> list[str]:
        """UIDs of the studies of a day or later that may hold such series."""

    def series(self, study: str, modality: str) -> list[str]:
        """UIDs of a study's series of one modality."""

    def instances(self, study: str, series: str) -> list[str]:
        """UIDs of a series' instances."""

    def fetch(self, study: str, series: str, instances: Sequence[str]) -> None:
        """Have instances sent to the node; none named: the whole series. Returns when that is over, however it went."""
