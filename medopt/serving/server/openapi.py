"""The OpenAPI 3.1 document of the REST server, written from the table of its operations, so that none is left out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from medopt import __version__
from medopt.config import Covariate
from medopt.serving.server.form_data import FORM
from medopt.serving.server.limits import HTTP, Kind
from medopt.serving.server.openapi_schemas import BODIES, SCHEMAS, Cases, files_of_cases, input_of_cases

HTML, TEXT = "text/html", "text/plain"
Body = Literal["", "infer", "index", "try", "key"]
_INFER: tuple[Kind, ...] = ("malformed", "unknown", "size", "busy", "internal", "not_ready", "slow")
_REFUSALS: dict[Kind, str] = {
    "malformed": "The request does not follow the protocol, or its scan cannot be read; the reason.",
    "encoding": "Content-Encoding is not taken.",
    "key": "The API key is absent or wrong.",
    "unknown": "There is no release of that name or version.",
    "size": "The body or the number of images is larger than this server takes.",
    "busy": "The queue or the memory for requests is full; try again after Retry-After.",
    "not_ready": "The release does not serve; the reason.",
    "slow": "The body came too slowly, or there was no answer in time.",
    "internal": "The server failed.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of a path. `answers` names a schema or a media type for each status that is no refusal."""

    method: Literal["GET", "POST"]
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    answers: Mapping[int, str]
    refusals: tuple[Kind, ...] = ()
    body: Body = ""
    without_key: bool = False


def infer_operation(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Operation:
    """An operation that answers scans or images."""
    return Operation("POST", path, endpoint, {200: "InferResponse"}, _INFER, "infer")


def document(
    operations: Sequence[Operation],
    channels: Mapping[str, tuple[str, ...]] | None = None,
    covariates: Mapping[str, tuple[Covariate, ...]] | None = None,
) -> dict[str, Any]:
    """The document (OpenAPI 3.1.0) of all operations.

    `channels`: the images of a case by release; `covariates`: what a release asks for beside them.
    """
    several = {model: names for model, names in (channels or {}).items() if names}
    cases = Cases(several, {model: beside for model, beside in (covariates or {}).items() if beside})
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, cases)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "medopt serve",
            "version": __version__,
            "summary": "Open Inference Protocol v2 over REST, health and metrics. Research software.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS | input_of_cases(cases),
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _operation(operation: Operation, cases: Cases) -> dict[str, Any]:
    responses = {str(status): _answer(status, kind) for status, kind in operation.answers.items()}
    first: tuple[Kind, ...] = () if operation.without_key else ("key",)
    for kind in (*first, "encoding", *operation.refusals):
        is_page = HTML in operation.answers.values() and kind != "encoding"  # which is refused before any route
        content = {HTML: {"schema": _schema(HTML)}} if is_page else {"application/json": {"schema": _schema("Error")}}
        responses.setdefault(str(HTTP[kind]), {"description": _REFUSALS[kind], "content": content})
    described: dict[str, Any] = {
        "summary": (inspect.getdoc(operation.endpoint) or "").partition("\n")[0],
        "operationId": f"{operation.method.lower()}{re.sub('[^A-Za-z0-9]+', '_', operation.path).rstrip('_')}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall("{([a-z]+)}", operation.path)
        ],
        "responses": responses,
        "security": [] if operation.without_key else [{"key": []}, {"bearer": []}],
    }
    if operation.body == "infer":  # where binary outputs are asked for
        responses["200"]["content"]["application/octet-stream"] = {"schema": {"type": "string"}}
    if operation.body:
        body = BODIES[operation.body] | files_of_cases(operation.body, cases)
        described["requestBody"] = {"required": operation.body != "index", "content": body}
        if FORM in body and "application/octet-stream" in body:
            described["parameters"].append(_HEADER_LENGTH)
    return described


_HEADER_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "Bytes of JSON before binary tensors; 0: the whole body is one scan. Absent with JSON and forms.",
    "schema": {"type": "integer", "minimum": 0},
}


def _answer(status: int, kind: str) -> dict[str, Any]:
    description = {200: "The answer.", 303: "Back to the page.", 503: "It does not serve; the reason."}[status]
    if status == 303:
        return {"description": description, "headers": {"Location": {"schema": {"type": "string"}}}}
    media_type = kind if "/" in kind else "application/json"
    return {"description": description, "content": {media_type: {"schema": _schema(kind)}}}


def _schema(kind: str) -> dict[str, str]:
    return {"type": "string"} if "/" in kind else {"$ref": f"#/components/schemas/{kind}"}
