"""A DICOM server that no sender can block: bounded connections, waits and message sizes.

pynetdicom counts associations, but not connections that never request one, and reads whatever length a PDU claims.
"""

from __future__ import annotations

import queue
import select
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any, NoReturn

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medopt.pacs.association_request import TOO_MANY, TurnedAway, checked_request, read_request, reply_and_close

TurnAway = Callable[[str], None]
"""Called with the reason when a connection is closed that the peer wanted to go on with."""
MAX_PDU_BYTES = 16 * 1024 * 1024
_CHUNK = 256 * 1024
_PDU_SECONDS = 30.0
_HANDSHAKE_SECONDS = 5.0
_BUSY_SECONDS = 0.5
_POLL_SECONDS = 0.25
_FROM_THIS_SIDE = ("Evt1", "Evt7", "Evt8", "Evt9", "Evt11", "Evt14", "Evt15")  # PS3.8 9.2.2: primitives to send


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
    on_turned_away: TurnAway
    reason = ""
    """Why this side ended the association; empty while it has not."""
    serving = False
    """Whether a request is being served."""
    first_bytes: bytearray
    """What was read before pynetdicom reads: the association request."""
    unfinished_bytes = 0
    _last_data = 0.0

    @property
    def busy(self) -> bool:
        """Whether data came within the last half second."""
        return time.monotonic() - self._last_data < _BUSY_SECONDS

    @property
    def ready(self) -> bool:
        """As pynetdicom's, which polls a thousand times a second: a hundred idle associations would take a core."""
        if self.first_bytes:
            return True
        if self.socket is not None and not self.busy:
            with suppress(OSError, ValueError):  # closed meanwhile: pynetdicom's own check says so
                select.select([self.socket], [], [], _POLL_SECONDS)
        has_data = bool(super().ready)
        if has_data:
            self._last_data = time.monotonic()
        return has_data

    def turned_away(self, reason: str) -> None:
        """This side ends the association; of several reasons the first counts."""
        if not self.reason:
            self.reason = reason
            self.on_turned_away(reason)

    def begin_message(self) -> None:
        """A message was processed: the next one begins."""
        self.unfinished_bytes = 0

    def recv(self, nr_bytes: int) -> bytearray:
        """As pynetdicom's; raises OSError, which closes the connection, where a bound is exceeded."""
        if self.first_bytes:
            first = self.first_bytes[:nr_bytes]
            del self.first_bytes[:nr_bytes]
            return first
        if nr_bytes > MAX_PDU_BYTES:
            self._end("a PDU claims to be longer than any may be")
        self.unfinished_bytes += nr_bytes
        if self.unfinished_bytes > self.bounds.message_bytes:
            self._end("a message is larger than this node accepts")
        if nr_bytes > _CHUNK // 64 and self.total_unfinished_bytes() > self.bounds.memory_bytes:
            self._end("the unfinished messages are larger than this node accepts")
        data, deadline = bytearray(), time.monotonic() + _PDU_SECONDS
        while len(data) < nr_bytes:
            chunk = self.socket.recv(min(_CHUNK, nr_bytes - len(data)))  # type: ignore[union-attr]
            if not chunk:
                break
            data += chunk
            if time.monotonic() > deadline:
                self._end("a PDU comes too slowly")
        return data

    def _end(self, reason: str) -> NoReturn:
        self.turned_away(reason)
        raise OSError(reason)


class _BlockingProvider(DIMSEServiceProvider):
    """Blocks until a message comes, where pynetdicom's polls and sleeps."""

    def receive_primitive(self, primitive: Any) -> None:
        """As pynetdicom's, whose thread would end without a word where a message has no command that it knows."""
        try:
            super().receive_primitive(primitive)
        except Exception:  # its text may quote the message
            socket: Any = self.assoc.dul.socket
            socket.turned_away("a DIMSE message is malformed")
            self.dul.event_queue.put("Evt19")  # an invalid PDU: the state machine aborts (PS3.8 9.2.3)

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
        server: Any = self.server
        socket.first_bytes, socket.on_turned_away = bytearray(server.request_bytes.data), server.turned_away
        socket.bounds, socket.total_unfinished_bytes = server.bounds, server.total_unfinished_bytes
        association.dimse.__class__ = _BlockingProvider
        _guard_requests(association, socket)
        _guard_events(association)
        return association


