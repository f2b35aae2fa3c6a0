"""Receiving from real senders: what is acknowledged is safe, what is refused has a reason, nobody holds it up."""

from __future__ import annotations

import logging
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import association, radiograph, send, store
from pydicom import Dataset, dcmread
from pynetdicom.pdu_primitives import A_ASSOCIATE

from medopt.pacs.intake import DUPLICATE, LATE, NOT_AS_SAID, NOT_UNDERSTOOD, OUT_OF_ROOM, STORED
from medopt.pacs.ledger import Ledger, Result
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
        self.receiver = Receiver(
            self.node,
            self.spool,
            self.ledger,
            lambda *words: self.heard.append(words),
            lambda event, **_: self.told.append(event),
        )
        self.port = self.receiver.start()

    def files(self) -> list[Path]:
        return sorted(path for path in self.node.spool.rglob("*") if path.is_file() and "studies" in path.parts)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., Listening]]:
    begun: list[Listening] = []

    def begin(**changes: Any) -> Listening:
        begun.append(Listening(tmp_path, **changes))
        return begun[-1]

    yield begin
    for one in begun:
        one.receiver.stop()
        one.ledger.close()


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
    assert node.ledger.counts()["studies"] == {}


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


def test_idle_sockets_and_many_associations_keep_nobody_waiting(listening: Callable[..., Listening]) -> None:
    node = listening()
    idle = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(60)]
    loris = socket.create_connection(("127.0.0.1", node.port))
    loris.sendall(b"\x01\x00\x00\x00\x10\x00\x00")
    begun = time.perf_counter()
    one = association(node.port)
    assert one.send_c_echo().Status == STORED
    assert time.perf_counter() - begun < 20  # idle sockets alone would hold it up for 30 seconds
    one.release()
    for each in (*idle, loris):
        each.close()


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
