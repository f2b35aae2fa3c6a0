"""`medopt serve`: a real process, Triton's own client over both protocols, and what must be refused."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from clinic_fixtures import Finished, call, environment
from google.protobuf import descriptor_pb2
from numpy.typing import NDArray
from server_process import WHOLE, Server, arrays, image_request, served

from medopt.core.files import file_digest
from medopt.core.records import FloatArray
from medopt.imaging.acquisition import Acquisition
from medopt.release.layout import SUMS
from medopt.release.predictor import Answer, Release
from medopt.serving.server.generated import open_inference_pb2

KEY = "correct-horse-battery-staple"
AUTH = {"X-API-Key": KEY}
QUEUE, BATCH = 8, 8


@dataclass(frozen=True, slots=True)
class Known:
    """Scans, their prepared images, and what the release says of them as one batch."""

    files: list[Path]
    images: FloatArray
    facts: list[Acquisition]
    predictor: Release

    def answers(self, with_facts: bool) -> list[Answer]:
        return self.predictor.predict_batch(self.images, self.facts if with_facts else None)


@pytest.fixture(scope="module")
def known(finished: Finished) -> Known:
    predictor = Release.open(finished.release, mode="throughput")
    assert predictor.setting.batch == BATCH
    files = sorted((finished.clinic.data / "scans").glob("*.dcm"))[-6:]
    read = [predictor.prepare(path) for path in files]
    return Known(files, np.stack([image for image, _ in read]), [facts for _, facts in read], predictor)


@pytest.fixture(scope="module")
def server(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A sound release, one that was tampered with, a key, and small limits."""
    folder = tmp_path_factory.mktemp("served")
    broken = folder / "broken"
    shutil.copytree(finished.release, broken)
    info = json.loads((broken / "release.json").read_text()) | {"study": "broken"}
    (broken / "release.json").write_text(json.dumps(info))
    key = folder / "key"
    key.write_text(f"{KEY}\n")
    words = (finished.release, broken, "--api-key-file", key, "--max-queue", QUEUE, "--max-body-mb", 1)
    with served(*words, releases=2, TMPDIR=str(folder)) as found:
        yield found
        assert not list(folder.glob("medopt-serve-*"))
        logged = "".join(found.raw)
        assert [one for one in found.events if one["event"] == "failure" or one.get("code") == "500"] == []
        assert [word for word in finished.clinic.identifiers if word in logged] == []
        assert "/scans" not in logged and ".dcm" not in logged and KEY not in logged


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url(""), headers=AUTH, timeout=30) as found:
        yield found


def post(client: httpx.Client, body: bytes, headers: dict[str, str], model: str = "clinic") -> httpx.Response:
    return client.post(f"/v2/models/{model}/infer", content=body, headers=headers)


def same(found: dict[str, NDArray[Any]], answers: list[Answer], labels: list[str]) -> None:
    """To the bit."""
    for row, answer in enumerate(answers):
        wanted = [np.nan] * len(labels) if answer.declined else [answer.probabilities[label] for label in labels]
        np.testing.assert_array_equal(found["probabilities"][row].astype(float), wanted)
        logits = [np.nan] * len(answer.logits) if answer.declined else answer.logits
        np.testing.assert_array_equal(found["logits"][row].astype(float), logits)
        text = [
            one.decode() if isinstance(one, bytes) else one for one in (found["decision"][row], found["declined"][row])
        ]
        assert text == [answer.decision, answer.declined or ""]


def test_the_sound_release_serves_and_the_other_says_why_not(
    client: httpx.Client, finished: Finished, known: Known
) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    ready = client.get("/v2/health/ready")
    assert ready.status_code == 503
    version = file_digest(finished.release / SUMS)[:12]
    sound, broken = ready.json()["releases"]
    assert sound == {"name": "clinic", "version": version, "state": "READY", "reason": ""}
    assert (broken["name"], broken["version"], broken["state"]) == ("broken", "", "UNAVAILABLE")
    assert "release.json was changed" in broken["reason"] and "/" not in broken["reason"]
    assert client.get("/v2/models/clinic/ready").status_code == 200
    assert client.get(f"/v2/models/clinic/versions/{version}/ready").status_code == 200
    assert client.get("/v2/models/broken/ready").json()["releases"] == [broken]
    assert client.get("/v2/models/broken").json()["releases"] == [broken]
    assert client.post("/v2/repository/index").json() == [sound, broken]
    refused = post(client, known.files[0].read_bytes(), WHOLE, "broken")
    assert refused.status_code == 503 and "release.json was changed" in refused.json()["error"]


