"""A release replaced under load, mutual TLS, and the end: nothing that was taken is lost."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from certificates import LOCAL, make_certificates
from clinic_fixtures import Finished
from server_process import WHOLE, Server, served

from medopt.core.files import file_digest
from medopt.release.layout import CARD, SUMS, write_sums


def variant(release: Path, folder: Path, card: str = "", sums: bool = True, **info: object) -> Path:
    """A copy of a release with something else in it, and a list of checksums that says so or does not."""
    shutil.copytree(release, folder)
    (folder / CARD).write_text(f"{(folder / CARD).read_text()}{card}")
    told = json.loads((folder / "release.json").read_text()) | info
    (folder / "release.json").write_text(json.dumps(told))
    if sums:
        write_sums(folder)
    return folder


def version_of(release: Path) -> str:
    return file_digest(release / SUMS)[:12]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a certificate of this machine for server and client."""
    return make_certificates(tmp_path_factory.mktemp("tls"), {"ca": {"server": LOCAL, "client": LOCAL}})


@pytest.fixture(scope="module")
def link(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server is told of: a symbolic link to the release of the day."""
    found = tmp_path_factory.mktemp("current") / "current"
    found.symlink_to(finished.release)
    return found


@pytest.fixture(scope="module")
def server(link: Path, certificates: Path) -> Iterator[Server]:
    words = ("--tls-cert", certificates / "server.pem", "--tls-key", certificates / "server.key")
    with served(link, *words, "--client-ca", certificates / "ca.pem", scheme="https") as found:
        yield found


def context_of(certificates: Path) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    found.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    return found


def turn(link: Path, target: Path) -> None:
    """As an administrator does: the link is replaced in one step."""
    new = link.with_name("next")
    new.symlink_to(target)
    new.replace(link)


def test_only_certified_clients_get_in(server: Server, certificates: Path, finished: Finished) -> None:
    stranger = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    with httpx.Client(verify=stranger) as client, pytest.raises(httpx.TransportError):
        client.get(server.url("/v2/health/live"))
    with httpx.Client(verify=context_of(certificates)) as client:
        assert client.get(server.url("/v2/health/ready")).status_code == 200
    triton = pytest.importorskip("tritonclient.grpc")
    files = {"root_certificates": "ca.pem", "private_key": "client.key", "certificate_chain": "client.pem"}
    words = {key: str(certificates / name) for key, name in files.items()}
    with closing(triton.InferenceServerClient(f"localhost:{server.grpc}", ssl=True, **words)) as one:
        assert one.is_model_ready("clinic", version_of(finished.release))
    del words["private_key"], words["certificate_chain"]
    stranger_too = triton.InferenceServerClient(f"localhost:{server.grpc}", ssl=True, **words)
    with closing(stranger_too) as one, pytest.raises(triton.InferenceServerException):
        one.is_server_live(client_timeout=5)


def test_a_new_release_takes_over_under_load_and_a_bad_one_does_not(
    server: Server, link: Path, finished: Finished, certificates: Path, tmp_path: Path
) -> None:
    scan = sorted((finished.clinic.data / "scans").glob("*.dcm"))[0].read_bytes()
    second = variant(finished.release, tmp_path / "second", card="\nA second release.\n")
    seen: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        with httpx.Client(verify=context_of(certificates), timeout=30) as client:
            while not done.is_set():
                answer = client.post(server.url("/v2/models/clinic/infer"), content=scan, headers=WHOLE)
                seen.append((answer.status_code, answer.json().get("model_version", answer.text)))

    crowd = [threading.Thread(target=ask) for _ in range(4)]
    for one in crowd:
        one.start()
    with httpx.Client(base_url=server.url(""), verify=context_of(certificates), timeout=60) as admin:
        load = "/v2/repository/models/clinic/load"
        assert admin.post(load).json()["versions"] == [version_of(finished.release)]  # nothing new: nothing changes
        turn(link, second)
        assert admin.post(load).json() == {"name": "clinic", "load": True, "versions": [version_of(second)]}
        at = len(seen)
        while len(seen) < at + 12:
            time.sleep(0.01)
        for bad, words in (
            (variant(finished.release, tmp_path / "changed", card="x", sums=False), "CARD.md was changed"),
            (variant(finished.release, tmp_path / "foreign", study="another"), "of another study (another)"),
            (variant(finished.release, tmp_path / "unlike", chain_fingerprint="0" * 64), "preparation chain"),
            (tmp_path / "nowhere", "is not a release"),
        ):
            turn(link, bad)
            answer = admin.post(load)
            assert answer.status_code == 503 and words in answer.json()["error"], answer.text
        assert admin.get("/v2/models/clinic/ready").status_code == 200
        done.set()
        for one in crowd:
            one.join()
        assert admin.get(f"/v2/models/clinic/versions/{version_of(finished.release)}/ready").status_code == 404
        assert admin.post("/v2/repository/models/clinic/unload").status_code == 400
        turn(link, second)
        assert admin.post(load).status_code == 200
        text = admin.get("/metrics").text
    assert {code for code, _ in seen} == {200}
    versions = [version for _, version in seen]
    assert set(versions) == {version_of(finished.release), version_of(second)}
    assert set(versions[at + 8 :]) == {version_of(second)}
    assert f'medopt_release_ready{{model="clinic",version="{version_of(second)}"}} 1.0' in text
    assert f'medopt_release_ready{{model="clinic",version="{version_of(finished.release)}"}} 0.0' in text


def test_the_end_finishes_what_is_in_hand(server: Server, finished: Finished, certificates: Path) -> None:
    """Last: the server is gone after it. A request whose body is still coming at SIGTERM gets its answer."""
    scan = sorted((finished.clinic.data / "scans").glob("*.dcm"))[0].read_bytes()
    head = f"POST /v2/models/clinic/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(scan)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in WHOLE.items()) + "\r\n"
    raw = socket.create_connection(("127.0.0.1", server.rest))
    with closing(context_of(certificates).wrap_socket(raw, server_hostname="localhost")) as one:
        one.settimeout(60)
        one.sendall(head.encode() + scan[:1000])
        with httpx.Client(base_url=server.url(""), verify=context_of(certificates), timeout=60) as admin:
            deadline = time.monotonic() + 50
            while "medopt_queue_images 1.0" not in (seen := admin.get("/metrics").text):
                assert time.monotonic() < deadline, [line for line in seen.splitlines() if "queue_images" in line]
                time.sleep(0.01)
        server.process.terminate()
        assert server.wait_for("stopping")["images"] == 1
        with pytest.raises(OSError):  # nobody else gets in any more
            while True:
                socket.create_connection(("127.0.0.1", server.rest), timeout=5).close()
                time.sleep(0.01)
        one.sendall(scan[1000:])
        answer = b""
        while piece := one.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ") and b'"decision"' in answer
    assert server.stop() == 0
    stopped = server.wait_for("stopped")
    assert stopped["images"] == 0
    begun, ended = (datetime.fromisoformat(one["time"]) for one in (server.wait_for("stopping"), stopped))
    assert (ended - begun).total_seconds() < 31
