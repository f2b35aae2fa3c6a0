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

CONNECTIONS = 100
_GREETING_SECONDS = 5.0
_GRACE_SECONDS = 10
_QUOTING = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "python_multipart")  # loggers that quote requests


class _Bounded(H11Protocol):
    """uvicorn's, but that one connection too many ends the oldest of those that ask for nothing, or itself.

    Each of these ends after a few seconds anyway.
    """

    since = 0.0

    def connection_made(self, transport: Any) -> None:
        """As the loop calls it."""
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, _Bounded) and one.idle]
            min(idle, key=lambda one: one.since).end()
        self.loop.call_later(_GREETING_SECONDS, lambda: self.end() if self.idle else None)

    @property
    def idle(self) -> bool:
        """Whether no request has come whole, and the connection is open."""
        return self.cycle is None and not self.transport.is_closing()

    def end(self) -> None:
        """Close the connection."""
        self.connections.discard(self)
        self.transport.close()


class Door:
    """A listening HTTP server."""

    def __init__(self, parts: NodeParts) -> None:
        """Raises ConfigError where anybody could ask, or the key cannot be read."""
        web = parts.node.web
        assert web is not None
        key = Key.read(web.key_file)
        if web.host not in LOOPBACK and not key:
            raise ConfigError(
                f"On {web.host} anybody in the network could see the node's page and send to it. Name a file with a "
                "key, web.key_file, or set MEDOPT_API_KEY."
            )
        self._node, self._web, self._app = parts.node, web, application(parts, key)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen; returns the page's address. Raises ConfigError where the port is taken or TLS cannot be set up."""
        for name in _QUOTING:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        web, tls = self._web, self._node.tls if self._web.tls else None
        listening = self._listen()
        config = uvicorn.Config(
            self._app,
            http=_Bounded,
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
            listening.close()
            raise ConfigError("web.tls: the certificate and key of the section tls cannot be used.") from None
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="pacs-web", daemon=True)
        self._thread.start()
        host = f"[{web.host}]" if ":" in web.host else web.host
        return f"{'https' if tls else 'http'}://{host}:{listening.getsockname()[1]}"

    def close(self) -> None:
        """No new requests from now on."""
        if self._server is not None:
            self._server.should_exit = True

    def stop(self) -> None:
        """No new requests; those in hand get ten seconds from `close` on."""
        self.close()
        if self._server is not None and self._thread is not None:
            self._thread.join(_GRACE_SECONDS + 5)
            self._server = self._thread = None

    def _listen(self) -> socket.socket:
        web = self._web
        family = socket.AF_INET6 if ":" in web.host else socket.AF_INET
        try:
            found = socket.create_server((web.host, web.port), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {web.host}:{web.port} ({error.strerror}), its section web. Choose another "
                "port, or end what listens there."
            ) from None
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
