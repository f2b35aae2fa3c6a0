"""Receiving from real senders: what is acknowledged is safe, what is refused has a reason, no sender blocks another."""

from __future__ import annotations

import logging
import re
import resource
import select
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
from certificates import LOCAL, make_certificates
from closing import closing_all
from peers import association, free_port, patient_association, radiograph, send, store
from pydicom import Dataset, dcmread
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian
from pynetdicom import AE, build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

from medopt.pacs.audit import AuditFile, verify
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.intake import (
    CANNOT_UNDERSTAND,
    DATA_SET_MISMATCH,
    DUPLICATE_INSTANCE,
    NOT_AUTHORIZED,
    OUT_OF_RESOURCES,
    SUCCESS,
    Intake,
)
from medopt.pacs.ledger import Ledger, Result
from medopt.pacs.receiver import Receiver
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER, Spool
from medopt.pacs.status import state_counts

CR = "1.2.840.10008.5.1.4.1.1.1"


class ListeningNode:
    """A receiver with its spool, and the events of its audit."""

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
        self.settings = NodeSettings.model_validate(values | {"port": free_port()} | changes)
        self.spool = Spool(self.settings.spool)
        self.ledger = Ledger(self.settings.spool / LEDGER)
        self.images_received: list[tuple[str, Callable[[], bool]]] = []
        self.events: list[str] = []
        audit: Callable[..., None] = lambda event, **_: self.events.append(event)  # noqa: E731
        self.intake = Intake(
            self.settings, self.spool, self.ledger, lambda *image: self.images_received.append(image), audit
        )
        commitments = CommitmentReceiver(self.settings, self.ledger, audit, time.time)
        self.receiver = Receiver(self.settings, self.spool, self.intake, commitments, audit)
        self.port = self.receiver.start()

    def files(self) -> list[Path]:
        return sorted(path for path in self.settings.spool.rglob("*") if path.is_file() and "studies" in path.parts)

    def close(self) -> None:
        self.receiver.stop()
        self.ledger.close()


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., ListeningNode]]:
    yield from closing_all(partial(ListeningNode, tmp_path))


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