def test_metadata_and_every_reply_say_what_answers(client: httpx.Client, finished: Finished, known: Known) -> None:
    told = client.get("/v2/models/clinic").json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]] == [
        ("image", "FP32", [-1, 1, 32, 32]),
        ("scan", "BYTES", [-1]),
    ]
    reply = post(client, known.files[0].read_bytes(), WHOLE).json()
    identity = reply["parameters"]
    assert told["parameters"] == identity | {key: told["parameters"][key] for key in ("question", "intended_use")}
    assert identity["release_sha256"] == file_digest(finished.release / SUMS)
    assert identity["model_sha256"] == file_digest(finished.release / "model.int8.onnx")
    assert identity["chain"] == known.predictor.info.chain_fingerprint
    assert identity["engine"] == known.predictor.engine.name and identity["labels"] == "clear;blob"
    assert reply["model_version"] == identity["release_sha256"][:12]


@pytest.mark.parametrize("door", ["http", "grpc"])
@pytest.mark.parametrize("what", ["scan", "image"])
def test_tritons_client_gets_what_predict_says_to_the_bit(server: Server, known: Known, door: str, what: str) -> None:
    triton, utils = pytest.importorskip(f"tritonclient.{door}"), pytest.importorskip("tritonclient.utils")
    as_json = {"as_json": True} if door == "grpc" else {}
    with closing(
        triton.InferenceServerClient(f"127.0.0.1:{getattr(server, 'rest' if door == 'http' else 'grpc')}")
    ) as one:
        assert one.is_server_live() and not one.is_server_ready()
        assert one.is_model_ready("clinic", headers={"x-api-key": KEY})
        assert not one.is_model_ready("broken", headers={"x-api-key": KEY})
        assert one.get_server_metadata(headers={"x-api-key": KEY}, **as_json)["name"] == "medopt"
        index = one.get_model_repository_index(headers={"x-api-key": KEY}, **as_json)
        states = [(model["name"], model["state"]) for model in (index["models"] if door == "grpc" else index)]
        assert states == [("clinic", "READY"), ("broken", "UNAVAILABLE")]
        one.load_model("clinic", headers={"x-api-key": KEY})
        with pytest.raises(utils.InferenceServerException, match="taken out of serv"):
            one.unload_model("clinic", headers={"x-api-key": KEY})
        values = np.array([path.read_bytes() for path in known.files], object) if what == "scan" else known.images
        tensor = triton.InferInput(what, list(values.shape), "BYTES" if what == "scan" else "FP32")
        tensor.set_data_from_numpy(values)
        outputs = [triton.InferRequestedOutput(name) for name in ("probabilities", "logits", "decision", "declined")]
        found = one.infer("clinic", [tensor], request_id="q-7", outputs=outputs, headers={"x-api-key": KEY})
        message = found.get_response()
        assert (message["id"] if door == "http" else message.id) == "q-7"
        got = {name: found.as_numpy(name) for name in ("probabilities", "logits", "decision", "declined")}
    same(got, known.answers(what == "scan"), known.predictor.info.labels)


