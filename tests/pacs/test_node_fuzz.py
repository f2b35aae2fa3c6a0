"""1,500 mutated association requests, DIMSE messages and STOW bodies: no crash, no leak, and no silent close."""

from __future__ import annotations

import gc
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import requests
from closing import closing_all
from http_node import HttpNode
from peers import radiograph, send
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.pdu import P_DATA_TF
from test_rejections import request

pytestmark = pytest.mark.long
COUNT = 500


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., HttpNode]]:
    yield from closing_all(partial(HttpNode, tmp_path))


def mutated(data: bytes, seed: int) -> bytes:
    """Some bytes changed, a piece cut out, doubled, or the end cut off."""
    draw, out = random.Random(seed), bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        kind, at = draw.randrange(5), draw.randrange(max(1, min(len(out), draw.choice([16, 200, len(out) or 1]))))
        if kind <= 1 and out:
            out[at % len(out)] = draw.choice([0, 0xFF, draw.randrange(256)])
        elif kind == 2:
            del out[at : at + draw.randrange(1, 40)]
        elif kind == 3:
            out[at:at] = out[at : at + draw.randrange(1, 40)]
        else:
            out[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
    return bytes(out[: draw.randrange(len(out) + 1)]) if draw.random() < 0.1 else bytes(out)


def open_files() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def each(work: Callable[[int], bytes]) -> list[bytes]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, range(COUNT)))


def nothing_is_left(node: HttpNode, files: int, threads: int, scan: Path) -> None:
    assert send(node.settings.port, [scan]) == [0]
    until = time.monotonic() + 30
    while time.monotonic() < until and (open_files() > files + 3 or threading.active_count() > threads + 3):
        time.sleep(0.2)
    assert (open_files() <= files + 3, threading.active_count() <= threads + 3) == (True, True)
    assert node.partial_files() == []
    assert node.receiver.listening


def first_answer(port: int, *messages: bytes) -> bytes:
    """The last message's answer: the first bytes, b'' where the connection is closed without any."""
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as link:
        answer = b""
        for number, message in enumerate(messages):
            try:
                link.sendall(message)
                if number == len(messages) - 1:
                    link.shutdown(socket.SHUT_WR) if not message else None
                answer = link.recv(65536)
            except OSError:
                return b""
        return answer


def test_association_requests(listen: Callable[..., HttpNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medopt.pacs.association_request._BEGIN_SECONDS", 0.3)
    monkeypatch.setattr("medopt.pacs.association_request._WHOLE_SECONDS", 0.3)
    monkeypatch.setattr("medopt.pacs.receiver._FLOOD_LINES", 10**6)
    node, valid = listen(), request(4, 3)
    files, threads = open_files(), threading.active_count()
    answers = each(lambda seed: first_answer(node.settings.port, mutated(valid, seed)))
    until = time.monotonic() + 10

    def silent() -> int:
        lines = sum(n for (event, _), n in node.audit.counts().items() if event == "rejected")
        return sum(not answer for answer in answers) - lines

    while silent() > 0 and time.monotonic() < until:
        time.sleep(0.1)
    assert silent() <= 0
    assert {answer[0] for answer in answers if answer} <= {2, 3, 7}
    nothing_is_left(node, files, threads, radiograph(tmp_path / "sound.dcm", study=2))


def c_store(scan: Path) -> bytes:
    image, message, primitive = dcmread(scan), C_STORE_RQ(), C_STORE()
    primitive.MessageID, primitive.Priority = 1, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    import io

    primitive.DataSet = io.BytesIO(encode(image, True, True) or b"")
    message.primitive_to_message(primitive)
    encoded = b""
    for data in message.encode_msg(1, 16382):
        pdu = P_DATA_TF()
        pdu.from_primitive(data)
        encoded += pdu.encode()
    return encoded


def test_dimse_messages(listen: Callable[..., HttpNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medopt.pacs.receiver._FLOOD_LINES", 10**6)
    monkeypatch.setattr("medopt.pacs.bounded_server._PDU_SECONDS", 1.0)
    node, scan = listen(), radiograph(tmp_path / "a.dcm")
    valid, opening = c_store(scan), request(1, 1)
    assert ImplicitVRLittleEndian in opening.decode("latin-1")
    files, threads = open_files(), threading.active_count()
    answers = each(lambda seed: first_answer(node.settings.port, opening, mutated(valid, seed)))
    lines = sum(n for (event, _), n in node.audit.counts().items() if event in ("rejected", "refused"))
    assert sum(not answer for answer in answers) <= lines
    nothing_is_left(node, files, threads, radiograph(tmp_path / "sound.dcm", study=2))


def test_stow_bodies(listen: Callable[..., HttpNode], tmp_path: Path) -> None:
    node, scan = listen(), radiograph(tmp_path / "a.dcm")
    valid = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + scan.read_bytes() + b"\r\n--b--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    files, threads = open_files(), threading.active_count() + 40  # Starlette keeps its threads

    def post(seed: int) -> bytes:
        url = f"{node.url}/dicom-web/studies"
        return str(requests.post(url, mutated(valid, seed), headers=headers, timeout=30).status_code).encode()

    assert set(each(post)) <= {b"200", b"202", b"400", b"409", b"503"}
    nothing_is_left(node, files, threads, radiograph(tmp_path / "sound.dcm", study=2))
