"""Ctrl-C, SIGTERM and SIGHUP are never lost: a KeyboardInterrupt that a library swallows is raised again later.

Python drops an exception raised in a finalizer or a callback of the garbage collector, and an interrupt may come there,
too. So the handler also records the signal, and long work checks for it between its steps.
"""

from __future__ import annotations

import signal
from types import FrameType

_received: list[int] = []  # signals; a process has one set of signal handlers, and so one such list


def ending_signals() -> tuple[signal.Signals, ...]:
    """Ctrl-C, SIGTERM with which a scheduler ends a job, and SIGHUP of a terminal that closes, unless under `nohup`."""
    kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM) if kept else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def install_handlers() -> None:
    """Let the signals that end a process interrupt this one."""
    _received.clear()
    for number in ending_signals():
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether a signal came since `install_handlers`: an error after it may be its doing.

    An interrupt within a lock's own code leaves as RuntimeError (cannot release un-acquired lock).
    """
    return bool(_received)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt where a signal came since `install_handlers` and its interrupt was swallowed."""
    if _received:
        _received.clear()
        raise KeyboardInterrupt
