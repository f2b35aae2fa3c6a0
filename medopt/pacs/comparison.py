"""When the source was last compared with the ledger: for `/health` and `/metrics`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LastComparison:
    """When the source was compared with the ledger, in seconds since 1970; None: never since the start.

    `overdue_seconds`: after so long without a success something is wrong. `reason`: why the last one failed.
    """

    started: float
    overdue_seconds: float
    ended: float | None = None
    succeeded: float | None = None
    reason: str = ""

    def overdue(self, now: float) -> bool:
        """Whether the last success is too long ago."""
        return now - (self.succeeded or self.started) > self.overdue_seconds
