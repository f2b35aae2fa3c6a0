"""The HTTP port, in a thread of its own: few connections, none of them idle for long."""

from __future__ import annotations

import logging
import ssl
import threading

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medopt.core.errors import ConfigError
from medopt.pacs.http.routes import NodeParts, application
from medopt.serving.server.auth import LOOPBACK, Key
from medopt.serving.server.bounded_http import ConnectionLimits, Listener, bounded_protocol, listen

MAX_CONNECTIONS = 100
_REQUEST_SECONDS = 5.0
_KEEP_ALIVE_SECONDS = 5
_GRACE_SECONDS = 10
_QUOTING_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")  # they quote requests


class HttpServer:
    """The node's HTTP server."""

    def __init__(self, parts: NodeParts) -> None:
        """Raises ConfigError if other machines could use it without a key, or the key cannot be read."""
        web = parts.settings.web
        assert web is not None
        key = Key.read(web.key_file)
        if web.host not in LOOPBACK and not key:
            raise ConfigError(
                f"On {web.host} anyone on the network could see the node's page and send to it. Name a file with a "
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
            http=bounded_protocol(H11Protocol, listener.connections),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
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

    def _listen(self) -> Listener:
        web = self._web
        try:
            limits = ConnectionLimits(MAX_CONNECTIONS, MAX_CONNECTIONS, _REQUEST_SECONDS, _KEEP_ALIVE_SECONDS)
            return listen(web.host, web.port, limits)
        except OSError as error:
            raise ConfigError(
                f"The node cannot listen on {web.host}:{web.port} ({error.strerror}), its section web. Choose another "
                "port, or end what listens there."
            ) from None
