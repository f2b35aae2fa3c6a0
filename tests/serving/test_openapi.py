"""The OpenAPI document against a running server: every route stands in it, and answers as it says."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from clinic_fixtures import Finished, environment
from real_data import REPO
from server_process import Server, served
from starlette.applications import Starlette
from starlette.routing import Route

from medopt.serving.server.auth import Key
from medopt.serving.server.limits import HTTP, ServerLimits
from medopt.serving.server.metrics import ServerMetrics
from medopt.serving.server.rest_server import RestGuard, application
from medopt.serving.server.service import Service

KEY = "correct-horse-battery-staple"
HEADERS = {"X-API-Key": KEY}


@pytest.fixture(scope="module")
def server(finished: Finished) -> Iterator[Server]:
    with served(finished.release, "--try", MEDOPT_API_KEY=KEY) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    answer = httpx.get(server.url("/openapi.json"), headers=HEADERS)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture(scope="module")
def scans(finished: Finished) -> list[Path]:
    return sorted((finished.clinic.data / "scans").glob("*.dcm"))[-2:]


class NoRelease:
    names: tuple[str, ...] = ()


def routes(try_page: bool) -> set[tuple[str, str]]:
    """Method and path of each route of an application."""
    service = Service(NoRelease(), ServerLimits(readers=1), ServerMetrics())  # type: ignore[arg-type]
    guard = application(service, Key(), try_page)
    assert isinstance(guard, RestGuard) and isinstance(guard._app, Starlette)
    service.readers.shutdown()
    return {
        (method, route.path)
        for route in guard._app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_stands_in_it(document: dict[str, Any]) -> None:
    assert set(operations(document)) == routes(try_page=True)
    page = {("GET", "/try"), ("POST", "/try"), ("POST", "/try/key")}
    assert routes(try_page=False) == routes(try_page=True) - page


def test_it_is_sound(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0" and document["info"]["version"]
    described = operations(document).values()
    assert len({operation["operationId"] for operation in described}) == len(described)
    assert all(operation["summary"] for operation in described)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            named = [one["name"] for one in operation["parameters"] if one["in"] == "path"]
            assert all(f"{{{name}}}" in path for name in named) and len(named) == path.count("{")


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema | {"components": document["components"]})


def check(document: dict[str, Any], operation: dict[str, Any], answer: httpx.Response) -> None:
    """The answer has a status, a media type and a body that the document names."""
    described = operation["responses"][str(answer.status_code)]
    if "content" not in described:
        assert answer.headers["location"]
        return
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = described["content"][media_type]["schema"]
    validator(document, schema).validate(answer.json() if media_type == "application/json" else answer.text)


def body_for(operation: dict[str, Any], scan: bytes) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        fields = {"model": "clinic"} if "model" in content["multipart/form-data"]["schema"]["properties"] else {}
        return {"files": {"scan": ("scan", scan)}, "data": fields}
    if "application/x-www-form-urlencoded" in content:
        return {"data": {"key": KEY}}
    return {"json": {"ready": True}} if content else {}


def test_every_documented_route_answers(server: Server, document: dict[str, Any], scans: list[Path]) -> None:
    scan = scans[0].read_bytes()
    version = httpx.get(server.url("/v2/models/clinic"), headers=HEADERS).json()["versions"][0]
    codes = {}
    for (method, path), operation in operations(document).items():
        url = server.url(path.format(name="clinic", version=version))
        answer = httpx.request(method, url, headers=HEADERS, timeout=60, **body_for(operation, scan))
        check(document, operation, answer)
        codes[method, path] = answer.status_code
        without = httpx.request(method, url, timeout=60, **body_for(operation, scan))
        assert (without.status_code == 401) == ("401" in operation["responses"]), path
        check(document, operation, without)
    assert codes.pop(("POST", "/v2/repository/models/{name}/unload")) == 400
    assert codes.pop(("POST", "/try/key")) == 303
    assert set(codes.values()) == {200}


def test_refusals_are_as_documented(server: Server, document: dict[str, Any]) -> None:
    table = operations(document)
    infer = table["POST", "/v2/models/{name}/infer"]
    assert set(infer["responses"]) == {"200", *(str(code) for code in HTTP.values())}
    for name, body, code in (("clinic", b"x", 400), ("nobody", b"{}", 404), ("clinic", bytes(65 << 20), 413)):
        answer = httpx.post(server.url(f"/v2/models/{name}/infer"), content=body, headers=HEADERS, timeout=60)
        assert answer.status_code == code
        check(document, infer, answer)
    for (method, path), operation in table.items():
        place = server.url(path.format(name="clinic", version="1"))
        packed = httpx.request(method, place, headers=HEADERS | {"Content-Encoding": "gzip"})
        assert packed.status_code == 415
        check(document, operation, packed)


def test_binary_outputs_are_in_the_document(server: Server, document: dict[str, Any], scans: list[Path]) -> None:
    infer, place = operations(document)["POST", "/v2/models/{name}/infer"], server.url("/v2/models/clinic/infer")
    scan = base64.b64encode(scans[0].read_bytes()).decode()
    base64_scan = {"parameters": {"content_type": "base64"}, "data": [scan]}
    tensor = {"name": "scan", "datatype": "BYTES", "shape": [1], **base64_scan}
    body = {"inputs": [tensor], "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}
    answer = httpx.post(place, json=body, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] in infer["responses"]["200"]["content"]
    assert answer.headers["content-type"] == "application/octet-stream"


def test_requests_of_the_protocol_are_of_its_schema(document: dict[str, Any]) -> None:
    schema = validator(document, {"$ref": "#/components/schemas/InferRequest"})
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [0.0, 0.5, 1.0, 0.0]}
    schema.validate({"id": "7", "inputs": [tensor], "outputs": [{"name": "logits"}]})
    for wrong in ({}, {"inputs": []}, {"inputs": [tensor, tensor]}, {"inputs": [tensor | {"name": "other"}]}):
        assert not schema.is_valid(wrong)


@pytest.mark.parametrize(("script", "door"), [("rest.py", "rest"), ("grpc_client.py", "grpc")])
def test_the_clients_of_the_examples_run(
    server: Server, scans: list[Path], tmp_path: Path, script: str, door: str
) -> None:
    address = server.url("") if door == "rest" else f"127.0.0.1:{server.grpc}"
    words = [sys.executable, str(REPO / "examples" / "clients" / script), address, "clinic", *map(str, scans)]
    done = subprocess.run(words, env=environment(MEDOPT_API_KEY=KEY), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("declined" in line or "(clear 0." in line for line in lines)
    (tmp_path / "a.dcm").write_bytes(b"no scan")
    words[-2:] = [str(tmp_path / "a.dcm")]
    refused = subprocess.run(words, env=environment(MEDOPT_API_KEY=KEY), capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "not a format that is read" in refused.stderr
