"""The audit: one JSON line for each event, chained by SHA-256 so that any edit is detected.

A line holds the SHA-256 of the line before it. Studies stand in it as pseudonyms, contents as hashes; no identifier.
The chain detects changed and missing lines. Somebody who can write to the folder can write the whole chain anew, so
keep its last hash elsewhere now and then (`medopt pacs audit verify` prints it).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from medopt.core.errors import DataError

FIRST = "0" * 64
_FLOOD_LINES, _FLOOD_SECONDS = 20, 10.0
log = logging.getLogger("medopt.pacs")


class AuditTrail(Protocol):
    """Whoever records events: `audit("sent", to="PACS")`. The details are values that JSON can hold."""

    def __call__(self, event: str, **details: object) -> None:
        """Record one event."""


def no_audit(event: str, **details: object) -> None:
    """An audit trail that records nothing, for parts that are used without a node."""


class AuditFile:
    """The open file, appended to by one node.

    A full disk stops neither the node nor the chain: the next line that can be written says how many could not.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        path.touch(mode=0o600)
        length, last_hash = 0, FIRST
        with path.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):  # the process was killed while it wrote this line
                    break
                length, last_hash = length + len(line), hashlib.sha256(line).hexdigest()
        self._stream = path.open("ab", buffering=0)
        self._stream.truncate(length)
        self._last_hash, self._length, self._unwritten, self._unsynced = last_hash, length, 0, False

    def __call__(self, event: str, **details: object) -> None:
        """Append one line: it survives a kill at once, and a power cut after the next `sync`."""
        with self._lock:
            try:
                if self._unwritten:
                    self._append("unwritten", {"lines": self._unwritten})
                    self._unwritten = 0
                self._append(event, details)
            except OSError:
                self._unwritten += 1

    def _append(self, event: str, details: Mapping[str, object]) -> None:
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"at": at, "event": event, **details, "before": self._last_hash}).encode() + b"\n"
        try:
            if self._stream.write(line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            with suppress(OSError):
                self._stream.truncate(self._length)  # leave no partial line
            raise
        self._last_hash, self._length = hashlib.sha256(line).hexdigest(), self._length + len(line)
        self._unsynced = True

    def sync(self) -> None:
        """Flush the appended lines to the disk; it is not part of each line because a sender would wait for it."""
        if self._unsynced:
            self._unsynced = False
            with suppress(OSError):
                os.fdatasync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self.sync()
        self._stream.close()


def verify(path: Path) -> tuple[int, str]:
    """Check the chain: its number of lines, and the hash of the last. Raises DataError naming the first wrong line."""
    last_hash, count = FIRST, 0
    try:
        with path.open("rb") as stream:
            for count, line in enumerate(stream, start=1):
                try:
                    before = json.loads(line)["before"]
                except (ValueError, KeyError, TypeError):
                    before = None
                if before != last_hash or not line.endswith(b"\n"):
                    raise DataError(
                        f"{path}: line {count} does not follow from the one before it: a line was changed, added or "
                        "removed there. Compare with a copy of the file."
                    )
                last_hash = hashlib.sha256(line).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return count, last_hash


# Only these events are counted by reason: their reasons are few, while others quote figures.
_COUNTED_BY_REASON = ("refused", "rejected", "not sent", "not reconciled", "not compared")


class CountingAudit:
    """An audit file that also counts the events of this process."""

    def __init__(self, audit: AuditFile) -> None:
        self._audit = audit
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, event: str, **details: object) -> None:
        """Append one line to the audit."""
        self._audit(event, **details)
        with self._lock:
            self._counts[event, str(details.get("reason", "")) if event in _COUNTED_BY_REASON else ""] += 1

    def counts(self) -> dict[tuple[str, str], int]:
        """How often each (event, reason) occurred."""
        with self._lock:
            return dict(self._counts)

    def sync(self) -> None:
        """Flush the audit file to the disk."""
        self._audit.sync()

    def close(self) -> None:
        """Close the audit file."""
        self._audit.close()


class Rejections:
    """A line in log and audit for each peer that is turned away; of a flood a part, and then how many more there were.

    One object may be used by several threads.
    """

    def __init__(self, audit: AuditTrail, clock: Callable[[], float] = time.monotonic) -> None:
        self._audit, self._clock, self._lock = audit, clock, threading.Lock()
        self._lines: dict[str, int] = {}
        self._more: dict[str, int] = {}
        self._since = clock()

    def record(self, reason: str) -> None:
        """A peer is turned away. The reason is one of few, and quotes nothing that the peer sent."""
        with self._lock:
            if self._clock() - self._since > _FLOOD_SECONDS:
                for earlier, count in self._more.items():
                    self._audit("rejected", reason=earlier, more=count)
                self._lines, self._more, self._since = {}, {}, self._clock()
            self._lines[reason] = self._lines.get(reason, 0) + 1
            if self._lines[reason] > _FLOOD_LINES:
                self._more[reason] = self._more.get(reason, 0) + 1
                return
        log.warning("peer turned away: %s", reason)
        self._audit("rejected", reason=reason)
