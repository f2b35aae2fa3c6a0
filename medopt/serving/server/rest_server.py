"""The REST server: the protocol's v2 routes and `/metrics`; key, size and time are checked before a body is read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medopt.serving.server.auth import Key, check_encoding
from medopt.serving.server.limits import HTTP, Refused, ServerLimits
from medopt.serving.server.log import event
from medopt.serving.server.metadata import ServerMetadata, model_metadata, model_ready, refuse_unload
from medopt.serving.server.service import RequestLog, Service, content_digest
from medopt.serving.server.v2_codec import parse_request, wants_ready, write_response

JSON_LENGTH = "inference-header-content-length"
"""The header with the length of the JSON before binary tensors."""
_MAX_INDEX_BYTES = 64 * 1024
_WITHOUT_KEY = ("/v2/health/live", "/v2/health/ready")
Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


def application(service: Service, key: Key) -> Channel:
    """The REST server as an ASGI application."""
    handlers: dict[Any, Any] = {Refused: _refused, HTTPException: _no_route, Exception: _failed}
    app = Starlette(routes=_Routes(service).all(), exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect is no answer of the protocol
    return RestGuard(app, key)


def refusal(refused: Refused) -> JSONResponse:
    """A refusal in the protocol's form: a status and {"error": text}."""
    headers = {"Retry-After": "1"} if refused.kind == "busy" else {}
    if refused.kind == "key":
        headers["WWW-Authenticate"] = "Bearer"
    if refused.kind in ("size", "busy", "slow", "encoding"):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": refused.text}, HTTP[refused.kind], headers)


async def _refused(_: Request, error: Refused) -> Response:
    return refusal(error)


async def _no_route(_: Request, error: HTTPException) -> Response:
    text = "This server has no such route" if error.status_code == 404 else "This route does not take this method"
    return JSONResponse({"error": f"{text}; GET /v2/models lists the models."}, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    """The exception's text may quote the request, so only its type is given."""
    return refusal(Refused("internal", f"The server failed ({type(error).__name__}); its log has the time."))


class RestGuard:
    """Asks for the key before anything is read, and lets no exception's text out."""

    def __init__(self, app: Channel, key: Key) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """One request (ASGI)."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                if scope["path"] not in _WITHOUT_KEY:
                    self._key.check(headers)
                check_encoding(headers)
            except Refused as refused:
                code = HTTP[refused.kind]
                event(logging.WARNING, "request", {"door": "rest", "code": code, "refused": refused.kind})
                await refusal(refused)(scope, receive, send)
                return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # the client has its status 500 already
            event(logging.ERROR, "failure", {"door": "rest", "type": type(error).__name__})


class _Routes:
    """The endpoints of the protocol and of its repository extension."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def all(self) -> list[Route]:
        """Each path with its endpoint."""
        model, repository = "/v2/models/{name}", "/v2/repository/models/{name}"
        version = f"{model}/versions/{{version}}"
        get = {
            "/v2": self.server, "/v2/health/live": self.live, "/v2/health/ready": self.ready,
            "/v2/models": self.models, "/metrics": self.metrics,
            model: self.model, version: self.model, f"{model}/ready": self.is_ready, f"{version}/ready": self.is_ready,
        }  # fmt: skip
        post = {
            f"{model}/infer": self.infer, f"{version}/infer": self.infer,
            "/v2/repository/index": self.index, f"{repository}/load": self.load, f"{repository}/unload": self.unload,
        }  # fmt: skip
        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
        ]

    async def server(self, _: Request) -> Response:
        """The server's name, version and extensions."""
        return JSONResponse(asdict(ServerMetadata()))

    async def live(self, _: Request) -> Response:
        """200 while the process answers."""
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        """200 where every release serves, else 503 with each one's state and reason."""
        ready = self._service.ready
        return JSONResponse({"ready": ready, "releases": self._states()}, 200 if ready else 503)

    async def models(self, _: Request) -> Response:
        """The names to ask for."""
        return JSONResponse({"models": self._service.registry.names})

    async def model(self, request: Request) -> Response:
        """One release's inputs, outputs and hashes; without those where it does not serve."""
        metadata = asdict(model_metadata(self._service, *_release(request)))
        return JSONResponse({key: value for key, value in metadata.items() if value is not None})

    async def is_ready(self, request: Request) -> Response:
        """200 or 503 with the reason."""
        name, version = _release(request)
        ready = model_ready(self._service, name, version)
        return JSONResponse({"name": name, "ready": ready, "releases": self._states(name)}, 200 if ready else 503)

    async def index(self, request: Request) -> Response:
        """All releases with their states; with {"ready": true} those that serve."""
        body = await _body(request, replace(self._service.limits, max_body=_MAX_INDEX_BYTES), lambda _: None)
        ready = wants_ready(body)
        return JSONResponse([state for state in self._states() if not ready or state["state"] == "READY"])

    async def load(self, request: Request) -> Response:
        """Read a release again from its folder; it takes over if it is sound."""
        name, _ = _release(request)
        await self._service.registry.reload(name)
        versions = [folder.version for folder in self._service.registry.named(name)]
        return JSONResponse({"name": name, "load": True, "versions": versions})

    async def unload(self, request: Request) -> Response:
        """Refused."""
        refuse_unload(self._service, _release(request)[0])

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _states(self, name: str | None = None) -> list[dict[str, str]]:
        return [asdict(state) for state in self._service.registry.states(name)]

    async def infer(self, request: Request) -> Response:
        """Answer a request."""
        with self._service.logged("rest") as log:
            return await self._infer(request, log)

    async def _infer(self, request: Request, log: RequestLog) -> Response:
        service = self._service
        served = service.registry.find(*_release(request))
        log.model, log.version = served.name, served.verified.version
        _check_announced(request, service.limits.max_body)
        with service.receiving() as take:
            with service.uploading():
                body = await _body(request, service.limits, take)
            with service.admitted(1):
                log.digest = await service.in_reader(content_digest, body)
                inputs, selection = await service.in_reader(parse_request, body, request.headers.get(JSON_LENGTH))
                del body
                response = await service.answer(served, inputs, log, taken=1)
        data, length = write_response(response, selection)
        if length is None:
            return Response(data, media_type="application/json")
        return Response(data, headers={JSON_LENGTH: str(length)}, media_type="application/octet-stream")


