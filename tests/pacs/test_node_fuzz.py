"""Mutated association requests, DIMSE messages and STOW bodies: no crash, no leak, and no silent close.

200 of each with a fixed seed; MEDOPT_TEST_FUZZ=2000 tries as many.
"""

from __future__ import annotations

import gc
import io
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
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

COUNT = int(os.environ.get("MEDOPT_TEST_FUZZ", "200"))
REJECT, ABORT, RELEASED = 3, 7, 6


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


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds."""

    files: int
    threads: int
    resident: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        return cls(files, threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE") >> 20)

    def back(self, more_threads: int) -> bool:
        """Whether now not much more is held than then."""
        now = Held.now()
        return now.files <= self.files + 3 and now.threads <= self.threads + more_threads + 3


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Exceptions that end a thread."""
    found: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: found.append(repr(args.exc_value)))
    return found


def each(work: Callable[[int], bytes], at_once: int = 48) -> list[bytes]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, range(COUNT)))


def lines(node: HttpNode, least: int = 0) -> int:
    """Lines of peers that were turned away and of images that were refused, once there are at least so many."""
    until = time.monotonic() + 120
    while True:
        count = sum(n for (event, _), n in node.audit.counts().items() if event in ("rejected", "refused"))
        if count >= least or time.monotonic() > until:
            return count
        time.sleep(0.05)


def nothing_is_left(node: HttpNode, before: Held, crashes: list[str], scan: Path, more_threads: int = 0) -> None:
    until = time.monotonic() + 120
    while True:
        with suppress(RuntimeError):  # on a busy machine it may still be closing the last of them
            assert send(node.settings.port, [scan]) == [0]
            break
        assert time.monotonic() < until
        time.sleep(1)
    while time.monotonic() < until and not before.back(more_threads):
        time.sleep(0.2)
    now = Held.now()
    print(f"{COUNT} tried; before {before}, after {now}; {lines(node)} lines; {node.audit.counts()}")
    assert before.back(more_threads), (before, now)
    assert now.resident < before.resident + 60
    assert (node.partial_files(), crashes) == ([], [])
    assert node.receiver.listening


def first_answer(port: int, *messages: bytes) -> bytes:
    """What comes back for the last message; b'' where the connection is closed without a word."""
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as link:
        answer = b""
        for message in messages:
            try:
                link.sendall(message)
                answer = link.recv(65536)
            except ConnectionError:
                return b""
        return answer


def turned_away(answer: bytes) -> bool:
    return not answer or answer[0] in (REJECT, ABORT)


@pytest.fixture
def node(listen: Callable[..., HttpNode], monkeypatch: pytest.MonkeyPatch) -> HttpNode:
    """One that waits for nothing long, and counts each line."""
    monkeypatch.setattr("medopt.pacs.association_request._BEGIN_SECONDS", 0.5)
    monkeypatch.setattr("medopt.pacs.association_request._WHOLE_SECONDS", 0.5)
    monkeypatch.setattr("medopt.pacs.association_request._LINGER_SECONDS", 0.05)
    monkeypatch.setattr("medopt.pacs.bounded_server._PDU_SECONDS", 0.5)
    monkeypatch.setattr("medopt.pacs.audit._FLOOD_LINES", 10**6)
    return listen(idle_seconds=1)


def test_association_requests(node: HttpNode, crashes: list[str], tmp_path: Path) -> None:
    valid, before = request(4, 3), Held.now()
    answers = each(lambda seed: first_answer(node.settings.port, mutated(valid, seed)))
    away = sum(map(turned_away, answers))
    assert 0 < away <= lines(node, away)
    assert {answer[0] for answer in answers if answer} <= {2, REJECT, ABORT}
    nothing_is_left(node, before, crashes, radiograph(tmp_path / "sound.dcm", study=2))


def c_store(scan: Path) -> bytes:
    image, message, primitive = dcmread(scan), C_STORE_RQ(), C_STORE()
    primitive.MessageID, primitive.Priority = 1, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    primitive.DataSet = io.BytesIO(encode(image, True, True) or b"")
    message.primitive_to_message(primitive)
    encoded = b""
    for data in message.encode_msg(1, 16382):
        pdu = P_DATA_TF()
        pdu.from_primitive(data)
        encoded += pdu.encode()
    return encoded


def test_dimse_messages(node: HttpNode, crashes: list[str], tmp_path: Path) -> None:
    scan, opening = radiograph(tmp_path / "a.dcm"), request(1, 1)
    assert ImplicitVRLittleEndian in opening.decode("latin-1")
    messages, before = [mutated(c_store(scan), seed) for seed in range(COUNT)], Held.now()
    answers = each(lambda seed: first_answer(node.settings.port, opening, messages[seed]))
    left = sum(message[0] == ABORT for message in messages)  # it says itself that it leaves
    away = sum(map(turned_away, answers)) - left
    assert 0 < away <= lines(node, away)
    assert {answer[0] for answer in answers if answer} <= {4, RELEASED, ABORT}
    nothing_is_left(node, before, crashes, radiograph(tmp_path / "sound.dcm", study=2))


def test_stow_bodies(node: HttpNode, crashes: list[str], tmp_path: Path) -> None:
    scan = radiograph(tmp_path / "a.dcm")
    valid = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + scan.read_bytes() + b"\r\n--b--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    before = Held.now()

    def post(seed: int) -> bytes:
        url = f"{node.url}/dicom-web/studies"
        return str(requests.post(url, mutated(valid, seed), headers=headers, timeout=30).status_code).encode()

    answers = each(post, at_once=12)  # beyond 16 it answers 503
    assert set(answers) <= {b"200", b"202", b"400", b"409", b"503"}
    refused = sum(answer != b"200" for answer in answers)
    assert 0 < refused <= lines(node, refused)
    nothing_is_left(node, before, crashes, radiograph(tmp_path / "sound.dcm", study=2), more_threads=40)  # Starlette's
