from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from medopt.core import signals


@pytest.fixture(autouse=True)
def handlers_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also under nohup, which has it ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._received.clear()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_that_was_swallowed_comes_again_once(number: signal.Signals) -> None:
    signals.install_handlers()
    with contextlib.suppress(KeyboardInterrupt):  # what a finalizer does with any exception
        signal.raise_signal(number)
    with pytest.raises(KeyboardInterrupt):
        signals.raise_if_interrupted()
    signals.raise_if_interrupted()


def test_nothing_is_raised_where_nobody_asked_or_before_listening_anew() -> None:
    signals.install_handlers()
    signals.raise_if_interrupted()
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signals.install_handlers()
    signals.raise_if_interrupted()


def test_what_nohup_started_goes_on_when_its_terminal_closes() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install_handlers()
    signal.raise_signal(signal.SIGHUP)
    signals.raise_if_interrupted()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
