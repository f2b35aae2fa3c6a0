"""The audit's events, counted for the metrics on their way to it."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from medopt.pacs.audit import Audit

_WITH_REASON = ("refused", "rejected", "not sent", "not reconciled")  # their reasons are few; others quote figures


class Counted:
    """An audit that also counts. Nothing of the counts outlives the process."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, event: str, **facts: Any) -> None:
        """Append one line to the audit."""
        self._audit(event, **facts)
        with self._lock:
            self._counts[event, str(facts.get("reason", "")) if event in _WITH_REASON else ""] += 1

    def counts(self) -> dict[tuple[str, str], int]:
        """How often each (event, reason) came."""
        with self._lock:
            return dict(self._counts)

    def sync(self) -> None:
        """As the audit's."""
        self._audit.sync()

    def close(self) -> None:
        """Close the audit's file."""
        self._audit.close()
