"""The end of a study, which nobody signals: no open association that sent any of it, and quiet for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Seen:
    last: float
    open: list[Callable[[], bool]] = field(default_factory=list)


class StudyCompletion:
    """When each study was heard of last, by a clock that never goes back. Nothing of it outlives the process.

    After a start every unfinished study counts as heard of just now: a sender that was cut off has time to come back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds, self._clock = seconds, clock
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def heard(self, study_uid: str, is_open: Callable[[], bool]) -> None:
        """An image of a study came by an association of which `is_open` tells whether it lives."""
        with self._lock:
            seen = self._seen.setdefault(study_uid, _Seen(self._clock()))
            seen.last = self._clock()
            if is_open not in seen.open:
                seen.open.append(is_open)

    def over(self, study_uid: str) -> bool:
        """Whether a study has ended. While an association is open its time does not run."""
        with self._lock:
            now = self._clock()
            seen = self._seen.setdefault(study_uid, _Seen(now))
            seen.open = [is_open for is_open in seen.open if is_open()]
            if seen.open:
                seen.last = now
            return now - seen.last >= self._seconds

    def forget(self, study_uid: str) -> None:
        """The study is no longer waited for."""
        with self._lock:
            self._seen.pop(study_uid, None)
