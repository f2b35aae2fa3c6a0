"""What the spool keeps no longer: studies whose results every destination has, by age and by size."""

from __future__ import annotations

import errno
from collections.abc import Callable

from medopt.pacs.ledger import Ledger
from medopt.pacs.settings import Retention
from medopt.pacs.spool import Spool
from medopt.provenance import pseudonym

_DAY = 86_400.0
_GIGABYTE = 1_000_000_000
_AT_ONCE = 20


class Sweeper:
    """Empties the spool of what it no longer has to keep. One object is used by one thread."""

    def __init__(
        self, kept: Retention, spool: Spool, ledger: Ledger, told: Callable[..., None] = lambda *_, **__: None
    ) -> None:  # fmt: skip
        self._kept, self._spool, self._ledger, self._told = kept, spool, ledger, told

    def sweep(self, now: float) -> int:
        """Remove the files of some studies; returns how many, so that the caller may come back for more.

        A study is marked first, in the ledger, so that a kill in the midst of it leaves nothing half-known: the next
        call goes on there. Raises OSError where a file cannot be removed.
        """
        for study in self._over_age(now):
            self._ledger.begin_emptying(study)
        done = self._finish("age")
        for study in self._over_size(now):
            self._ledger.begin_emptying(study)
            done += self._finish("size")
            if not self._too_large():
                break
        return done

    def _over_age(self, now: float) -> list[str]:
        return self._ledger.removable(now - self._kept.days * _DAY, _AT_ONCE)

    def _over_size(self, now: float) -> list[str]:
        return self._ledger.removable(now, _AT_ONCE) if self._too_large() else []

    def _too_large(self) -> bool:
        limit = self._kept.gigabytes
        return limit is not None and self._ledger.kept_bytes() > limit * _GIGABYTE

    def _finish(self, why: str) -> int:
        waiting = self._ledger.emptying()
        for study, files, size in waiting:
            for file in files:
                self._spool.remove(file)
            if any((self._spool.root / file).exists() for file in files):
                raise OSError(errno.EPERM, "a file of it cannot be removed")
            self._ledger.emptied(study)
            self._told("emptied", study=pseudonym(study), reason=why, files=len(files), bytes=size)
        return len(waiting)
