"""A DICOM server that no sender can block: bounded connections, waits and message sizes.

pynetdicom counts associations, but not connections that never request one, and reads whatever length a PDU claims.
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

MAX_PDU_BYTES = 16 * 1024 * 1024
_CHUNK = 256 * 1024
_PDU_SECONDS = 30.0
_REQUEST_SECONDS = 5.0
_MAX_REQUEST_BYTES = 64 * 1024  # more than 128 contexts with 30 transfer syntaxes each need
_BUSY_SECONDS = 0.5
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest message and the memory for all unfinished messages, in bytes; the most connections."""

    message_bytes: int
    memory_bytes: int
    connections: int


class BoundedSocket(AssociationSocket):
    """Reads PDUs of a bounded length within a bounded time, and messages of a bounded size."""

    bounds: Bounds
    total_unfinished_bytes: Callable[[], int]
    """Bytes of the unfinished messages of all connections."""
    unfinished_bytes = 0
    _last_data = 0.0

    @property
    def busy(self) -> bool:
        """Whether data came within the last half second."""
        return time.monotonic() - self._last_data < _BUSY_SECONDS

    @property
    def ready(self) -> bool:
        """As pynetdicom's, which polls a thousand times a second: a hundred idle associations would take a core."""
        if self.socket is not None and not self.busy:
            with suppress(OSError, ValueError):  # closed meanwhile: pynetdicom's own check says so
                select.select([self.socket], [], [], _POLL_SECONDS)
        has_data = bool(super().ready)
        if has_data:
            self._last_data = time.monotonic()
        return has_data

    def begin_message(self) -> None:
        """A message was processed: the next one begins."""
        self.unfinished_bytes = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """As pynetdicom's; raises OSError, which closes the connection, where a bound is exceeded."""
        if nr_bytes > MAX_PDU_BYTES:
            raise OSError("a PDU claims to be longer than any may be")
        self.unfinished_bytes += nr_bytes
        if self.unfinished_bytes > self.bounds.message_bytes:
            raise OSError("a message is larger than this node accepts")
        if nr_bytes > _CHUNK // 64 and self.total_unfinished_bytes() > self.bounds.memory_bytes:
            raise OSError("the unfinished messages are larger than this node accepts")
        data, deadline = bytearray(), time.monotonic() + _PDU_SECONDS
        while len(data) < nr_bytes:
            chunk = self.socket.recv(min(_CHUNK, nr_bytes - len(data)))  # type: ignore[union-attr]
            if not chunk:
                break
            data += chunk
            if time.monotonic() > deadline:
                raise TimeoutError("a PDU comes too slowly")
        return data


class _BlockingProvider(DIMSEServiceProvider):
    """Blocks until a message comes, where pynetdicom's polls and sleeps."""

    def get_msg(self, block: bool = False) -> Any:
        if block:
            return super().get_msg(block)
        socket: Any = self.assoc.dul.socket
        try:
            return self.msg_queue.get(timeout=0.002 if socket is not None and socket.busy else _POLL_SECONDS)
        except queue.Empty:
            return None, None


class _Contexts(list[PresentationContext]):
    """Copied flatly: pynetdicom's deep copy for each association, every UID of every syntax, takes 0.1 s."""

    def __deepcopy__(self, _memo: dict[int, Any]) -> list[PresentationContext]:
        return [copy(context) for context in self]


class _Handler(RequestHandler):
    def _create_association(self) -> Association:
        association = super()._create_association()
        socket: Any = association.dul.socket
        socket.__class__ = BoundedSocket  # pynetdicom has no parameter for another class
        socket.bounds = self.server.bounds  # type: ignore[attr-defined]
        socket.total_unfinished_bytes = self.server.total_unfinished_bytes  # type: ignore[attr-defined]
        association.dimse.__class__ = _BlockingProvider
        return association


class BoundedServer(ThreadedAssociationServer):
    """pynetdicom's server with `Bounds`; each connection has a thread, in which its TLS handshake runs, too."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, bounds: Bounds, **options: Any) -> None:
        self.bounds = bounds
        self._requesting = 0
        self._lock = threading.Lock()
        super().__init__(*args, **options | {"request_handler": _Handler})
        self.contexts = _Contexts(self.contexts)

    def total_unfinished_bytes(self) -> int:
        """Bytes of the unfinished messages of all connections."""
        return sum(getattr(association.dul.socket, "unfinished_bytes", 0) for association in self.active_associations)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a connection beyond the allowed number at once."""
        return self._requesting + len(self.active_associations) < self.bounds.connections

    def get_request(self) -> tuple[Any, Any]:
        """Accept without TLS: a client that never completes the handshake must not block the others."""
        assert self.socket is not None
        return self.socket.accept()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Wait for the association request here: pynetdicom's association polls a thousand times a second for it."""
        with self._lock:
            self._requesting += 1
        try:
            request.settimeout(_REQUEST_SECONDS)
            if self.ssl_context is not None:
                request = self.ssl_context.wrap_socket(request, server_side=True)
            elif not _requests_association(request):
                raise OSError("no association is requested")
            request.settimeout(self.ae.network_timeout)
        except OSError:  # idle, another protocol, no TLS, or no certificate of the authority
            self.shutdown_request(request)
            return
        finally:
            with self._lock:
                self._requesting -= 1
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: connections end early all the time, and the log holds no addresses."""


def _requests_association(connection: socket.socket) -> bool:
    """Whether a whole A-ASSOCIATE-RQ (PS3.8 9.3.2) comes in time; it stays in the socket's buffer."""
    deadline, length = time.monotonic() + _REQUEST_SECONDS, 6
    while time.monotonic() < deadline:
        data = connection.recv(length, socket.MSG_PEEK)
        if not data or data[0] != 0x01:
            return False
        if len(data) == length > 6:
            return True
        if len(data) >= 6:
            length = 6 + struct.unpack(">L", data[2:6])[0]
            if length > _MAX_REQUEST_BYTES:
                return False
        if len(data) != 6:  # a part of it has come: do not spin
            time.sleep(0.02)
    return False
