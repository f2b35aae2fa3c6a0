"""No peer is turned away without a word: it gets an answer where it speaks DICOM, and log and audit get the reason."""

from __future__ import annotations

import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from certificates import LOCAL, make_certificates
from closing import closing_all
from http_node import HttpNode
from peers import association
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1
from pynetdicom import AE, AllStoragePresentationContexts, build_context
from pynetdicom.dimse_messages import C_ECHO_RQ
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.pdu import A_ASSOCIATE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from medopt.pacs.audit import Rejections

REJECT, ABORT = 3, 7


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., HttpNode]]:
    yield from closing_all(partial(HttpNode, tmp_path))


def request(contexts: int = 1, syntaxes: int = 1, calling: str = "SENDER", called: str = "MEDOPT") -> bytes:
    """An A-ASSOCIATE-RQ; the last transfer syntax of each context is one that everybody knows."""
    primitive = A_ASSOCIATE()
    primitive.calling_ae_title, primitive.called_ae_title = calling, called
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    offered = []
    for number in range(contexts):
        uids = [f"1.2.826.0.1.3680043.8.498.{number + 1}.{syntax + 1}" for syntax in range(syntaxes - 1)]
        context = build_context(AllStoragePresentationContexts[number].abstract_syntax, [*uids, ImplicitVRLittleEndian])
        context.context_id = 2 * number + 1
        offered.append(context)
    primitive.presentation_context_definition_list = offered
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, "1.2.3"
    primitive.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def retitled(called: bytes = b"MEDOPT", calling: bytes = b"SENDER") -> bytes:
    data = request()
    return data[:10] + called.ljust(16) + calling.ljust(16) + data[42:]


def reply(port: int, data: bytes, seconds: float = 60) -> bytes:
    """The first PDU that comes back, b'' if the connection is closed without one."""
    with closing(socket.create_connection(("127.0.0.1", port), seconds)) as link:
        link.sendall(data)
        try:
            return link.recv(10)
        except ConnectionResetError:
            return b""


def rejections(node: HttpNode, count: int = 1) -> Counter[str]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = Counter({reason: n for (event, reason), n in node.audit.counts().items() if event == "rejected"})
        if found.total() >= count:
            break
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("syntaxes", [30, 45])
def test_the_largest_request_is_accepted(listen: Callable[..., HttpNode], syntaxes: int) -> None:
    node, data = listen(), request(128, syntaxes)
    assert len(data) > 64 * 1024
    assert reply(node.settings.port, data)[:1] == b"\x02"  # A-ASSOCIATE-AC
    assert not rejections(node, 0)


@pytest.mark.parametrize(
    ("data", "answer", "reason"),
    [
        (retitled(called=b"SOMEBODY"), (REJECT, 1, 1, 7), "it calls another AE title"),
        (retitled(called=b""), (REJECT, 1, 1, 7), "its called AE title is empty"),
        (retitled(calling=b""), (REJECT, 1, 1, 3), "its calling AE title is empty"),
        (retitled(calling="MÜLLER".encode()), (REJECT, 1, 1, 3), "its calling AE title is empty or not in ASCII"),
        (retitled(calling=b"STRANGER"), (REJECT, 1, 1, 3), "an AE title that is not in `accept`"),
        (b"\x01\x00" + (600 * 1024).to_bytes(4, "big") + bytes(1000), (ABORT, 0, 2, 6), "longer than 512 KiB"),
        (b"\x01\x00" + (20).to_bytes(4, "big") + bytes(20), (ABORT, 0, 2, 6), "malformed"),
        (retitled()[:-3] + b"\xff\xff\xff", (ABORT, 0, 2, 6), "malformed"),
        (request()[:6] + b"\x00\x02" + request()[8:], (REJECT, 1, 2, 2), "its protocol version is not the first one"),
        (b"GET / HTTP/1.1\r\n\r\n", (ABORT, 0, 2, 2), "does not begin with an association request"),
        (request()[:40], (ABORT, 0, 2, 2), "too slow"),
    ],
)
def test_each_gets_an_answer_and_leaves_the_reason(
    listen: Callable[..., HttpNode], monkeypatch: pytest.MonkeyPatch, data: bytes, answer: tuple[int, ...], reason: str
) -> None:
    monkeypatch.setattr("medopt.pacs.association_request._WHOLE_SECONDS", 1.0)
    node = listen()
    got = reply(node.settings.port, data)
    assert (got[0], *got[7:10]) == answer
    (told,) = rejections(node)
    assert reason in told


def test_who_says_nothing_leaves_a_line_and_who_leaves_does_not(
    listen: Callable[..., HttpNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medopt.pacs.association_request._BEGIN_SECONDS", 0.5)
    node = listen()
    socket.create_connection(("127.0.0.1", node.settings.port)).close()  # as a load balancer looks whether it listens
    assert reply(node.settings.port, b"") == b""
    assert rejections(node) == {"it requested no association in time": 1}


def test_a_sender_of_further_protocol_versions_is_accepted(listen: Callable[..., HttpNode]) -> None:
    """PS3.8 9.3.2: only the first bit is looked at."""
    node = listen()
    assert reply(node.settings.port, request()[:6] + b"\x00\x03" + request()[8:])[:1] == b"\x02"
    assert not rejections(node, 0)


def echo_in(context: int) -> bytes:
    """C-ECHO in a presentation context."""
    asked, message = C_ECHO(), C_ECHO_RQ()
    asked.MessageID, asked.AffectedSOPClassUID = 1, Verification
    message.primitive_to_message(asked)
    pdus = []
    for part in message.encode_msg(context, 16382):
        pdus.append(P_DATA_TF())
        pdus[-1].from_primitive(part)
    return b"".join(pdu.encode() for pdu in pdus)


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (b"", "it was silent for too long"),
        (request(), "a PDU is malformed or comes out of turn"),
        (b"\x09\x00\x00\x00\x00\x04abcd", "a PDU is malformed or comes out of turn"),
        (echo_in(99), "a request could not be served"),  # a context that was not accepted
    ],
)
def test_an_association_that_is_aborted_leaves_a_line(
    listen: Callable[..., HttpNode], monkeypatch: pytest.MonkeyPatch, then: bytes, reason: str
) -> None:
    crashes: list[object] = []
    monkeypatch.setattr("threading.excepthook", crashes.append)
    node = listen(idle_seconds=10 if then else 1)  # a busy machine is silent for a second, too
    with closing(socket.create_connection(("127.0.0.1", node.settings.port), 60)) as link:
        link.sendall(request())
        assert link.recv(4096)[:1] == b"\x02"
        link.sendall(then)
        assert link.recv(10)[:1] == bytes([ABORT])
        assert link.recv(10) == b""
    assert rejections(node) == {reason: 1}
    assert crashes == []


