"""Ctrl-C and SIGTERM that are not lost: a KeyboardInterrupt that a library swallows is raised again at the next step.

Python drops an exception that arises in a finalizer or a callback of the garbage collector, and an interrupt may come
there as anywhere. So the handler also notes that it was asked, and a long way asks back between its steps.
"""

from __future__ import annotations

import signal
from types import FrameType

_asked: list[int] = []  # a process has one set of signal handlers, and so one of these


def listen() -> None:
    """Take Ctrl-C, and SIGTERM by which a scheduler ends a job, as the wish to stop."""
    _asked.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt where one was asked for since `listen` and did not end the process."""
    if _asked:
        _asked.clear()
        raise KeyboardInterrupt