def test_kserves_clients_get_the_same_and_speak_the_same_messages(server: Server, known: Known, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", known.images)
    script = Path(__file__).with_name("kserve_client.py")
    words = [sys.executable, str(script), str(server.rest), str(server.grpc), KEY, str(tmp_path / "images.npy")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    outputs = {"id": "q-8", "logits": [list(answer.logits) for answer in known.answers(False)]}
    for door in ("rest", "grpc"):
        part = answers[door]
        assert part["live"] is True and part["ready"] is True
        assert part["json"]["id"] == part["binary"]["id"] == "q-8"
        for form in ("json", "binary"):
            logits = np.array(part[form]["logits"]).reshape(len(known.images), -1)
            np.testing.assert_array_equal(logits, outputs["logits"])
    assert answers["grpc"]["loaded"] == ["clinic", True]
    kserve = descriptor_pb2.FileDescriptorProto.FromString(bytes.fromhex(answers["descriptor"]))
    assert fields(kserve.message_type, renamed={"model_name": "kserve_model_name"}).items() <= ours().items()
    assert methods(kserve) <= methods(our_file())


def test_tritons_messages_are_the_same() -> None:
    """Field numbers and types of every message that both have."""
    service = pytest.importorskip("tritonclient.grpc.service_pb2")
    triton = descriptor_pb2.FileDescriptorProto.FromString(service.DESCRIPTOR.serialized_pb)
    theirs = fields(triton.message_type, renamed={"model_name": "triton_model_name"})
    own = (
        "ModelMetadataResponse.p",
        "ModelMetadataResponse.P",
        "RepositoryModelLoadResponse",
        "RepositoryModelUnloadResponse",
    )
    for name, field in ours().items():
        if "kserve_model_name" not in name and not name.startswith(own):
            assert theirs[name] == field, name
    assert methods(our_file()) <= methods(triton)


def test_the_generated_files_are_those_of_the_proto(tmp_path: Path) -> None:
    name = "medopt/serving/server/generated/open_inference.proto"
    words = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={tmp_path / 'set'}", name]
    subprocess.run(words, cwd=Path(__file__).parents[2], check=True)
    (file,) = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    assert fields(file.message_type) == ours() and methods(file) == methods(our_file())


def our_file() -> descriptor_pb2.FileDescriptorProto:
    return descriptor_pb2.FileDescriptorProto.FromString(open_inference_pb2.DESCRIPTOR.serialized_pb)


def ours() -> dict[str, tuple[int, ...]]:
    return fields(our_file().message_type)


def fields(
    messages: Iterable[descriptor_pb2.DescriptorProto], prefix: str = "", renamed: Mapping[str, str] | None = None
) -> dict[str, tuple[int, ...]]:
    """Message.field: number, type and label. `renamed` holds for the repository extension's messages."""
    table = {}
    for message in messages:
        renames = renamed or {} if message.name.startswith("RepositoryModel") and "Request" in message.name else {}
        name = f"{prefix}{message.name}"
        table |= {f"{name}.{renames.get(f.name, f.name)}": (f.number, f.type, f.label) for f in message.field}
        table |= fields(message.nested_type, f"{name}.")
    return table


def methods(file: descriptor_pb2.FileDescriptorProto) -> set[tuple[str, ...]]:
    assert file.package == "inference"
    (service,) = file.service
    return {(service.name, method.name, method.input_type, method.output_type) for method in service.method}


def test_plain_json_zip_and_base64(client: httpx.Client, known: Known) -> None:
    labels = known.predictor.info.labels
    tensor = {"name": "image", "datatype": "FP32", "shape": list(known.images.shape), "data": known.images.tolist()}
    found = arrays(client.post("/v2/models/clinic/infer", json={"inputs": [tensor]}))
    same(found, known.answers(False), labels)
    alone = known.predictor.predict_batch(known.images[:1], known.facts[:1])
    scan = known.files[0].read_bytes()
    packed = zipped({"PATIENT^NAME/IM1": scan, "PATIENT^NAME/DICOMDIR": b"x", "readme.txt": b"x"})
    text = {"name": "scan", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(scan).decode()]}
    message = {"inputs": [text | {"parameters": {"content_type": "base64"}}], "outputs": [{"name": "logits"}]}
    only = arrays(client.post("/v2/models/clinic/infer", json=message))
    assert list(only) == ["logits"]
    np.testing.assert_array_equal(only["logits"][0], alone[0].logits)
    for body in (scan, packed):
        same(arrays(post(client, body, WHOLE)), alone, labels)


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def test_what_is_malformed_is_told_without_a_word_of_it(client: httpx.Client, finished: Finished, known: Known) -> None:
    scan, image = known.files[0].read_bytes(), known.images[:1]
    secret = finished.clinic.identifiers
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 32, 32], "data": [0.5] * 1024}
    head = json.dumps({"inputs": [{"name": "scan", "datatype": "BYTES", "shape": [1]}]}).encode()
    worded = b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1], "data": ["MRN-SECRET-17"]}]}'
    cases: list[tuple[bytes, dict[str, str], str]] = [
        (scan, {}, "not JSON"),
        (scan, {"Inference-Header-Content-Length": "999999999"}, "larger than the body"),
        (scan[:3000], WHOLE, "Scan 1 of 1 is refused"),
        (b"MRN-SECRET-17 no scan at all", WHOLE, "The scan is not a format that is read"),
        (zipped({"../MRN-SECRET-17.dcm": scan}), WHOLE, "not sound"),
        (zipped({"a/1": scan, "a/MRN-SECRET-17": scan[:700]}), WHOLE, "Scan 1 of 1 is refused"),
        (b"{}", {}, "a field is absent"),
        (b'{"inputs": 5}', {}, "exactly one input"),
        (worded, {}, "of a wrong type"),
        (json.dumps({"inputs": [tensor | {"shape": [1, 1, 16, 64]}]}).encode(), {}, "the shape (N, 1, 32, 32)"),
        (json.dumps({"inputs": [tensor | {"shape": [4000000000, 4000000000]}]}).encode(), {}, "its shape needs"),
        (json.dumps({"inputs": [tensor | {"data": [255.0] * 1024}]}).encode(), {}, "values from 0 to 1"),
        (json.dumps({"inputs": [tensor | {"name": "MRN-SECRET-17"}]}).encode(), {}, "The inputs are image"),
        (json.dumps({"inputs": [tensor], "outputs": [{"name": "MRN-SECRET-17"}]}).encode(), {}, "The outputs are"),
        (*image_request(np.full_like(image, np.nan)), "not finite numbers"),
        (*image_request(image, shape=[2, 1, 32, 32]), "its shape needs 8192"),
        (head + scan, {"Inference-Header-Content-Length": str(len(head))}, "no binary_data_size"),
    ]  # fmt: skip
    for body, headers, words in cases:
        answer = post(client, body, headers)
        assert answer.status_code == 400, (words, answer.text)
        error = answer.json()["error"]
        assert words in error and "\n" not in error and "SECRET" not in error and "medopt-serve" not in error, error
        assert not [word for word in secret if word in error]
    assert client.post("/v2/models/MRN-SECRET-17/infer", content=b"{}").status_code == 404
    for method, path, code in (("GET", "/v2/MRN-SECRET-17", 404), ("GET", "/v2/models/clinic/infer", 405)):
        answer = client.request(method, path)
        assert answer.status_code == code and "GET /v2/models lists" in answer.json()["error"]
        assert "SECRET" not in answer.text
    assert client.post("/v2/models/clinic/versions/000000000000/infer", content=b"{}").status_code == 404


