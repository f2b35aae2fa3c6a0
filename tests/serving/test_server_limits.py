"""Who says nothing, or announces much, locks nobody out: of a real server, with and without TLS."""

from __future__ import annotations

import io
import json
import socket
import ssl
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from certificates import LOCAL, make_certificates
from clinic_fixtures import Finished
from PIL import Image
from pydicom import dcmread
from server_process import WHOLE, Server, image_request, served

from medopt.phantom import write_radiograph
from medopt.serving.server.generated import open_inference_pb2 as pb
from medopt.serving.server.generated import open_inference_pb2_grpc as stubs

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(finished: Finished) -> Iterator[Server]:
    with served(finished.release) as found:
        yield found


@pytest.fixture(scope="module")
def scan(finished: Finished) -> bytes:
    return sorted((finished.clinic.data / "scans").glob("*.dcm"))[-1].read_bytes()


def health_seconds(server: Server, **options: object) -> float:
    started = time.perf_counter()
    assert httpx.get(server.url("/v2/health/live"), timeout=10, **options).status_code == 200  # type: ignore[arg-type]
    return time.perf_counter() - started


def silent(stack: ExitStack, port: int, count: int, first: bytes = b"") -> list[socket.socket]:
    links = []
    for _ in range(count):
        link = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), 10)))
        if first:
            link.sendall(first)
        links.append(link)
    return links


@pytest.mark.parametrize("first", [b"", b"G", b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX: "])
def test_silent_and_slow_connections_stop_nobody(server: Server, first: bytes) -> None:
    with ExitStack() as stack:
        links = silent(stack, server.rest, 1100, first)
        assert min(health_seconds(server) for _ in range(3)) < 1
        until = time.monotonic() + 120
        while time.monotonic() < until:  # one byte now and then keeps none of them
            for link in links[-20:]:
                try:
                    link.sendall(b"a")
                except OSError:
                    until = 0
            time.sleep(0.5)
        assert until == 0


def test_a_second_request_has_a_deadline_too(server: Server) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.rest), 20)) as link:
        link.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in link.recv(4096)
        started = time.monotonic()
        while time.monotonic() - started < 15:
            try:
                link.sendall(b"G")
                link.settimeout(0.5)
                if link.recv(10) in (b"",):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - started < 14


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS


@pytest.mark.parametrize(("first", "seconds"), [(b"", 6), (PREFACE, 12)], ids=["silent", "silent after the handshake"])
def test_silent_grpc_connections_stop_neither_port(server: Server, first: bytes, seconds: float) -> None:
    with ExitStack() as stack:
        for _ in range(1100):  # beyond its cap the server closes them
            with suppress(OSError):
                silent(stack, server.grpc, 1, first)
        assert min(health_seconds(server) for _ in range(3)) < 1
        time.sleep(seconds)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10, wait_for_ready=True).live


def head(*lines: str) -> bytes:
    return "\r\n".join(("POST /v2/models/clinic/infer HTTP/1.1", "Host: a", *lines, "", "")).encode()


@pytest.mark.parametrize(
    ("count", "first"),
    [
        (8, head(f"Content-Length: {64 * MIB}") + b"x"),
        (70, head("Transfer-Encoding: chunked") + b"5\r\nhello\r\n"),
    ],
)
def test_what_is_announced_takes_no_memory_of_others(server: Server, scan: bytes, count: int, first: bytes) -> None:
    with ExitStack() as stack:
        links = silent(stack, server.rest, count, first)
        time.sleep(0.3)
        started = time.monotonic()
        answer = httpx.post(server.url("/v2/models/clinic/infer"), content=scan, headers=WHOLE, timeout=30)
        assert answer.status_code == 200, answer.text
        links[0].settimeout(20)
        text = links[0].recv(4096)
        while more := links[0].recv(4096):
            text += more
        assert b" 504 " in text and b"came too slowly: less than 64 KiB in 10 s" in text
        assert time.monotonic() - started < 18


def test_the_memory_for_requests_is_named(server: Server, scan: bytes) -> None:
    """Five uploads of 60 of 64 MiB are more than 256 MiB."""
    with ExitStack() as stack:
        links = silent(stack, server.rest, 5, head(f"Content-Length: {64 * MIB}"))
        piece, refusals = bytes(4 * MIB), list[bytes]()
        for _ in range(15):
            for link in links:
                try:
                    link.sendall(piece)
                except OSError:
                    refusals.append(b"")
        time.sleep(0.2)
        for link in links:
            link.setblocking(False)
            with suppress(OSError):
                refusals.append(link.recv(4096))
        assert any(b" 429 " in text and b"The memory for requests is full" in text for text in refusals)


def test_with_tls_a_handshake_has_a_deadline(finished: Finished, tmp_path: Path) -> None:
    own = make_certificates(tmp_path, {"ca": {"server": LOCAL}})
    words = (finished.release, "--tls-cert", own / "server.pem", "--tls-key", own / "server.key")
    with served(*words, scheme="https") as server, ExitStack() as stack:
        context = ssl.create_default_context(cafile=own / "ca.pem")
        links = silent(stack, server.rest, 1100)
        assert min(health_seconds(server, verify=context) for _ in range(3)) < 1
        links[-1].settimeout(10)
        assert links[-1].recv(10) == b""