def test_what_ends_with_the_node_is_not_turned_away(listen: Callable[..., HttpNode]) -> None:
    node = listen()
    link = association(node.settings.port)
    node.receiver.stop()
    link.join(5)
    assert not rejections(node, 0)


def test_who_is_refused_over_http_leaves_a_line(listen: Callable[..., HttpNode], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef-key")
    node = listen(web={"key_file": str(tmp_path / "key")})
    url, key = f"{node.url}/dicom-web/studies", {"X-API-Key": "0123456789abcdef-key"}
    body = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    assert requests.post(url, b"x", timeout=60).status_code == 401
    assert requests.post(url, b"x", headers=key | {"Content-Type": "text/plain"}, timeout=60).status_code == 415
    assert requests.post(url, b"QUITTENBAUM", headers=key | body, timeout=60).status_code == 400
    assert requests.get(f"{node.url}/favicon.ico", headers=key, timeout=60).status_code == 404
    reasons = rejections(node, 3)
    assert len(reasons) == 3 and not [reason for reason in reasons if "QUITTENBAUM" in reason]
    assert "an HTTP request without a key" in reasons


def test_one_too_many_is_told(listen: Callable[..., HttpNode]) -> None:
    node = listen(limits={"associations": 1, "free_mb": 0})
    first = association(node.settings.port)
    second = association(node.settings.port)
    assert first.is_established and second.is_rejected
    assert rejections(node) == {"too many associations at once (limits.associations)": 1}
    first.release()


def test_tls_peers_leave_a_line_too(
    listen: Callable[..., HttpNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medopt.pacs.bounded_server._HANDSHAKE_SECONDS", 0.5)
    monkeypatch.setattr("medopt.pacs.association_request._BEGIN_SECONDS", 0.5)
    own = make_certificates(tmp_path, {"ca": {"server": LOCAL, "client": LOCAL}})
    tls = {"certificate": str(own / "server.pem"), "key": str(own / "server.key"), "authority": str(own / "ca.pem")}
    node = listen(tls=tls)
    reply(node.settings.port, request())
    reply(node.settings.port, b"")
    context = ssl.create_default_context(cafile=own / "ca.pem")
    context.check_hostname = False
    context.load_cert_chain(own / "client.pem", own / "client.key")
    plain = socket.create_connection(("127.0.0.1", node.settings.port), 5)
    with closing(context.wrap_socket(plain)) as link:
        link.sendall(retitled(called=b"SOMEBODY"))
        assert link.recv(10)[:1] == b"\x03"
    with closing(context.wrap_socket(socket.create_connection(("127.0.0.1", node.settings.port), 5))) as link:
        assert link.recv(10) == b""
    assert set(rejections(node, 4)) == {
        "it does not speak TLS, or has no certificate of the authority",
        "it did not complete the TLS handshake in time",
        "it calls another AE title than this node's",
        "it requested no association in time",
    }


def test_a_flood_is_counted_and_not_written_line_by_line() -> None:
    now, lines = [0.0], []
    rejected = Rejections(lambda event, **details: lines.append(details), lambda: now[0])
    for _ in range(1000):
        rejected.record("why")
    now[0] = 11.0
    rejected.record("why")
    assert lines == [{"reason": "why"}] * 20 + [{"reason": "why", "more": 980}, {"reason": "why"}]


@pytest.mark.parametrize("first", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_sender_chooses_the_transfer_syntax(listen: Callable[..., HttpNode], first: Any) -> None:
    node = listen()
    other = {ExplicitVRLittleEndian, ImplicitVRLittleEndian} - {first}
    ae = AE("SENDER")
    ae.add_requested_context(Verification, [first, *other])
    ae.add_requested_context(AllStoragePresentationContexts[0].abstract_syntax, [first, *other])
    link = ae.associate("127.0.0.1", node.settings.port, ae_title="MEDOPT")
    assert [context.transfer_syntax for context in link.accepted_contexts] == [[first], [first]]
    link.release()


def test_a_class_that_knows_fewer_syntaxes_is_accepted_in_one_of_them(listen: Callable[..., HttpNode]) -> None:
    """Senders that offer one list of syntaxes for every class may ask C-ECHO in JPEG first."""
    node, ae = listen(), AE("SENDER")
    ae.add_requested_context(Verification, [JPEGLosslessSV1, ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    link = ae.associate("127.0.0.1", node.settings.port, ae_title="MEDOPT")
    assert link.is_established and link.send_c_echo().Status == 0
    assert link.accepted_contexts[0].transfer_syntax == [ExplicitVRLittleEndian]
    link.release()