def test_a_body_beyond_the_limit_is_not_read(client: httpx.Client) -> None:
    large = bytes((1 << 20) + 1)
    assert post(client, large, WHOLE).status_code == 413
    chunks = (large[:65536] for _ in range(40))
    assert client.post("/v2/models/clinic/infer", content=chunks, headers=WHOLE).status_code == 413


def test_without_the_key_there_is_health_and_nothing_else(server: Server, known: Known) -> None:
    with httpx.Client(base_url=server.url(""), timeout=30) as nobody:
        assert nobody.get("/v2/health/live").status_code == 200
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
            for path in ("/v2", "/v2/models", "/v2/models/clinic", "/metrics"):
                assert nobody.get(path, headers=headers).status_code == 401
            assert post(nobody, known.files[0].read_bytes(), WHOLE | headers).status_code == 401
            assert nobody.post("/v2/repository/models/clinic/load", headers=headers).status_code == 401
        assert nobody.get("/v2/models", headers={"Authorization": f"Bearer {KEY}"}).json()["models"] == [
            "clinic",
            "broken",
        ]


def test_grpc_refuses_with_its_own_codes(server: Server, known: Known) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    with closing(triton.InferenceServerClient(f"127.0.0.1:{server.grpc}")) as one:

        def code(values: NDArray[Any], name: str = "image", model: str = "clinic", key: str = KEY) -> tuple[str, str]:
            tensor = triton.InferInput(name, list(values.shape), "FP32" if values.dtype == np.float32 else "BYTES")
            tensor.set_data_from_numpy(values)
            with pytest.raises(triton.InferenceServerException) as caught:
                one.infer(model, [tensor], headers={"x-api-key": key})
            return caught.value.status().removeprefix("StatusCode."), caught.value.message()

        assert code(known.images, key="wrong")[0] == "UNAUTHENTICATED"
        assert code(known.images, model="nobody")[0] == "NOT_FOUND"
        assert code(known.images, model="broken")[0] == "UNAVAILABLE"
        assert code(known.images[:, :, :16])[0] == "INVALID_ARGUMENT"
        assert "Scan 1 of 1" in code(np.array([b"MRN-SECRET-17"], object), "scan")[1]
        assert code(np.zeros((300, 1, 32, 32), np.float32))[0] == "RESOURCE_EXHAUSTED"  # a message above the limit
        assert code(np.repeat(known.images, 2, axis=0))[0] == "OUT_OF_RANGE"  # more than the queue ever holds
        with held_up(server, known):
            assert refused_while_full(one, triton, known.images[:1])