def test_the_index_of_those_that_are_ready(server: Server) -> None:
    url = server.url("/v2/repository/index")
    assert [model["state"] for model in httpx.post(url, json={"ready": True}).json()] == ["READY"]
    assert httpx.post(url, content=b"").status_code == httpx.post(url, json={}).status_code == 200
    assert httpx.post(url, content=b"[]").status_code == httpx.post(url, json={"ready": "yes"}).status_code == 400


@pytest.mark.parametrize("path", ["/v2/nothing", "/v2/models/clinic/", "/v3", "/", "/v2/models/clinic/infer/x"])
def test_a_route_that_is_not_there_is_an_error(server: Server, path: str) -> None:
    answer = httpx.get(server.url(path), follow_redirects=False)
    assert answer.status_code == 404
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("path", ["/v2/models/clinic/infer", "/v2/repository/index"])
def test_a_packed_body_is_refused_alike(server: Server, path: str) -> None:
    answer = httpx.post(server.url(path), content=b"x", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, list(answer.json())) == (415, ["error"])
    plain = httpx.post(server.url("/v2/repository/index"), headers={"Content-Encoding": "Identity"})
    assert plain.status_code == 200


def test_advice_fits_the_case(server: Server) -> None:
    def error(body: bytes) -> str:
        answer = httpx.post(server.url("/v2/models/clinic/infer"), content=body)
        assert answer.status_code == 400
        return str(answer.json()["error"])

    tensor = '{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1], "data": [NaN]}]}'
    assert "no NaN" in error(tensor.encode()) and "binary tensors" not in error(tensor.encode())
    assert "not valid" in error(b'{"inputs": [') and "binary tensors" not in error(b'{"inputs": [')
    assert "binary tensors" in error(b"\x00\x01")
    both = {"name": "image", "datatype": "FP32", "shape": [1], "data": [1.0], "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [both]}).encode()
    answer = httpx.post(
        server.url("/v2/models/clinic/infer"), content=text + bytes(4),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )  # fmt: skip
    assert answer.status_code == 400 and "give one of them" in answer.json()["error"]


def two_series(folder: Path) -> bytes:
    """A zip of two series, whose descriptions name the patient."""
    packed, noise = io.BytesIO(), np.random.default_rng(1).random((40, 40), np.float32)
    with zipfile.ZipFile(packed, "w") as archive:
        for number in (1, 2):
            image = dcmread(write_radiograph(folder / "a.dcm", noise))
            image.SeriesInstanceUID = f"1.2.3.{number}"
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
            image.PatientName, image.SeriesDescription = "QUITTENBAUM^ZOE", "Thorax Quittenbaum ap"
            image.Modality = "QUITTENBAUM"
            image.save_as(folder / "a.dcm")
            archive.write(folder / "a.dcm", f"QUITTENBAUM/{number}.dcm")
    return packed.getvalue()


def test_no_name_leaves_by_any_door(server: Server, tmp_path: Path) -> None:
    packed = two_series(tmp_path)
    answers = [httpx.post(server.url("/v2/models/clinic/infer"), content=packed, headers=WHOLE)]
    answers += [
        httpx.post(server.url("/v2/models/clinic/infer"), content=scan, headers=WHOLE)
        for scan in ((tmp_path / "a.dcm").read_bytes(), b"QUITTENBAUM")
    ]
    texts = [answer.text for answer in answers]
    assert "2 series" in texts[0] and "another one" in texts[1]
    request = pb.ModelInferRequest(model_name="clinic")
    request.inputs.add(name="scan", datatype="BYTES", shape=[1]).contents.bytes_contents.append(packed)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, timeout=20, wait_for_ready=True)
    texts += [refused.value.details() or "", *server.raw]  # type: ignore[attr-defined]
    assert not [text for text in texts if "quittenbaum" in text.lower() or "thorax" in text.lower()]


def test_a_declined_scan_has_no_output_at_all(server: Server, tmp_path: Path) -> None:
    """A photo, as of a cat: it is not of the modality or size of training, or unlike it."""
    photo = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64), dtype=np.uint8)).save(photo)
    answer = httpx.post(server.url("/v2/models/clinic/infer"), content=photo.read_bytes(), headers=WHOLE).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["declined"][0]
    assert outputs["decision"] == [""]
    assert set(outputs["probabilities"]) == set(outputs["logits"]) == {None}


def test_typed_and_raw_contents_together_are_invalid(server: Server) -> None:
    image = np.full((1, 1, 32, 32), 0.5, np.float32)
    request = pb.ModelInferRequest(model_name="clinic")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=image.shape)
    tensor.contents.fp32_contents.extend(image.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        assert stub.ModelInfer(request, timeout=20, wait_for_ready=True).model_name == "clinic"
        request.raw_input_contents.append(image.tobytes())
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request, timeout=20)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert image_request(image)[0]
