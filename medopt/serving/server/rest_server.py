"""The REST server: the protocol's v2 routes, `/metrics` and `/openapi.json`; the key is asked before a body is read."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Container, MutableMapping
from dataclasses import asdict, replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medopt.serving.server.auth import Key, check_encoding
from medopt.serving.server.form_data import is_form
from medopt.serving.server.inputs import ReleaseInputs
from medopt.serving.server.limits import HTTP, Refused
from medopt.serving.server.log import event
from medopt.serving.server.metadata import ServerMetadata, model_metadata, model_ready, refuse_unload
from medopt.serving.server.openapi import TEXT, Operation, document, infer_operation
from medopt.serving.server.request_body import check_announced, read_body
from medopt.serving.server.service import RequestLog, Service, content_digest, log_refusal
from medopt.serving.server.try_page import TryPage
from medopt.serving.server.v2_codec import parse_request, wants_ready, write_response

JSON_LENGTH = "inference-header-content-length"
"""The header with the length of the JSON before binary tensors."""
_MAX_INDEX_BYTES = 64 * 1024
Scope = MutableMapping[str, Any]
Channel = Callable[..., Awaitable[Any]]


def application(service: Service, key: Key, try_page: bool = False) -> Channel:
    """The REST server as an ASGI application, with a page to try a release if you like."""
    operations = [*_Protocol(service).operations(), *(TryPage(service, key).operations() if try_page else [])]

    async def openapi(_: Request) -> Response:
        """This document: every route of this server (OpenAPI 3.1)."""
        registry = service.registry
        return JSONResponse(document(operations, registry.channels(), registry.covariates()))

    operations.append(Operation("GET", "/openapi.json", openapi, {200: "Document"}))
    routes = [Route(operation.path, operation.endpoint, methods=[operation.method]) for operation in operations]
    handlers: dict[Any, Any] = {Refused: _refused, HTTPException: _no_route, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # a redirect is no answer of the protocol
    return RestGuard(app, key, {operation.path for operation in operations if operation.without_key})


def refusal(refused: Refused) -> JSONResponse:
    """A refusal in the protocol's form: a status and {"error": text}."""
    headers = {"Retry-After": "1"} if refused.kind == "busy" else {}
    if refused.kind == "key":
        headers["WWW-Authenticate"] = "Bearer"
    if refused.kind in ("size", "busy", "slow", "encoding"):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": refused.text}, HTTP[refused.kind], headers)


async def _refused(_: Request, error: Refused) -> Response:
    log_refusal("rest", error)
    return refusal(error)


async def _no_route(_: Request, error: HTTPException) -> Response:
    text = "This server has no such route" if error.status_code == 404 else "This route does not take this method"
    event(logging.WARNING, "request", {"door": "rest", "code": str(error.status_code), "refused": "route"})
    return JSONResponse({"error": f"{text}; GET /v2/models lists the models."}, error.status_code, error.headers)


async def _failed(_: Request, error: Exception) -> Response:
    """The exception's text may quote the request, so only its type is given."""
    return refusal(Refused("internal", f"The server failed ({type(error).__name__}); its log has the time."))


class RestGuard:
    """Asks for the key before anything is read, and lets no exception's text out."""

    def __init__(self, app: Channel, key: Key, without_key: Container[str]) -> None:
        self._app, self._key, self._without_key = app, key, without_key

    async def __call__(self, scope: Scope, receive: Channel, send: Channel) -> None:
        """One request (ASGI)."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                if scope["path"] not in self._without_key:
                    self._key.check(headers)
                check_encoding(headers)
            except Refused as refused:
                log_refusal("rest", refused)
                await refusal(refused)(scope, receive, send)
                return
        try:
            await self._app(scope, receive, send)
        except Exception as error:  # the client has its status 500 already
            event(logging.ERROR, "failure", {"door": "rest", "type": type(error).__name__})


class _Protocol:
    """The endpoints of the protocol and of its repository extension."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def operations(self) -> list[Operation]:
        """Each path with its endpoint and what it answers."""
        model, repository = "/v2/models/{name}", "/v2/repository/models/{name}"
        version = f"{model}/versions/{{version}}"
        ready = {200: "Ready", 503: "Ready"}
        return [
            Operation("GET", "/v2", self.server, {200: "ServerMetadata"}),
            Operation("GET", "/v2/health/live", self.live, {200: "Live"}, without_key=True),
            Operation("GET", "/v2/health/ready", self.ready, ready, without_key=True),
            Operation("GET", "/v2/models", self.models, {200: "ModelList"}),
            *(
                operation
                for path in (model, version)
                for operation in (
                    Operation("GET", path, self.model, {200: "ModelMetadata"}, ("unknown", "not_ready")),
                    Operation("GET", f"{path}/ready", self.is_ready, dict.fromkeys(ready, "ModelReady"), ("unknown",)),
                    infer_operation(f"{path}/infer", self.infer),
                )
            ),
            Operation(
                "POST", "/v2/repository/index", self.index, {200: "RepositoryIndex"},
                ("malformed", "size", "slow"), "index",
            ),
            Operation("POST", f"{repository}/load", self.load, {200: "Loaded"}, ("unknown", "not_ready")),
            Operation("POST", f"{repository}/unload", self.unload, {}, ("malformed", "unknown")),
            Operation("GET", "/metrics", self.metrics, {200: TEXT}),
        ]  # fmt: skip

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
        body = await read_body(request, replace(self._service.limits, max_body=_MAX_INDEX_BYTES), lambda _: None)
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
        check_announced(request, service.limits.max_body)
        content_type = request.headers.get("content-type")
        with service.receiving() as take:
            with service.uploading():
                body = await read_body(request, service.limits, take)
            with service.admitted(1):
                if not is_form(content_type):
                    log.digest = await service.in_reader(content_digest, body)
                length = request.headers.get(JSON_LENGTH)
                max_scans = service.limits.max_queue
                inputs = ReleaseInputs.of(served.verified.release.info)
                sent, selection = await service.in_reader(parse_request, body, length, content_type, max_scans, inputs)
                if is_form(content_type):  # its boundary is another each time
                    log.digest = await service.in_reader(content_digest, *sent.files)
                del body
                response = await service.answer(served, sent, log, taken=1)
        data, json_length = write_response(response, selection)
        if json_length is None:
            return Response(data, media_type="application/json")
        return Response(data, headers={JSON_LENGTH: str(json_length)}, media_type="application/octet-stream")


def _release(request: Request) -> tuple[str, str]:
    """Name and version (empty: any) that the path names."""
    return request.path_params["name"], request.path_params.get("version", "")
