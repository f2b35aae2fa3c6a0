"""REST and gRPC in one process: both listen before the releases are opened, so that health can be asked."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when grpc is imported; its lines are no JSON and name clients
import grpc
import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from medopt.core.errors import ConfigError
from medopt.core.signals import ending_signals
from medopt.release.layout import Kind
from medopt.serving.server import grpc_server, rest_server, try_page
from medopt.serving.server.auth import LOOPBACK, Key
from medopt.serving.server.bounded_http import ConnectionLimits, Listener, allow_open_files, bounded_protocol, listen
from medopt.serving.server.limits import ServerLimits
from medopt.serving.server.log import configure, event
from medopt.serving.server.metrics import ServerMetrics
from medopt.serving.server.releases import ReleaseRegistry
from medopt.serving.server.service import Service


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Certificate and key of the server, and who may sign those of clients (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> None:
        """Raises ConfigError where the files are no certificate with its key."""
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.cert, self.key)
            if self.client_ca:
                context.load_verify_locations(self.client_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"TLS cannot be set up with {self.cert} and {self.key}: {error.strerror or type(error).__name__}. "
                "Both must be readable PEM files, the key must be that of the certificate."
            ) from None

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC."""
        ca = self.client_ca.read_bytes() if self.client_ca else None
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where a server listens. A port of 0 is chosen by the system; gRPC may be left out (None)."""

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = 8081
    tls: ServerTls | None = None
    try_page: bool = False
    """Whether the page to try a release by hand is there."""


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its own handling of signals: there is a gRPC server to stop, too."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to `serve`."""
        yield


def serve(
    folders: Sequence[Path],
    kind: Kind,
    listeners: Listeners,
    limits: ServerLimits,
    key: Key,
    open_to_all: bool,
    also: logging.Handler | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; `also` gets the log, too. Raises ConfigError where it may not listen there."""
    mutual = listeners.tls is not None and listeners.tls.client_ca is not None
    if listeners.host not in LOOPBACK and not (key or mutual or open_to_all):
        raise ConfigError(
            f"On {listeners.host} anyone on the network could get answers. Give --api-key-file (MEDOPT_API_KEY) or "
            "--client-ca, or say --no-auth where something in front of this server checks who calls."
        )
    if listeners.tls:
        listeners.tls.check()
    configure(also)
    allow_open_files(4 * limits.connections.total + 1024)
    listening = _listen(listeners.host, listeners.port, limits.connections)
    try:
        asyncio.run(_serve(folders, kind, listeners, limits, key, listening))
    finally:
        listening.close()
        if also:
            also.close()


def _listen(host: str, port: int, limits: ConnectionLimits) -> Listener:
    try:
        return listen(host, port, limits)
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from None


async def _serve(
    folders: Sequence[Path], kind: Kind, listeners: Listeners, limits: ServerLimits, key: Key, listening: Listener
) -> None:
    metrics = ServerMetrics()
    registry = ReleaseRegistry(folders, kind, limits, metrics)
    service = Service(registry, limits, metrics)
    app = rest_server.application(service, key, listeners.try_page)
    protocol = bounded_protocol(AutoHTTPProtocol, listening.connections)
    web = _Uvicorn(_configuration(app, protocol, listeners, limits))
    calls = None if listeners.grpc_port is None else grpc_server.server(service, key)
    grpc_port = None if calls is None else _bind(calls, listeners)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in ending_signals():
        loop.add_signal_handler(number, stop.set)
    if calls is not None:
        await calls.start()
    web_task = asyncio.create_task(web.serve(sockets=[listening]))
    port = listening.getsockname()[1]
    facts = {"host": listeners.host, "rest": port, "grpc": grpc_port, "tls": bool(listeners.tls)}
    if listeners.try_page:
        host = f"[{listeners.host}]" if ":" in listeners.host else listeners.host
        facts["page"] = f"{'https' if listeners.tls else 'http'}://{host}:{port}{try_page.PATH}"
    event(logging.INFO, "listening", facts)
    opening = asyncio.create_task(registry.open_all())
    await asyncio.wait([asyncio.create_task(stop.wait()), web_task], return_when=asyncio.FIRST_COMPLETED)
    service.stopping = True
    event(logging.INFO, "stopping", {"images": service.images_in_hand})
    opening.cancel()
    web.should_exit = True
    await asyncio.gather(web_task, calls.stop(limits.grace_seconds) if calls else asyncio.sleep(0))
    registry.close()
    service.readers.shutdown(wait=False, cancel_futures=True)
    event(logging.INFO, "stopped", {"images": service.images_in_hand})


def _configuration(
    app: rest_server.Channel, protocol: Any, listeners: Listeners, limits: ServerLimits
) -> uvicorn.Config:
    tls = listeners.tls
    return uvicorn.Config(
        app,
        http=protocol,
        timeout_keep_alive=limits.connections.keep_alive_seconds,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(limits.grace_seconds),
        ssl_certfile=tls.cert if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
    )


def _bind(calls: grpc.aio.Server, listeners: Listeners) -> int:
    host = f"[{listeners.host}]" if ":" in listeners.host else listeners.host
    address = f"{host}:{listeners.grpc_port}"
    try:
        return int(
            calls.add_secure_port(address, listeners.tls.credentials())
            if listeners.tls
            else calls.add_insecure_port(address)
        )
    except RuntimeError:
        raise ConfigError(f"Cannot listen on {address} for gRPC: it is taken. Choose another --grpc-port.") from None
