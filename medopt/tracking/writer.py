"""What is logged while a network trains is written beside the training, which never waits for it long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from medopt.core.errors import ConfigError

PATIENCE = 0.7  # seconds that an epoch waits for a store; a local one answers in a twentieth of that

Item = TypeVar("Item")


class Writer(Generic[Item]):
    """Hands the newest item to `write` in a thread of its own.

    Each item holds all of those before it, as a history does: one that comes while another is written takes the place
    of what waits, and one that could not be written is made up for by the next.
    """

    def __init__(self, write: Callable[[Item], None], patience: float = PATIENCE) -> None:
        self._write, self._patience = write, patience
        self._changed = threading.Condition()
        self._waiting: list[Item] = []
        self._missing: list[Item] = []  # what could not be written
        self._busy = False
        self._trouble: ConfigError | None = None
        self._thread: threading.Thread | None = None

    def put(self, item: Item) -> ConfigError | None:
        """Have it written; returns what went wrong since the last call, as far as that is known by now.

        Where the one before is still being written, the store is slow or gone, and nothing is waited for.
        """
        with self._changed:
            patience = self._patience if self._is_idle() else 0.0
            self._waiting = [item]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, patience)
            told, self._trouble = self._trouble, None
            return told

    def finish(self, seconds: float | None = None) -> None:
        """Wait until all is written, and try once more what could not be. Raises the ConfigError of that."""
        with self._changed:
            if not self._changed.wait_for(self._is_idle, seconds):
                return
            missing, self._missing, self._trouble = self._missing, [], None
        for item in missing:
            self._write(item)

    def _is_idle(self) -> bool:
        return not (self._waiting or self._busy)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                item, self._waiting, self._busy = self._waiting[0], [], True
            trouble = None
            try:
                self._write(item)
            except ConfigError as error:
                trouble = error
            except BaseException:  # a fault of the program: told by whoever writes it in the main thread
                trouble = ConfigError("what was to be logged could not be written.")
            with self._changed:
                self._busy, self._missing = False, [item] if trouble else []
                self._trouble = trouble or self._trouble
                self._changed.notify_all()
