"""The REST door: the protocol's v2 routes, `/metrics`, and before all of them key, size and time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from medopt.serving.server.auth import Key
from medopt.serving.server.kserve_parts import Plane, Repository
from medopt.serving.server.limits import HTTP, Refused
from medopt.serving.server.log import event
from medopt.serving.server.service import RequestLog, Service, content_digest
from medopt.serving.server.v2_codec import parse_request, write_reply

LENGTH = "inference-header-content-length"
_OPEN = ("/v2/health/live", "/v2/health/ready")
Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


def application(service: Service, plane: Plane, repository: Repository, key: Key) -> Channel:
    """The whole door as an ASGI application."""
    app = FastAPI(title="medopt", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(RequestValidationError, _unlike_protocol)
    _Routes(service, plane, repository).register(app)
    return RestGuard(app, key)


def refusal(refused: Refused) -> JSONResponse:
    """A refusal as the protocol has it: a status and {"error": text}."""
    headers = {"Retry-After": "1"} if refused.kind == "busy" else {}
    if refused.kind == "key":
        headers["WWW-Authenticate"] = "Bearer"
    if refused.kind in ("size", "busy", "slow"):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": refused.text}, HTTP[refused.kind], headers)


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal(error)


async def _unlike_protocol(_: Request, __: Exception) -> Response:
    return refusal(Refused("malformed", "The request is not of the protocol."))


class RestGuard:
    """Asks for the key before anything is read, and lets no exception's text out."""

    def __init__(self, app: Channel, key: Key) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """One connection's request (ASGI)."""
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                self._key.check(headers)
            except Refused as refused:
                event(logging.WARNING, "request", {"door": "rest", "code": 401, "refused": "key"})
                await refusal(refused)(scope, receive, send)
                return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # the application has sent a 500 without a word of it
            event(logging.ERROR, "failure", {"door": "rest", "type": type(error).__name__})


class _Routes:
    """KServe's v2 endpoints, and those where medopt has more to say."""

    def __init__(self, service: Service, plane: Plane, repository: Repository) -> None:
        self._service, self._plane, self._repository = service, plane, repository
        self._kserve = V2Endpoints(plane, repository)

    def register(self, app: FastAPI) -> None:
        """Add all routes."""
        kserve = self._kserve
        for path, endpoint in (
            ("/v2", kserve.metadata),
            ("/v2/health/live", kserve.live),
            ("/v2/health/ready", self.ready),
            ("/v2/models", self.models),
            ("/metrics", self.metrics),
        ):
            app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            app.add_api_route(path, self.metadata, methods=["GET"], response_model=None)
            app.add_api_route(f"{path}/ready", self.model_ready, methods=["GET"], response_model=None)
            app.add_route(f"{path}/infer", self.infer, methods=["POST"])
        app.add_api_route("/v2/repository/index", self.index, methods=["POST"], response_model=None)
        app.add_api_route("/v2/repository/models/{name}/load", self.load, methods=["POST"], response_model=None)
        app.add_api_route("/v2/repository/models/{name}/unload", self.unload, methods=["POST"], response_model=None)

    async def ready(self) -> Response:
        """200 where every release serves, else 503 with each one's state and reason."""
        told = {"ready": self._service.ready, "releases": self._service.shelf.reasons()}
        return JSONResponse(told, 200 if self._service.ready else 503)

    async def models(self) -> Response:
        """The names to ask for."""
        return JSONResponse({"models": self._service.shelf.names})

    async def metadata(self, name: str, version: str = "") -> Response:
        """One release."""
        return JSONResponse(await self._plane.model_metadata(name, version))

    async def model_ready(self, name: str, version: str = "") -> Response:
        """200 or 503 with the reason."""
        ready = await self._plane.model_ready(name, version)
        reasons = [one for one in self._service.shelf.reasons() if one["name"] == name]
        return JSONResponse({"name": name, "ready": ready, "releases": reasons}, 200 if ready else 503)

    async def index(self) -> Response:
        """All releases."""
        return JSONResponse(await self._repository.index())

    async def load(self, name: str) -> Response:
        """Read a release again from its folder, and let it take over if it is sound."""
        await self._repository.load(name)
        return JSONResponse({"name": name, "load": True, "versions": await self._versions(name)})

    async def _versions(self, name: str) -> list[str]:
        return [place.version for place in self._service.shelf.named(name)]

    async def unload(self, name: str) -> None:
        """Refused."""
        await self._repository.unload(name)

    async def metrics(self) -> Response:
        """Prometheus' text."""
        return Response(self._service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def infer(self, request: Request) -> Response:
        """Answer a request."""
        try:
            with self._service.visited("rest") as visit:
                return await self._infer(request, visit)
        except Refused as refused:
            return refusal(refused)

    async def _infer(self, request: Request, visit: RequestLog) -> Response:
        service = self._service
        served = service.shelf.find(request.path_params["name"], request.path_params.get("version", ""))
        visit.model, visit.version = served.name, served.checked.version
        size = _announced(request, service.limits.max_body)
        with service.admitted(1, size):
            body = await _body(request, service.limits.max_body, service.limits.body_seconds)
            visit.digest = await service.in_reader(content_digest, body)
            asked, wanted = await service.in_reader(parse_request, body, request.headers.get(LENGTH))
            del body
            reply = await service.answer(served, asked, visit, taken=1)
        data, length = write_reply(reply, wanted)
        if length is None:
            return Response(data, media_type="application/json")
        return Response(data, headers={LENGTH: str(length)}, media_type="application/octet-stream")


def _announced(request: Request, most: int) -> int:
    """Bytes to come; as many as are allowed where the client does not say."""
    text = request.headers.get("content-length")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused("malformed", "Content-Encoding is not taken: send the body as it is.")
    if text is None:
        return most
    if not text.isdecimal() or int(text) > most:
        raise Refused("size", f"The body is larger than this server takes ({most} bytes).")
    return int(text)


async def _body(request: Request, most: int, seconds: float) -> bytes:
    pieces, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    raise Refused("size", f"The body is larger than this server takes ({most} bytes).")
                pieces.append(piece)
    except TimeoutError:
        raise Refused("slow", f"The body did not arrive within {seconds:g} s.") from None
    except ClientDisconnect:
        raise Refused("malformed", "The client went away before its request had arrived.") from None
    return b"".join(pieces)
