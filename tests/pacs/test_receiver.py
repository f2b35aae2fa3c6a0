"""Receiving from real senders: what is acknowledged is safe, what is refused has a reason, nobody holds it up."""

from __future__ import annotations

import logging
import re
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from begun import begun
from certificates import LOCAL, make_certificates
from peers import association, radiograph, send, store
from pydicom import Dataset, dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

from medopt.pacs.audit import Audit, verify
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.intake import DUPLICATE, LATE, NOT_AS_SAID, NOT_UNDERSTOOD, OUT_OF_ROOM, STORED, Intake
from medopt.pacs.ledger import Ledger, Result
from medopt.pacs.queue_status import counts
from medopt.pacs.receiver import Receiver
from medopt.pacs.settings import Node
from medopt.pacs.spool import LEDGER, Spool

CR = "1.2.840.10008.5.1.4.1.1.1"


class Listening:
    """A receiver with its spool, and what it said."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        values: dict[str, Any] = {
            "aet": "MEDOPT",
            "host": "127.0.0.1",
            "port": 1,
            "release": folder / "release",
            "spool": folder / "spool",
            "accept": [
                {"aet": "SENDER", "addresses": ["127.0.0.1"]},
                {"aet": "ELSEWHERE", "addresses": ["10.0.0.0/8"]},
            ],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": 104}],
            "limits": {"free_mb": 0, "instance_mb": 50},
        }
        from peers import free_port

        self.node = Node.model_validate(values | {"port": free_port()} | changes)
        self.spool = Spool(self.node.spool)
        self.ledger = Ledger(self.node.spool / LEDGER)
        self.heard: list[tuple[str, Callable[[], bool]]] = []
        self.told: list[str] = []
        told: Callable[..., None] = lambda event, **_: self.told.append(event)  # noqa: E731
        self.intake = Intake(self.node, self.spool, self.ledger, lambda *words: self.heard.append(words), told)
        reports = CommitmentReceiver(self.node, self.ledger, told, time.time)
        self.receiver = Receiver(self.node, self.spool, self.intake, reports, told)
        self.port = self.receiver.start()

    def files(self) -> list[Path]:
        return sorted(path for path in self.node.spool.rglob("*") if path.is_file() and "studies" in path.parts)

    def close(self) -> None:
        self.receiver.stop()
        self.ledger.close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    yield from begun(partial(Listening, tmp_path))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return radiograph(tmp_path / "scans" / "1.dcm")


def changed(scan: Path, **values: Any) -> Dataset:
    dataset = dcmread(scan)
    for name, value in values.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def test_what_is_acknowledged_is_on_disk_and_in_the_ledger(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    assert send(node.port, [scan]) == [STORED]
    sent, (kept,) = dcmread(scan), node.files()
    (recorded,) = node.ledger.images(sent.StudyInstanceUID)
    assert (node.spool.root / recorded.file) == kept
    assert (recorded.sop_uid, recorded.size) == (sent.SOPInstanceUID, kept.stat().st_size)
    again = dcmread(kept)
    assert again.file_meta.TransferSyntaxUID == recorded.transfer_syntax
    assert again.pixel_array.tobytes() == sent.pixel_array.tobytes()
    assert again.PatientName == sent.PatientName
    assert sent.StudyInstanceUID not in str(kept)
    assert kept.stat().st_mode & 0o077 == 0 or kept.parent.stat().st_mode & 0o077 == 0


def test_the_same_again_is_acknowledged_and_kept_once(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    assert send(node.port, [scan, scan]) + send(node.port, [scan]) == [STORED] * 3
    assert len(node.files()) == 1
    assert node.told == ["received"]


def test_other_bytes_under_one_uid_are_refused(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    one = association(node.port)
    assert store(one, scan).Status == STORED
    answer = store(one, changed(scan, SeriesDescription="another"))
    one.release()
    assert (answer.Status, answer.ErrorComment) == (DUPLICATE, "another instance with this UID is here already")
    assert dcmread(node.files()[0]).get("SeriesDescription") != "another"


def test_own_results_that_come_back_are_acknowledged_and_no_news(
    listening: Callable[..., Listening], scan: Path
) -> None:
    node, sent = listening(), dcmread(scan)
    assert send(node.port, [scan]) == [STORED]
    node.ledger.complete(sent.StudyInstanceUID, 1)
    work = node.ledger.take(2)
    assert work is not None
    own = Result("2.25.77", sent.StudyInstanceUID, CR, "report", "results/1", "d")
    node.ledger.finish(work, "done", "", [own], ["PACS"], 3)
    back = changed(scan, SOPInstanceUID="2.25.77")
    back.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    assert send(node.port, [back]) == [STORED]
    assert (len(node.files()), node.ledger.state(sent.StudyInstanceUID)) == (1, "done")


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({"StudyInstanceUID": None}, NOT_AS_SAID, "StudyInstanceUID is missing"),
        ({"SeriesInstanceUID": ""}, NOT_AS_SAID, "SeriesInstanceUID is missing"),
        ({"StudyInstanceUID": "../../../etc/passwd"}, NOT_AS_SAID, "StudyInstanceUID is not a UID"),
        ({"SeriesInstanceUID": "1.2/3"}, NOT_AS_SAID, "SeriesInstanceUID is not a UID"),
        ({"StudyInstanceUID": "1." + "2" * 70}, NOT_AS_SAID, "StudyInstanceUID is not a UID"),
    ],
)
def test_uids_that_are_none_are_refused(
    listening: Callable[..., Listening], scan: Path, values: dict[str, Any], status: int, words: str
) -> None:
    node = listening()
    one = association(node.port)
    answer = store(one, changed(scan, **values))
    assert (answer.Status, answer.ErrorComment) == (status, words)
    assert store(one, scan).Status == STORED  # the next one is welcome
    one.release()
    assert len(node.files()) == 1


def raw_store(port: int, body: bytes) -> int:
    """C-STORE of bytes that no library would write."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    one = association(port)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CR, "1.2.3.4.5"
    request.DataSet = BytesIO(body)
    one._reactor_checkpoint.clear()  # else the association's own thread takes the answer
    while not one._is_paused:
        time.sleep(0.01)
    context = next(cx for cx in one.accepted_contexts if cx.abstract_syntax == CR)
    one.dimse.send_msg(request, context.context_id)
    _, answer = one.dimse.get_msg(block=True)
    one.abort()
    assert answer is not None
    return int(answer.Status)