def _guard_events(association: Association) -> None:
    """Drop what this side still wants to send when it has ended the association: pynetdicom's thread would fail."""
    act, provider = association.dul.state_machine.do_action, association.dul

    def guarded(event: str) -> None:
        try:
            act(event)
        except InvalidEventError:
            with suppress(queue.Empty):
                (provider.to_provider_queue if event in _FROM_THIS_SIDE else provider._recv_pdu).get(False)

    association.dul.state_machine.do_action = guarded  # type: ignore[method-assign]


def _guard_requests(association: Association, socket: BoundedSocket) -> None:
    """Abort where a request fails in pynetdicom: its thread would end, and leave the connection open."""
    serve = association._serve_request

    def guarded(message: Any, context_id: int) -> None:
        socket.serving = True
        try:
            serve(message, context_id)
        except Exception:  # its text may quote the message
            socket.turned_away("a request could not be served")
            association.abort()
        finally:
            socket.serving = False

    association._serve_request = guarded  # type: ignore[method-assign, assignment]


class BoundedServer(ThreadedAssociationServer):
    """pynetdicom's server with `Bounds`; each connection has a thread, in which its TLS handshake runs, too."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any, bounds: Bounds, turned_away: TurnAway, **options: Any) -> None:
        self.bounds, self.turned_away = bounds, turned_away
        self.request_bytes = threading.local()
        """The association request (data) of the connection that a thread begins."""
        self._requesting = 0
        self._lock = threading.Lock()
        super().__init__(*args, **options | {"request_handler": _Handler})
        self.contexts = _Contexts(self.contexts)

    def total_unfinished_bytes(self) -> int:
        """Bytes of the unfinished messages of all connections."""
        return sum(getattr(association.dul.socket, "unfinished_bytes", 0) for association in self.active_associations)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a connection beyond the allowed number at once."""
        if self._requesting + len(self.active_associations) < self.bounds.connections:
            return True
        self.turned_away("too many connections at once (limits.associations)")
        if self.ssl_context is None:
            with suppress(OSError):
                request.sendall(TOO_MANY)
        return False

    def get_request(self) -> tuple[Any, Any]:
        """Accept without TLS: a client that never completes the handshake must not block the others."""
        assert self.socket is not None
        return self.socket.accept()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Wait for the association request here: pynetdicom's association polls a thousand times a second for it."""
        with self._lock:
            self._requesting += 1
        try:
            request = self._with_tls(request)
            data = checked_request(read_request(request))
            request.settimeout(self.ae.network_timeout)
        except (TurnedAway, OSError) as ended:
            away = ended if isinstance(ended, TurnedAway) else TurnedAway("")
            if away.reason:
                self.turned_away(away.reason)
            reply_and_close(request, away.reply)
            return
        finally:
            with self._lock:
                self._requesting -= 1
        self.request_bytes.data = data
        super().process_request_thread(request, client_address)

    def _with_tls(self, request: Any) -> Any:
        if self.ssl_context is None:
            return request
        request.settimeout(_HANDSHAKE_SECONDS)
        try:
            return self.ssl_context.wrap_socket(request, server_side=True)
        except TimeoutError:
            raise TurnedAway("it did not complete the TLS handshake in time") from None
        except ssl.SSLEOFError:
            raise TurnedAway("it left during the TLS handshake") from None
        except ssl.SSLError:
            raise TurnedAway("it does not speak TLS, or has no certificate of the authority") from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing: connections end early all the time, and the log holds no addresses."""