def refused_while_full(one: Any, triton: Any, values: NDArray[Any]) -> bool:
    tensor = triton.InferInput("image", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    for _ in range(200):
        try:
            one.infer("clinic", [tensor], headers={"x-api-key": KEY})
        except triton.InferenceServerException as refused:
            return "RESOURCE_EXHAUSTED" in refused.status() and "of 8 images in hand" in refused.message()
    return False


@contextmanager
def held_up(server: Server, known: Known) -> Iterator[None]:
    """Meanwhile the queue is full, again and again: requests of as many scans as it holds follow each other."""
    body, headers = scan_request([known.files[0].read_bytes()] * QUEUE)
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url(""), headers=AUTH, timeout=30) as client:
            while not ended.is_set():
                post(client, body, headers)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        try:
            yield
        finally:
            ended.set()


def scan_request(scans: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    data = b"".join(len(scan).to_bytes(4, "little") + scan for scan in scans)
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "scan", "datatype": "BYTES", "shape": [len(scans)], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def test_a_full_queue_is_told_and_recovers(server: Server, client: httpx.Client, known: Known) -> None:
    scan = known.files[0].read_bytes()
    with held_up(server, known):
        answers = [post(client, scan, WHOLE) for _ in range(200)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "of 8 images in hand" in refused.json()["error"]
        assert client.get("/v2/health/live").status_code == 200
    assert post(client, scan, WHOLE).status_code == 200
    assert post(client, *image_request(np.repeat(known.images, 2, axis=0))).status_code == 413


def test_many_clients_at_once_get_their_own_answers(server: Server, client: httpx.Client, known: Known) -> None:
    wanted = known.answers(True)

    def ask(number: int) -> float:
        at = number % len(known.files)
        found = arrays(post(client, known.files[at].read_bytes(), WHOLE))
        assert found["declined"][0] == (wanted[at].declined or "")
        return float(abs(found["logits"][0, 0] - wanted[at].logits[0]))

    with ThreadPoolExecutor(QUEUE) as pool:
        assert max(pool.map(ask, range(120))) < 1e-4  # in other batches rounding differs
    text = client.get("/metrics").text
    figures = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    counted = sum(value for name, value in figures.items() if name.startswith("medopt_scans_total"))
    told = [one for one in server.events if one["event"] == "request" and one.get("code") == "200"]
    assert counted == sum(one["images"] for one in told)
    assert figures['medopt_batch_images_sum{model="clinic"}'] > figures['medopt_batch_images_count{model="clinic"}']
    assert figures['medopt_refused_total{model="clinic",reason="malformed"}'] >= 1
    assert figures["medopt_queue_images"] == 0
    assert len({one["request"] for one in told}) > 1 and all(len(one["request"]) == 16 for one in told)


def test_what_cannot_be_served_as_asked(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "short"
    short.write_text("secret")
    call("serve", finished.release, "--model", "half").refused(2, "Invalid value for '--model'")
    call("serve", finished.release, "--tls-cert", short).refused(2, "--tls-cert and --tls-key together")
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "medopt.serving.server.run", raising=False)
    call("serve", finished.release).refused(2, "needs grpc", "pip install 'medopt[serve]'")
