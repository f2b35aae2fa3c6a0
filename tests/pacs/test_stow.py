"""STOW-RS from a real client: what is confirmed is safe, what is refused has its reason, nothing is gathered."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from dicomweb_client import DICOMwebClient
from peers import radiograph
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE
from web_side import WebSide

from medopt.pacs.intake import DUPLICATE, NOT_AS_SAID, NOT_UNDERSTOOD, OUT_OF_ROOM

KIND = 'multipart/related; type="application/dicom"; boundary=aBc'


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return radiograph(tmp_path / "scans" / "1.dcm")


def body(*parts: bytes, kind: str = "application/dicom", end: bytes = b"--") -> bytes:
    head = f"--aBc\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + b"--aBc" + end


def post(side: WebSide, content: Any, path: str = "", kind: str = KIND, **headers: str) -> requests.Response:
    return requests.post(
        f"{side.url}/dicom-web/studies{path}", data=content, headers={"Content-Type": kind} | headers, timeout=20
    )


def opening(length: int) -> bytes:
    """The head of a request, by hand."""
    lines = [
        "POST /dicom-web/studies HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {KIND}",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def told(answer: requests.Response) -> Dataset:
    return Dataset.from_json(answer.json())


def reasons(answer: requests.Response) -> list[int]:
    found = told(answer)
    return [
        item.FailureReason for name in ("FailedSOPSequence", "OtherFailuresSequence") for item in found.get(name, [])
    ]


def test_a_real_client_stores_a_study(side: Callable[..., WebSide], tmp_path: Path) -> None:
    node = side()
    scans = [dcmread(radiograph(tmp_path / "scans" / f"{number}.dcm", number=number)) for number in (1, 2, 3)]
    answer = DICOMwebClient(f"{node.url}/dicom-web").store_instances(scans)
    assert {item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence} == {
        one.SOPInstanceUID for one in scans
    }
    assert "FailedSOPSequence" not in answer
    kept = {image.sop_uid: node.spool.root / image.file for image in node.ledger.images(scans[0].StudyInstanceUID)}
    for one in scans:
        again = dcmread(kept[one.SOPInstanceUID])
        assert again.pixel_array.tobytes() == one.pixel_array.tobytes()
        assert again.file_meta.TransferSyntaxUID == one.file_meta.TransferSyntaxUID
    assert [is_open() for _, is_open in node.heard] == [False] * 3
    assert node.left_over() == []


def test_both_doors_know_the_same_instance(side: Callable[..., WebSide], scan: Path) -> None:
    node = side()
    sent = dcmread(scan)
    ae = AE("SENDER")
    ae.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
    link = ae.associate("127.0.0.1", node.node.port, ae_title="MEDOPT")
    assert link.send_c_store(sent).Status == 0
    link.release()
    assert post(node, body(scan.read_bytes())).status_code == 200
    assert len(node.files()) == 1
    assert node.told.counts()["received", ""] == 1


def test_a_header_of_the_senders_is_not_kept(side: Callable[..., WebSide], scan: Path) -> None:
    node = side()
    assert post(node, body(b"#!/bin/sh\n".ljust(128) + scan.read_bytes()[128:])).status_code == 200
    assert node.files()[0].read_bytes()[:128] == bytes(128)


def test_each_is_taken_or_refused_by_itself(side: Callable[..., WebSide], scan: Path, tmp_path: Path) -> None:
    node = side()
    other, first = dcmread(radiograph(tmp_path / "scans" / "o.dcm", study=2)), dcmread(scan)
    first.SeriesDescription = "changed"
    changed = io.BytesIO()
    first.save_as(changed)
    assert post(node, body(scan.read_bytes())).status_code == 200
    stream = io.BytesIO()
    other.save_as(stream)
    answer = post(node, body(stream.getvalue(), changed.getvalue(), b"no DICOM" * 50, scan.read_bytes()[:300]))
    assert answer.status_code == 202
    found = told(answer)
    assert [item.ReferencedSOPInstanceUID for item in found.ReferencedSOPSequence] == [other.SOPInstanceUID]
    (failed,) = found.FailedSOPSequence[:1]
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (first.SOPInstanceUID, DUPLICATE)
    assert reasons(answer)[-1] == NOT_UNDERSTOOD
    assert len(node.files()) == 2


def test_of_another_study_than_said(side: Callable[..., WebSide], scan: Path) -> None:
    node = side()
    study = dcmread(scan).StudyInstanceUID
    answer = post(node, body(scan.read_bytes()), "/1.2.3")
    assert (answer.status_code, reasons(answer), node.files()) == (409, [NOT_AS_SAID], [])
    assert post(node, body(scan.read_bytes()), f"/{study}").status_code == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/dicom", 415),
        ('multipart/related; type="application/dicom+json"; boundary=aBc', 415),
        ('multipart/related; type="application/dicom"', 400),
        (f'multipart/related; type="application/dicom"; boundary={"a" * 71}', 400),
        (KIND.replace("aBc", "other"), 400),
    ],
)
def test_the_wrong_form(side: Callable[..., WebSide], scan: Path, kind: str, status: int) -> None:
    node = side()
    assert post(node, body(scan.read_bytes()), kind=kind).status_code == status
    assert (node.files(), node.left_over()) == ([], [])


def test_what_breaks_off_is_not_taken(side: Callable[..., WebSide], scan: Path, tmp_path: Path) -> None:
    node = side()
    second = radiograph(tmp_path / "scans" / "2.dcm", number=2).read_bytes()
    assert post(node, body(second)[:-3000]).status_code == 400
    assert (node.files(), node.left_over()) == ([], [])
    whole = body(scan.read_bytes(), second)
    answer = post(node, whole[: -len(second) // 2])  # the first came whole, and that is said
    assert (answer.status_code, len(told(answer).ReferencedSOPSequence), reasons(answer)) == (202, 1, [NOT_UNDERSTOOD])
    assert post(node, whole).status_code == 200  # sent again, nothing is doubled
    assert (len(node.files()), node.left_over()) == (2, [])


def test_a_sender_that_goes_away_or_falls_silent(side: Callable[..., WebSide], scan: Path) -> None:
    node = side()
    head = opening(10**6)
    for silent in (False, True):
        with socket.create_connection(("127.0.0.1", node.node.web.port)) as one:  # type: ignore[union-attr]
            one.sendall(head + body(scan.read_bytes())[:4000])
            if silent:
                assert b"400" in one.recv(200)
    until = time.monotonic() + 5
    while node.left_over() and time.monotonic() < until:
        time.sleep(0.05)
    assert (node.files(), node.left_over()) == ([], [])
    assert requests.get(f"{node.url}/health", timeout=5).status_code == 200


def test_what_is_too_large_is_refused(side: Callable[..., WebSide], scan: Path) -> None:
    node = side(limits={"free_mb": 0, "instance_mb": 0.002})
    answer = post(node, body(scan.read_bytes()))
    assert (answer.status_code, reasons(answer)) == (503, [OUT_OF_ROOM])
    with socket.create_connection(("127.0.0.1", node.node.web.port)) as one:  # type: ignore[union-attr]
        one.sendall(opening(10**13))
        assert b"413" in one.recv(200)
    assert (node.files(), node.left_over()) == ([], [])


def test_a_full_disk(side: Callable[..., WebSide], scan: Path) -> None:
    node = side(limits={"free_mb": 10**9})
    answer = post(node, body(scan.read_bytes()))
    assert (answer.status_code, reasons(answer), "Retry-After" in answer.headers) == (503, [OUT_OF_ROOM], True)


def test_deep_headers_and_other_tongues(side: Callable[..., WebSide], scan: Path) -> None:
    node = side()
    claims = bytearray(scan.read_bytes())
    claims[140:144] = (1 << 31).to_bytes(4, "little")  # the file header's length
    assert reasons(post(node, body(bytes(claims)))) == [NOT_UNDERSTOOD]
    assert reasons(post(node, body(scan.read_bytes(), kind="text/plain"))) == [NOT_UNDERSTOOD]
    assert post(node, body(scan.read_bytes()), Accept="application/dicom+xml").status_code == 406
    assert post(node, b"x", **{"Content-Encoding": "gzip"}).status_code == 415
    assert post(node, b"--aBc--").status_code == 400


def test_what_inflates_is_refused(side: Callable[..., WebSide], scan: Path) -> None:
    node, bomb = side(), dcmread(scan)
    bomb.PixelData = bytes(5_000_000)
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    bomb.save_as(stream)
    assert len(stream.getvalue()) < 50_000
    assert reasons(post(node, body(stream.getvalue()))) == [NOT_UNDERSTOOD]
    assert (node.files(), node.left_over()) == ([], [])


def test_without_stow_there_is_no_such_place(side: Callable[..., WebSide], scan: Path) -> None:
    node = side(web={"stow": False})
    assert post(node, body(scan.read_bytes())).status_code == 404