def _release(request: Request) -> tuple[str, str]:
    """Name and version (empty: any) that the path names."""
    return request.path_params["name"], request.path_params.get("version", "")


def _check_announced(request: Request, max_size: int) -> None:
    """Raises Refused where the header announces more than is taken."""
    text = request.headers.get("content-length")
    if text is not None and (not text.isdecimal() or int(text) > max_size):
        raise _too_large(max_size)


def _too_large(max_size: int) -> Refused:
    return Refused("size", f"The body is larger than this server takes ({max_size} bytes).")


async def _body(request: Request, limits: ServerLimits, take: Callable[[int], None]) -> bytes:
    """The body, each piece counted as it comes; raises Refused for one that is too large or too slow."""
    pieces, size = list[bytes](), 0
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.body_seconds
    window_end, window_size = loop.time() + limits.window_seconds, 0
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout_at(min(end, window_end)):
                piece = await anext(stream, None)
            if piece is None:
                return b"".join(pieces)
            size += len(piece)
            if size > limits.max_body:
                raise _too_large(limits.max_body)
            take(len(piece))
            pieces.append(piece)
            if loop.time() < window_end and size - window_size < limits.window_bytes:
                continue
            if size - window_size < limits.window_bytes:
                raise TimeoutError
            window_end, window_size = loop.time() + limits.window_seconds, size
    except TimeoutError:
        if loop.time() >= end:
            raise Refused("slow", f"The body did not arrive within {limits.body_seconds:g} s.") from None
        raise Refused(
            "slow",
            f"The body came too slowly: less than {limits.window_bytes >> 10} KiB in {limits.window_seconds:g} s.",
        ) from None
    except ClientDisconnect:
        raise Refused("malformed", "The client went away before its request had arrived.") from None
