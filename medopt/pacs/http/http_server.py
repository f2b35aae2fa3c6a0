"""The HTTP port, in a thread of its own: few connections, none of them idle for long."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medopt.core.errors import ConfigError
from medopt.pacs.http.routes import NodeParts, application
from medopt.serving.server.auth import LOOPBACK, Key

MAX_CONNECTIONS = 100
_REQUEST_SECONDS = 5.0
_GRACE_SECONDS = 10
_QUOTING_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "python_multipart")  # they quote requests


class _BoundedProtocol(H11Protocol):
    """uvicorn's protocol with a bounded number of connections: one too many closes the oldest idle one, or itself.

    A connection that sends no whole request ends after a few seconds in any case.
    """

    opened_at = 0.0

    def connection_made(self, transport: Any) -> None:
        """As the event loop calls it."""
        super().connection_made(transport)
        self.opened_at = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [other for other in self.connections if isinstance(other, _BoundedProtocol) and other.idle]
            min(idle, key=lambda connection: connection.opened_at).end()
        self.loop.call_later(_REQUEST_SECONDS, lambda: self.end() if self.idle else None)

    @property
    def idle(self) -> bool:
        """Whether the connection is open and no whole request has come."""
        return self.cycle is None and not self.transport.is_closing()

    def end(self) -> None:
        """Close the connection."""
        self.connections.discard(self)
        self.transport.close()


class HttpServer:
    """The node's HTTP server."""

    def __init__(self, parts: NodeParts) -> None:
        """Raises ConfigError if other machines could use it without a key, or the key cannot be read."""
        web = parts.settings.web
        assert web is not None
        key = Key.read(web.key_file)
        if web.host not in LOOPBACK and not key:
            raise ConfigError(
                f"On {web.host} anybody in the network could see the node's page and send to it. Name a file with a "
                "key, web.key_file, or set MEDOPT_API_KEY."
            )
        self._tls, self._web, self._app = parts.settings.tls, web, application(parts, key)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen; returns the page's URL. Raises ConfigError if the port is taken or TLS cannot be set up."""
        for name in _QUOTING_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        web, tls = self._web, self._tls if self._web.tls else None
        listener = self._listen()
        config = uvicorn.Config(
            self._app,
            http=_BoundedProtocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError):
            listener.close()
            raise ConfigError("web.tls: the certificate and key of the section tls cannot be used.") from None
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="pacs-web", daemon=True)
        self._thread.start()
        host = f"[{web.host}]" if ":" in web.host else web.host
        return f"{'https' if tls else 'http'}://{host}:{listener.getsockname()[1]}"

    def close(self) -> None:
        """Accept no new requests from now on."""
        if self._server is not None:
            self._server.should_exit = True

    def stop(self) -> None:
        """Close, and wait for the open requests, which have ten seconds after `close`."""
        self.close()
        if self._server is not None and self._thread is not None:
            self._thread.join(_GRACE_SECONDS + 5)
            self._server = self._thread = None

    def _listen(self) -> socket.socket:
        web = self._web
        family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
        try:
            listener = socket.create_server((web.host, web.port), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {web.host}:{web.port} ({error.strerror}), its section web. Choose another "
                "port, or end what listens there."
            ) from None
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
