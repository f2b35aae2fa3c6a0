"""A listening socket that no sender can hold up: few connections, short waits, no message larger than agreed.

pynetdicom counts associations, but not connections that never ask for one, and reads whatever length a PDU claims.
"""

from __future__ import annotations

import queue
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

LONGEST_PDU = 16 * 1024 * 1024
_PIECE = 256 * 1024
_PDU_SECONDS = 30.0
_GREETING_SECONDS = 5.0
_LONGEST_REQUEST = 64 * 1024  # 128 contexts with 30 transfer syntaxes each take less
_BUSY_SECONDS = 0.5
_PATIENCE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest message, what all on their way may take together (both in bytes), and the most connections."""

    message_bytes: int
    memory_bytes: int
    connections: int


class BoundedSocket(AssociationSocket):
    """Reads PDUs of a bounded length within a bounded time, and messages of a bounded size."""

    bounds: Bounds
    together: Callable[[], int]
    """Bytes of unfinished messages that all connections hold."""
    _read = 0
    _heard = 0.0

    @property
    def busy(self) -> bool:
        """Whether something came just now."""
        return time.monotonic() - self._heard < _BUSY_SECONDS

    @property
    def ready(self) -> bool:
        """As pynetdicom's, which asks a thousand times a second: a hundred associations at rest would take a core."""
        if self.socket is not None and not self.busy:
            with suppress(OSError, ValueError):  # closed by now, which the other one tells
                select.select([self.socket], [], [], _PATIENCE_SECONDS)
        found = bool(super().ready)
        if found:
            self._heard = time.monotonic()
        return found

    def begin_message(self) -> None:
        """A message was dealt with: the next one begins."""
        self._read = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """As pynetdicom's; raises OSError, upon which the connection is closed, where a bound is exceeded."""
        if nr_bytes > LONGEST_PDU:
            raise OSError("a PDU claims to be longer than any may be")
        self._read += nr_bytes
        if self._read > self.bounds.message_bytes:
            raise OSError("a message is larger than this node takes")
        if nr_bytes > _PIECE // 64 and self.together() > self.bounds.memory_bytes:
            raise OSError("more comes at once than this node takes")
        found, until = bytearray(), time.monotonic() + _PDU_SECONDS
        while len(found) < nr_bytes:
            piece = self.socket.recv(min(_PIECE, nr_bytes - len(found)))  # type: ignore[union-attr]
            if not piece:
                break
            found += piece
            if time.monotonic() > until:
                raise TimeoutError("a PDU comes too slowly")
        return found


class _PatientProvider(DIMSEServiceProvider):
    """Waits for a message where pynetdicom's looks for one and sleeps; one that comes is served at once."""

    def get_msg(self, block: bool = False) -> Any:
        if block:
            return super().get_msg(block)
        wire: Any = self.assoc.dul.socket
        try:
            return self.msg_queue.get(timeout=0.002 if wire is not None and wire.busy else _PATIENCE_SECONDS)
        except queue.Empty:
            return None, None


class _Contexts(list[PresentationContext]):
    """pynetdicom copies these deeply for each association, every UID of every syntax: a tenth of a second each."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> list[PresentationContext]:
        return [copy(one) for one in self]


class _Handler(RequestHandler):
    def _create_association(self) -> Association:
        association = super()._create_association()
        socket: Any = association.dul.socket
        socket.__class__ = BoundedSocket  # pynetdicom offers no place to name another class
        socket.bounds = self.server.bounds  # type: ignore[attr-defined]
        socket.together = self.server.together  # type: ignore[attr-defined]
        association.dimse.__class__ = _PatientProvider
        return association


class BoundedServer(ThreadedAssociationServer):
    """pynetdicom's server with `Bounds`; one thread a connection, TLS handshakes in it as well."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *words: Any, bounds: Bounds, **more: Any) -> None:
        self.bounds = bounds
        self._greeting = 0
        self._lock = threading.Lock()
        super().__init__(*words, **more | {"request_handler": _Handler})
        self.contexts = _Contexts(self.contexts)

    def together(self) -> int:
        """Bytes of unfinished messages that all connections hold."""
        return sum(getattr(one.dul.socket, "_read", 0) for one in self.active_associations)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close at once a connection beyond the most."""
        return self._greeting + len(self.active_associations) < self.bounds.connections

    def get_request(self) -> tuple[Any, Any]:
        """Accept without TLS: a client that never shakes hands must not keep the others waiting."""
        assert self.socket is not None
        return self.socket.accept()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Only a connection that asks for an association becomes one: pynetdicom's polls a thousand times a second."""
        with self._lock:
            self._greeting += 1
        try:
            request.settimeout(_GREETING_SECONDS)
            if self.ssl_context is not None:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            elif not _asks(request):
                raise OSError("no association is asked for")
            request.settimeout(self.ae.network_timeout)
        except OSError:  # idle, another protocol, no TLS, or no certificate of the authority's
            self.shutdown_request(request)
            return
        finally:
            with self._lock:
                self._greeting -= 1
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended early is no news, and its address none for a log."""


def _asks(request: socket.socket) -> bool:
    """Whether a whole A-ASSOCIATE-RQ (PS3.8 9.3.2) comes in time; it is looked at, not taken."""
    until, wanted = time.monotonic() + _GREETING_SECONDS, 6
    while time.monotonic() < until:
        found = request.recv(wanted, socket.MSG_PEEK)
        if not found or found[0] != 0x01:
            return False
        if len(found) == wanted > 6:
            return True
        if len(found) >= 6:
            wanted = 6 + struct.unpack(">L", found[2:6])[0]
            if wanted > _LONGEST_REQUEST:
                return False
        if len(found) != 6:  # part of it has come: do not spin
            time.sleep(0.02)
    return False
