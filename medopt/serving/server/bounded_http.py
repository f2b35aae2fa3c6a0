"""HTTP connections that lock nobody out: few a peer and in all, and none that stays silent. For every HTTP port.

A connection counts from its acceptance, so before its TLS handshake, too. One that has no whole request header in time
is closed. Where there are too many, the one gives way that is furthest from an answer, and of those the oldest.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

WAITING, UPLOADING, ANSWERING = 0, 1, 2
"""What a connection does: no whole header yet, a body that is not complete, or a request that is being answered."""
Address = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The most connections in all and a peer, and the seconds until a request's header must be complete."""

    total: int = 512
    peer: int = 256
    header_seconds: float = 5.0
    keep_alive_seconds: int = 5


@dataclass(slots=True)
class _Entry:
    connection: socket.socket
    peer: str
    number: int
    state: int = WAITING
    begun: int = 0
    """Counts how often it began to wait for a header: a deadline is for one of these waits."""


class Connections:
    """The open connections of one listener. Belongs to one event loop."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[Address, _Entry] = {}
        self._peers: Counter[str] = Counter()
        self._numbers = itertools.count()

    def add(self, connection: socket.socket, address: Address) -> None:
        """A connection was accepted."""
        key, entry = address[:2], _Entry(connection, str(address[0]), next(self._numbers))
        self._open[key] = entry
        self._peers[entry.peer] += 1
        if self._peers[entry.peer] > self.limits.peer:
            self._end_least([other for other in self._open.items() if other[1].peer == entry.peer])
        elif len(self._open) > self.limits.total:
            self._end_least(list(self._open.items()))
        self._set_deadline(key, entry, self.limits.header_seconds)

    def change(self, key: Address, state: int) -> None:
        """A connection goes on."""
        entry = self._open.get(key)
        if entry is None or entry.state == state:
            return
        entry.state = state
        if state == WAITING:
            entry.begun += 1
            self._set_deadline(key, entry, self.limits.keep_alive_seconds + self.limits.header_seconds)

    def remove(self, key: Address) -> None:
        """A connection is closed."""
        entry = self._open.pop(key, None)
        if entry is not None:
            self._peers[entry.peer] -= 1
            if not self._peers[entry.peer]:
                del self._peers[entry.peer]

    def _set_deadline(self, key: Address, entry: _Entry, seconds: float) -> None:
        begun = entry.begun

        def check() -> None:
            if self._open.get(key) is entry and entry.state == WAITING and entry.begun == begun:
                self._end(key, entry)

        asyncio.get_running_loop().call_later(seconds, check)

    def _end_least(self, entries: list[tuple[Address, _Entry]]) -> None:
        newest = max(entry.number for _, entry in entries)
        least = [pair for pair in entries if pair[1].state < ANSWERING and pair[1].number != newest]
        chosen = least or [pair for pair in entries if pair[1].number == newest]
        self._end(*min(chosen, key=lambda pair: (pair[1].state, pair[1].number)))

    def _end(self, key: Address, entry: _Entry) -> None:
        self.remove(key)
        with suppress(OSError):  # the event loop then reads the end of the connection, and closes it
            entry.connection.shutdown(socket.SHUT_RDWR)


class _Accepted(socket.socket):
    closed: Callable[[], None] | None = None

    def close(self) -> None:
        if self.closed is not None:
            self.closed()
        super().close()


class Listener(socket.socket):
    """A listening socket whose connections are counted when asyncio accepts them."""

    connections: Connections

    def accept(self) -> tuple[socket.socket, Any]:
        """As asyncio calls it."""
        plain, address = super().accept()
        accepted = _Accepted(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self.connections.add(accepted, address)
        accepted.closed = lambda: self.connections.remove(address[:2])
        return accepted, address


def listen(host: str, port: int, limits: ConnectionLimits) -> Listener:
    """Listen with bounds; raises OSError where the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    plain = socket.create_server((host, port), family=family, backlog=512)
    # asyncio sets this for its own sockets only; without it an answer waits 40 ms for the client's acknowledgement.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener = Listener(plain.family, plain.type, plain.proto, fileno=plain.detach())
    listener.connections = Connections(limits)
    return listener


def bounded_protocol(protocol: Any, connections: Connections) -> Any:
    """One of uvicorn's HTTP protocols that says what its connections do."""

    class BoundedProtocol(protocol):
        _key: Address = ()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._key = tuple(transport.get_extra_info("peername") or ())[:2]

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._report()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._report()

        def _report(self) -> None:
            cycle = self.cycle
            if cycle is None or cycle.response_complete:
                connections.change(self._key, WAITING)
            else:
                connections.change(self._key, UPLOADING if cycle.more_body else ANSWERING)

    return BoundedProtocol


def allow_open_files(number: int) -> None:
    """Let this process open so many files, as far as the system allows: each connection is one."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < number:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard), hard))
