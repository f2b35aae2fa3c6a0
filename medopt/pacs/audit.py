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
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medopt.errors import DataError

FIRST = "0" * 64


class Audit:
    """The open file, appended to by one node."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._stream = path.open("a+b")
        self._stream.seek(0)
        whole, last = 0, FIRST
        for line in self._stream:
            if not line.endswith(b"\n"):  # a kill in the midst of it; it was told to nobody
                break
            whole, last = whole + len(line), hashlib.sha256(line).hexdigest()
        self._stream.truncate(whole)
        self._last = last

    def __call__(self, event: str, **facts: Any) -> None:
        """Append one line and see it to the disk."""
        with self._lock:
            at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"at": at, "event": event, **facts, "before": self._last}).encode() + b"\n"
            self._stream.write(line)
            self._stream.flush()
            os.fdatasync(self._stream.fileno())
            self._last = hashlib.sha256(line).hexdigest()

    def close(self) -> None:
        """Close the file."""
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