def test_garbage_and_deep_nesting_are_refused(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    assert raw_store(node.port, b"\xff" * 5000) in (NOT_UNDERSTOOD, NOT_AS_SAID)
    deep = struct.pack("<HHL", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    assert raw_store(node.port, deep * 5000) in (NOT_UNDERSTOOD, NOT_AS_SAID)
    assert node.files() == []
    assert send(node.port, [scan]) == [STORED]


def rejection(one: Any) -> tuple[int, int, int]:
    primitive: A_ASSOCIATE = one.acceptor.primitive
    assert one.is_rejected
    return int(primitive.result), int(primitive.result_source), int(primitive.diagnostic)


def test_only_those_on_the_list_and_only_by_the_right_name(listening: Callable[..., Listening]) -> None:
    node = listening()
    assert rejection(association(node.port, calling="STRANGER")) == (1, 1, 3)
    assert rejection(association(node.port, calling="ELSEWHERE")) == (1, 1, 3)
    assert rejection(association(node.port, called="SOMEBODY")) == (1, 1, 7)
    assert node.told == ["rejected", "rejected"]
    one = association(node.port)
    assert one.send_c_echo().Status == STORED
    one.release()


def test_below_the_watermark_nothing_is_taken(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening(limits={"free_mb": 1e9})
    assert send(node.port, [scan]) == [OUT_OF_ROOM]
    assert node.files() == []
    assert counts(node.ledger)["studies"] == {}


def test_a_full_disk_is_said_and_heals_by_itself(
    listening: Callable[..., Listening], tmp_path: Path, tiny_disk: Callable[[int], Path]
) -> None:
    disk = tiny_disk(900)
    node = listening(spool=disk / "spool")
    scans = [radiograph(tmp_path / f"{n}.dcm", number=n, seed=n) for n in range(1, 4)]
    assert send(node.port, scans[:1]) == [STORED]
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as stream:
        while stream.write(bytes(1000)):
            pass
    assert send(node.port, scans[1:]) == [OUT_OF_ROOM, OUT_OF_ROOM]
    assert len(node.files()) == 1
    filler.unlink()
    assert send(node.port, scans) == [STORED] * 3
    assert len(node.files()) == 3


def test_late_images_are_refused_with_the_reason(listening: Callable[..., Listening], scan: Path) -> None:
    node, study = listening(late_images="refuse"), dcmread(scan).StudyInstanceUID
    assert send(node.port, [scan]) == [STORED]
    node.ledger.complete(study, 1)
    assert node.ledger.take(2) is not None
    other = radiograph(scan.with_name("2.dcm"), number=2)
    assert send(node.port, [other, scan]) == [LATE, STORED]
    assert len(node.files()) == 1


def test_a_message_that_is_too_large_ends_the_connection(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening(limits={"free_mb": 0, "instance_mb": 0.1})
    large = changed(scan, Rows=1000, Columns=1000, PixelData=bytes(2_000_000))
    one = association(node.port)
    answer = store(one, large)
    assert "Status" not in answer
    assert send(node.port, [scan]) == [STORED]
    assert len(node.files()) == 1


def test_noise_on_the_port_is_no_harm(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    for noise in (b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n", b"\x16\x03\x01" + bytes(200), b"\x01\x00\xff\xff\xff\xff"):
        with socket.create_connection(("127.0.0.1", node.port), timeout=5) as one:
            one.sendall(noise)
            one.settimeout(20)
            while one.recv(100):
                pass  # until the node closes it
    assert send(node.port, [scan]) == [STORED]


def greeting() -> bytes:
    """A request for an association, as bytes."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "SENDER", "MEDOPT"
    request.presentation_context_definition_list = [build_context(CR, "1.2.840.10008.1.2")]
    request.presentation_context_definition_list[0].context_id = 1
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16384, UID("1.2.3.4")
    request.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return bytes(pdu.encode())


def test_a_crowd_keeps_nobody_waiting(listening: Callable[..., Listening]) -> None:
    """60 sockets that say nothing, 5 that say it slowly, 100 associations: C-ECHO within a second."""
    node, asking = listening(limits={"free_mb": 0, "associations": 110}), greeting()
    idle, slow, open_ones = (
        [socket.create_connection(("127.0.0.1", node.port)) for _ in range(many)] for many in (60, 5, 100)
    )
    for each in slow:
        each.sendall(asking[:7])
    for each in open_ones:
        each.sendall(asking)
    for each in open_ones:
        each.settimeout(20)
        assert each.recv(1) == b"\x02"  # accepted
    times = []
    for number in range(3):
        slow[number].sendall(asking[7 + number : 8 + number])
        begun = time.perf_counter()
        one = association(node.port)
        assert one.send_c_echo().Status == STORED
        times.append(time.perf_counter() - begun)
        one.release()
    assert min(times) < 1, times  # of three: others share the machine
    for each in (*idle, *slow, *open_ones):
        each.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, with certificates of theirs: server and client of the one, stranger of the other."""
    ours = {"server": LOCAL, "client": LOCAL}
    return make_certificates(tmp_path_factory.mktemp("tls"), {"ca": ours, "foreign": {"stranger": LOCAL}})


def test_tls_asks_for_a_certificate_of_the_authority(
    listening: Callable[..., Listening], scan: Path, certificates: Path
) -> None:
    parts = {"certificate": "server.pem", "key": "server.key", "authority": "ca.pem"}
    node = listening(tls={name: certificates / file for name, file in parts.items()})

    def context(name: str | None) -> ssl.SSLContext:
        found = ssl.create_default_context(cafile=certificates / "ca.pem")
        if name:
            found.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        return found

    assert send(node.port, [scan], tls_args=(context("client"), "127.0.0.1")) == [STORED]
    for name in ("stranger", None):
        assert not association(node.port, tls_args=(context(name), "127.0.0.1")).is_established
    assert not association(node.port).is_established  # without TLS
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(30)]  # never shake hands
    begun = time.perf_counter()
    assert send(node.port, [scan], tls_args=(context("client"), "127.0.0.1")) == [STORED]
    assert time.perf_counter() - begun < 4
    for each in silent:
        each.close()
    assert len(node.files()) == 1


def element(group: int, number: int, length: int, content: bytes = b"") -> bytes:
    """Of a data set with implicit VR, whatever its length claims."""
    return struct.pack("<HHL", group, number, length) + content


def test_sizes_that_are_claimed_take_no_memory(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body in (element(0x0008, 0x0018, 0xFFFFFFF0, b"1.2"), element(0x7FE0, 0x0010, 0xFFFFFFFE, bytes(100))):
        assert raw_store(node.port, body) in (NOT_UNDERSTOOD, NOT_AS_SAID)
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as one:
        one.sendall(greeting())
        assert one.recv(10_000)[:1] == b"\x02"
        one.sendall(b"\x04\x00\xff\xff\xff\xff" + bytes(1000))  # data of 4 GB
        with suppress(ConnectionResetError):
            while one.recv(1000):
                pass  # until the node closes it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert send(node.port, [scan]) == [STORED]


def test_what_comes_at_once_is_bounded(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening(limits={"free_mb": 0, "memory_mb": 1.0})
    large = changed(scan, Rows=500, Columns=500, PixelData=bytes(500_000), SOPInstanceUID="1.2.3.4")
    large.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    begun = []
    for _ in range(2):  # two senders stop in the midst of it
        one = socket.create_connection(("127.0.0.1", node.port), timeout=10)
        one.sendall(greeting())
        assert one.recv(10_000)[:1] == b"\x02"
        one.sendall(b"\x04\x00" + struct.pack(">L", 300_000) + bytes(1000))
        begun.append(one)
    wait_for(lambda: node.receiver._server.together() > 600_000)
    assert "Status" not in store(association(node.port), large)
    assert send(node.port, [scan]) == [STORED]
    for one in begun:
        one.close()
    wait_for(lambda: node.receiver._server.together() == 0)
    assert send(node.port, [large, scan]) == [STORED, STORED]


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_data_set_that_is_deflated_as_a_whole_is_not_taken(listening: Callable[..., Listening]) -> None:
    node = listening()
    ae = AE("SENDER")
    ae.add_requested_context(CR, DeflatedExplicitVRLittleEndian)
    one = ae.associate("127.0.0.1", node.port, ae_title="MEDOPT")
    assert [context.result for context in one.rejected_contexts] == [0x04]  # transfer syntaxes not supported
    one.abort()


def test_the_watermark_heals_by_itself(
    listening: Callable[..., Listening], tmp_path: Path, tiny_disk: Callable[[int], Path]
) -> None:
    disk = tiny_disk(3000)
    node = listening(spool=disk / "spool", limits={"free_mb": 1.5})
    audit = Audit(disk / "audit.jsonl", time.time)
    node.intake._told = audit
    scans = [radiograph(tmp_path / f"{n}.dcm", number=n, seed=n) for n in range(1, 4)]
    assert send(node.port, scans[:1]) == [STORED]
    filler = disk / "filler"
    filler.write_bytes(bytes(1_500_000))
    assert send(node.port, scans) == [STORED, OUT_OF_ROOM, OUT_OF_ROOM]  # the first one is there
    assert len(node.files()) == 1
    assert len(node.ledger.images(dcmread(scans[0]).StudyInstanceUID)) == 1
    filler.unlink()
    assert send(node.port, scans) == [STORED] * 3
    audit.close()
    assert verify(disk / "audit.jsonl")[0] == 5


def test_dcmtk_sends(listening: Callable[..., Listening], scan: Path) -> None:
    if shutil.which("storescu") is None:
        pytest.skip("dcmtk's storescu is not installed")
    node = listening()
    words = ["storescu", "-aet", "SENDER", "-aec", "MEDOPT", "127.0.0.1", str(node.port), str(scan)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, len(node.files())) == (0, 1), done.stderr
    wrong = subprocess.run([*words[:3], "-aec", "WRONG", *words[5:]], capture_output=True, text=True, check=False)
    assert re.search("called ae title not recogni[sz]ed", wrong.stderr.lower())


def test_nothing_is_said_about_patients(
    listening: Callable[..., Listening], scan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node, sent = listening(), dcmread(scan)
    with caplog.at_level(logging.DEBUG):
        send(node.port, [scan, changed(scan, SeriesDescription="x"), changed(scan, StudyInstanceUID="a/b")])
        association(node.port, calling="STRANGER")
    assert "refused" in caplog.text
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("medopt"))
    for word in (sent.PatientID, "QUITTENBAUM", sent.StudyInstanceUID, sent.SOPInstanceUID, sent.AccessionNumber):
        assert word not in ours


def test_several_senders_of_the_same_at_once(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.extend(send(node.port, [scan] * 3))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(node.files()), node.told) == ([STORED] * 18, 1, ["received"])


def test_the_end_of_an_association_is_seen(listening: Callable[..., Listening], scan: Path) -> None:
    node = listening()
    one = association(node.port)
    store(one, scan)
    ((study, is_open),) = node.heard
    assert study == dcmread(scan).StudyInstanceUID
    assert is_open()
    one.release()
    until = time.monotonic() + 5
    while is_open() and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_open()
