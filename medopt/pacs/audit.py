"""What happened, one JSON line a hop, each chained to the one before by SHA-256: any edit is found.

A line holds the SHA-256 of the line before it. Studies stand in it as pseudonyms, contents as hashes; no identifier.
That finds edits and lost lines; who can write to the folder can write the whole chain anew, so keep its last hash
elsewhere now and then (`medopt pacs audit` prints it).
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medopt.core.errors import DataError

FIRST = "0" * 64


class Audit:
    """The open file, appended to by one node.

    A full disk stops neither the node nor the chain: the next line that can be written says how many could not.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        path.touch(mode=0o600)
        whole, last = 0, FIRST
        with path.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):  # a kill in the midst of it; it was told to nobody
                    break
                whole, last = whole + len(line), hashlib.sha256(line).hexdigest()
        self._stream = path.open("ab", buffering=0)
        self._stream.truncate(whole)
        self._last, self._whole, self._unwritten, self._unsynced = last, whole, 0, False

    def __call__(self, event: str, **facts: Any) -> None:
        """Append one line: a kill does not lose it; a power cut does not, once `sync` was called."""
        with self._lock:
            try:
                if self._unwritten:
                    self._append("unwritten", {"lines": self._unwritten})
                    self._unwritten = 0
                self._append(event, facts)
            except OSError:
                self._unwritten += 1

    def _append(self, event: str, facts: Mapping[str, Any]) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "event": event, **facts, "before": self._last}).encode() + b"\n"
        try:
            if self._stream.write(line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            with suppress(OSError):
                self._stream.truncate(self._whole)  # no part of a line stays
            raise
        self._last, self._whole = hashlib.sha256(line).hexdigest(), self._whole + len(line)
        self._unsynced = True

    def sync(self) -> None:
        """See what was appended to the disk; not part of each line, for which a sender would have to wait."""
        if self._unsynced:
            self._unsynced = False
            with suppress(OSError):
                os.fdatasync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self.sync()
        self._stream.close()


def verify(path: Path) -> tuple[int, str]:
    """Check the chain: how many lines it has, and the hash of the last. Raises DataError naming the first bad line."""
    last, count = FIRST, 0
    try:
        with path.open("rb") as stream:
            for count, line in enumerate(stream, start=1):
                try:
                    before = json.loads(line)["before"]
                except (ValueError, KeyError, TypeError):
                    before = None
                if before != last or not line.endswith(b"\n"):
                    raise DataError(
                        f"{path}: line {count} does not follow from the one before it: a line was changed, added or "
                        "taken away there. Compare with a copy of the file."
                    )
                last = hashlib.sha256(line).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return count, last


_WITH_REASON = ("refused", "rejected", "not sent", "not reconciled")  # their reasons are few; others quote figures


class CountingAudit:
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