def test_what_is_acknowledged_is_on_disk_and_in_the_ledger(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    assert send(node.port, [scan]) == [SUCCESS]
    sent, (file,) = dcmread(scan), node.files()
    (recorded,) = node.ledger.images(sent.StudyInstanceUID)
    assert (node.spool.root / recorded.file) == file
    assert (recorded.sop_uid, recorded.size) == (sent.SOPInstanceUID, file.stat().st_size)
    stored = dcmread(file)
    assert stored.file_meta.TransferSyntaxUID == recorded.transfer_syntax
    assert stored.pixel_array.tobytes() == sent.pixel_array.tobytes()
    assert stored.PatientName == sent.PatientName
    assert sent.StudyInstanceUID not in str(file)
    assert file.stat().st_mode & 0o077 == 0 or file.parent.stat().st_mode & 0o077 == 0


def test_the_same_again_is_acknowledged_and_kept_once(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    assert send(node.port, [scan, scan]) + send(node.port, [scan]) == [SUCCESS] * 3
    assert len(node.files()) == 1
    assert node.events == ["received"]


def test_other_bytes_under_one_uid_are_refused(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    link = association(node.port)
    assert store(link, scan).Status == SUCCESS
    response = store(link, changed(scan, SeriesDescription="another"))
    link.release()
    assert (response.Status, response.ErrorComment) == (
        DUPLICATE_INSTANCE,
        "another instance with this UID is here already",
    )
    assert dcmread(node.files()[0]).get("SeriesDescription") != "another"


def test_own_results_that_come_back_are_acknowledged_and_not_recorded(
    listen: Callable[..., ListeningNode], scan: Path
) -> None:
    node, sent = listen(), dcmread(scan)
    assert send(node.port, [scan]) == [SUCCESS]
    node.ledger.complete(sent.StudyInstanceUID, 1)
    due = node.ledger.take(2)
    assert due is not None
    own = Result("2.25.77", sent.StudyInstanceUID, CR, "report", "results/1", "d")
    node.ledger.finish(due, "done", "", [own], ["PACS"], 3)
    routed_back = changed(scan, SOPInstanceUID="2.25.77")
    routed_back.file_meta.MediaStorageSOPInstanceUID = "2.25.77"
    assert send(node.port, [routed_back]) == [SUCCESS]
    assert (len(node.files()), node.ledger.state(sent.StudyInstanceUID)) == (1, "done")


@pytest.mark.parametrize(
    ("values", "status", "comment"),
    [
        ({"StudyInstanceUID": None}, DATA_SET_MISMATCH, "StudyInstanceUID is missing"),
        ({"SeriesInstanceUID": ""}, DATA_SET_MISMATCH, "SeriesInstanceUID is missing"),
        ({"StudyInstanceUID": "../../../etc/passwd"}, DATA_SET_MISMATCH, "StudyInstanceUID is not a UID"),
        ({"SeriesInstanceUID": "1.2/3"}, DATA_SET_MISMATCH, "SeriesInstanceUID is not a UID"),
        ({"StudyInstanceUID": "1." + "2" * 70}, DATA_SET_MISMATCH, "StudyInstanceUID is not a UID"),
    ],
)
def test_missing_and_malformed_uids_are_refused(
    listen: Callable[..., ListeningNode], scan: Path, values: dict[str, Any], status: int, comment: str
) -> None:
    node = listen()
    link = association(node.port)
    response = store(link, changed(scan, **values))
    assert (response.Status, response.ErrorComment) == (status, comment)
    assert store(link, scan).Status == SUCCESS  # the next one is accepted
    link.release()
    assert len(node.files()) == 1


def raw_store(port: int, body: bytes) -> int:
    """C-STORE of bytes that no library would write; the status."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    link = association(port)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CR, "1.2.3.4.5"
    request.DataSet = BytesIO(body)
    link._reactor_checkpoint.clear()  # else the association's own thread takes the answer
    while not link._is_paused:
        time.sleep(0.01)
    context = next(cx for cx in link.accepted_contexts if cx.abstract_syntax == CR)
    link.dimse.send_msg(request, context.context_id)
    _, response = link.dimse.get_msg(block=True)
    link.abort()
    assert response is not None
    return int(response.Status)


def test_garbage_and_deep_nesting_are_refused(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    assert raw_store(node.port, b"\xff" * 5000) in (CANNOT_UNDERSTAND, DATA_SET_MISMATCH)
    deep = struct.pack("<HHL", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    assert raw_store(node.port, deep * 5000) in (CANNOT_UNDERSTAND, DATA_SET_MISMATCH)
    assert node.files() == []
    assert send(node.port, [scan]) == [SUCCESS]


def rejection(link: Any) -> tuple[int, int, int]:
    primitive: A_ASSOCIATE = link.acceptor.primitive
    assert link.is_rejected
    return int(primitive.result), int(primitive.result_source), int(primitive.diagnostic)


def test_only_accepted_senders_and_only_by_the_right_title(listen: Callable[..., ListeningNode]) -> None:
    node = listen()
    assert rejection(association(node.port, calling="STRANGER")) == (1, 1, 3)
    assert rejection(association(node.port, calling="ELSEWHERE")) == (1, 1, 3)
    assert rejection(association(node.port, called="SOMEBODY")) == (1, 1, 7)
    assert node.events == ["rejected"] * 3
    link = association(node.port)
    assert link.send_c_echo().Status == SUCCESS
    link.release()


def test_below_the_watermark_nothing_is_stored(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen(limits={"free_mb": 1e9})
    assert send(node.port, [scan]) == [OUT_OF_RESOURCES]
    assert node.files() == []
    assert state_counts(node.ledger)["studies"] == {}


def test_a_full_disk_is_reported_and_recovers_by_itself(
    listen: Callable[..., ListeningNode], tmp_path: Path, tiny_disk: Callable[[int], Path]
) -> None:
    disk = tiny_disk(900)
    node = listen(spool=disk / "spool")
    scans = [radiograph(tmp_path / f"{n}.dcm", number=n, seed=n) for n in range(1, 4)]
    assert send(node.port, scans[:1]) == [SUCCESS]
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as stream:
        while stream.write(bytes(1000)):
            pass
    assert send(node.port, scans[1:]) == [OUT_OF_RESOURCES, OUT_OF_RESOURCES]
    assert len(node.files()) == 1
    filler.unlink()
    assert send(node.port, scans) == [SUCCESS] * 3
    assert len(node.files()) == 3


def test_late_images_are_refused_with_the_reason(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node, study = listen(late_images="refuse"), dcmread(scan).StudyInstanceUID
    assert send(node.port, [scan]) == [SUCCESS]
    node.ledger.complete(study, 1)
    assert node.ledger.take(2) is not None
    other = radiograph(scan.with_name("2.dcm"), number=2)
    assert send(node.port, [other, scan]) == [NOT_AUTHORIZED, SUCCESS]
    assert len(node.files()) == 1


def test_a_message_that_is_too_large_ends_the_connection(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen(limits={"free_mb": 0, "instance_mb": 0.1})
    large = changed(scan, Rows=1000, Columns=1000, PixelData=bytes(2_000_000))
    link = association(node.port)
    with pytest.raises(RuntimeError, match="before an answer"):
        store(link, large)
    assert send(node.port, [scan]) == [SUCCESS]
    assert len(node.files()) == 1


def test_noise_on_the_port_does_no_harm(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    for noise in (b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n", b"\x16\x03\x01" + bytes(200), b"\x01\x00\xff\xff\xff\xff"):
        with socket.create_connection(("127.0.0.1", node.port), timeout=60) as connection:
            connection.sendall(noise)
            connection.settimeout(20)
            while connection.recv(100):
                pass  # until the node closes it
    assert send(node.port, [scan]) == [SUCCESS]


def association_request() -> bytes:
    """A-ASSOCIATE-RQ as bytes."""
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


def test_many_idle_connections_delay_nobody(listen: Callable[..., ListeningNode]) -> None:
    """60 sockets that send nothing, 5 that send slowly, 100 associations: C-ECHO is answered while all of them wait."""
    node, request = listen(limits={"free_mb": 0, "associations": 110}), association_request()
    idle, slow, open_ones = (
        [socket.create_connection(("127.0.0.1", node.port)) for _ in range(number)] for number in (60, 5, 100)
    )
    for each in slow:
        each.sendall(request[:7])
    for each in open_ones:
        each.sendall(request)
    for each in open_ones:
        each.settimeout(20)
        assert each.recv(1) == b"\x02"  # accepted
    for number in range(3):
        slow[number].sendall(request[7 + number : 8 + number])
        link = patient_association(node.port)
        assert link.send_c_echo().Status == SUCCESS
        ended, _, _ = select.select(slow, [], [], 0)
        assert not ended, "the node answered only after it had ended a connection"
        link.release()
    for each in (*idle, *slow, *open_ones):
        each.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, with certificates of theirs: server and client of the one, stranger of the other."""
    ours = {"server": LOCAL, "client": LOCAL}
    return make_certificates(tmp_path_factory.mktemp("tls"), {"ca": ours, "foreign": {"stranger": LOCAL}})


def test_tls_asks_for_a_certificate_of_the_authority(
    listen: Callable[..., ListeningNode], scan: Path, certificates: Path
) -> None:
    parts = {"certificate": "server.pem", "key": "server.key", "authority": "ca.pem"}
    node = listen(tls={name: certificates / file for name, file in parts.items()})

    def context(name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        if name:
            context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        return context

    assert send(node.port, [scan], tls_args=(context("client"), "127.0.0.1")) == [SUCCESS]
    for name in ("stranger", None):
        assert not association(node.port, tls_args=(context(name), "127.0.0.1")).is_established
    assert not association(node.port).is_established  # without TLS
    silent = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(30)]  # never shake hands
    assert send(node.port, [scan], tls_args=(context("client"), "127.0.0.1")) == [SUCCESS]
    for each in silent:
        each.close()
    assert len(node.files()) == 1


def element(group: int, number: int, length: int, content: bytes = b"") -> bytes:
    """Of a data set with implicit VR, whatever its length claims."""
    return struct.pack("<HHL", group, number, length) + content


def test_sizes_that_are_claimed_take_no_memory(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body in (element(0x0008, 0x0018, 0xFFFFFFF0, b"1.2"), element(0x7FE0, 0x0010, 0xFFFFFFFE, bytes(100))):
        assert raw_store(node.port, body) in (CANNOT_UNDERSTAND, DATA_SET_MISMATCH)
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as connection:
        connection.sendall(association_request())
        assert connection.recv(10_000)[:1] == b"\x02"
        connection.sendall(b"\x04\x00\xff\xff\xff\xff" + bytes(1000))  # data of 4 GB
        with suppress(ConnectionResetError):
            while connection.recv(1000):
                pass  # until the node closes it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert send(node.port, [scan]) == [SUCCESS]


def test_unfinished_messages_are_bounded(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen(limits={"free_mb": 0, "memory_mb": 1.0})
    large = changed(scan, Rows=500, Columns=500, PixelData=bytes(500_000), SOPInstanceUID="1.2.3.4")
    large.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    senders = []
    for _ in range(2):  # two senders stop halfway
        connection = socket.create_connection(("127.0.0.1", node.port), timeout=60)
        connection.sendall(association_request())
        assert connection.recv(10_000)[:1] == b"\x02"
        connection.sendall(b"\x04\x00" + struct.pack(">L", 300_000) + bytes(1000))
        senders.append(connection)
    wait_for(lambda: node.receiver._server.total_unfinished_bytes() > 600_000)
    with pytest.raises(RuntimeError, match="before an answer"):
        store(association(node.port), large)
    assert send(node.port, [scan]) == [SUCCESS]
    for connection in senders:
        connection.close()
    wait_for(lambda: node.receiver._server.total_unfinished_bytes() == 0)
    assert send(node.port, [large, scan]) == [SUCCESS, SUCCESS]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_data_set_that_is_deflated_as_a_whole_is_not_accepted(listen: Callable[..., ListeningNode]) -> None:
    node = listen()
    ae = AE("SENDER")
    ae.add_requested_context(CR, DeflatedExplicitVRLittleEndian)
    link = ae.associate("127.0.0.1", node.port, ae_title="MEDOPT")
    assert [context.result for context in link.rejected_contexts] == [0x04]  # transfer syntaxes not supported
    link.abort()


def test_the_watermark_recovers_by_itself(
    listen: Callable[..., ListeningNode], tmp_path: Path, tiny_disk: Callable[[int], Path]
) -> None:
    disk = tiny_disk(3000)
    node = listen(spool=disk / "spool", limits={"free_mb": 1.5})
    audit = AuditFile(disk / "audit.jsonl", time.time)
    node.intake._audit = audit
    scans = [radiograph(tmp_path / f"{n}.dcm", number=n, seed=n) for n in range(1, 4)]
    assert send(node.port, scans[:1]) == [SUCCESS]
    filler = disk / "filler"
    filler.write_bytes(bytes(1_500_000))
    assert send(node.port, scans) == [SUCCESS, OUT_OF_RESOURCES, OUT_OF_RESOURCES]  # the first one is already stored
    assert len(node.files()) == 1
    assert len(node.ledger.images(dcmread(scans[0]).StudyInstanceUID)) == 1
    filler.unlink()
    assert send(node.port, scans) == [SUCCESS] * 3
    audit.close()
    assert verify(disk / "audit.jsonl")[0] == 5


def test_dcmtk_sends(listen: Callable[..., ListeningNode], scan: Path) -> None:
    if shutil.which("storescu") is None:
        pytest.skip("dcmtk's storescu is not installed")
    node = listen()
    command = ["storescu", "-aet", "SENDER", "-aec", "MEDOPT", "127.0.0.1", str(node.port), str(scan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, len(node.files())) == (0, 1), done.stderr
    wrong = subprocess.run([*command[:3], "-aec", "WRONG", *command[5:]], capture_output=True, text=True, check=False)
    assert re.search("called ae title not recogni[sz]ed", wrong.stderr.lower())


def test_the_log_names_no_patient(
    listen: Callable[..., ListeningNode], scan: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node, sent = listen(), dcmread(scan)
    with caplog.at_level(logging.DEBUG):
        send(node.port, [scan, changed(scan, SeriesDescription="x"), changed(scan, StudyInstanceUID="a/b")])
        association(node.port, calling="STRANGER")
    assert "refused" in caplog.text
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("medopt"))
    for word in (sent.PatientID, "QUITTENBAUM", sent.StudyInstanceUID, sent.SOPInstanceUID, sent.AccessionNumber):
        assert word not in ours


def test_several_senders_of_the_same_at_once(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.extend(send(node.port, [scan] * 3))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (statuses, len(node.files()), node.events) == ([SUCCESS] * 18, 1, ["received"])


def test_the_end_of_an_association_is_seen(listen: Callable[..., ListeningNode], scan: Path) -> None:
    node = listen()
    link = association(node.port)
    store(link, scan)
    ((study, is_open),) = node.images_received
    assert study == dcmread(scan).StudyInstanceUID
    assert is_open()
    link.release()
    deadline = time.monotonic() + 120
    while is_open() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_open()
