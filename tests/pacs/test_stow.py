"""STOW-RS from a real client: what is confirmed is safe, what is refused has its reason, no body is held in memory."""

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
from http_node import HttpNode
from peers import radiograph
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pynetdicom import AE

from medopt.pacs.intake import CANNOT_UNDERSTAND, DATA_SET_MISMATCH, DUPLICATE_INSTANCE, OUT_OF_RESOURCES

CONTENT_TYPE = 'multipart/related; type="application/dicom"; boundary=aBc'


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return radiograph(tmp_path / "scans" / "1.dcm")


def body(*parts: bytes, part_type: str = "application/dicom", end: bytes = b"--") -> bytes:
    head = f"--aBc\r\nContent-Type: {part_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + b"--aBc" + end


def post(
    node: HttpNode, content: Any, path: str = "", content_type: str = CONTENT_TYPE, **headers: str
) -> requests.Response:
    return requests.post(
        f"{node.url}/dicom-web/studies{path}",
        data=content,
        headers={"Content-Type": content_type} | headers,
        timeout=60,
    )


def request_head(length: int) -> bytes:
    """The head of a request, by hand."""
    lines = [
        "POST /dicom-web/studies HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {CONTENT_TYPE}",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def response_module(response: requests.Response) -> Dataset:
    return Dataset.from_json(response.json())


def reasons(response: requests.Response) -> list[int]:
    module = response_module(response)
    return [
        item.FailureReason for name in ("FailedSOPSequence", "OtherFailuresSequence") for item in module.get(name, [])
    ]


def test_a_real_client_stores_a_study(start_http_node: Callable[..., HttpNode], tmp_path: Path) -> None:
    node = start_http_node()
    scans = [dcmread(radiograph(tmp_path / "scans" / f"{number}.dcm", number=number)) for number in (1, 2, 3)]
    response = DICOMwebClient(f"{node.url}/dicom-web").store_instances(scans)
    assert {item.ReferencedSOPInstanceUID for item in response.ReferencedSOPSequence} == {
        scan.SOPInstanceUID for scan in scans
    }
    assert "FailedSOPSequence" not in response
    stored = {image.sop_uid: node.spool.root / image.file for image in node.ledger.images(scans[0].StudyInstanceUID)}
    for scan in scans:
        copy = dcmread(stored[scan.SOPInstanceUID])
        assert copy.pixel_array.tobytes() == scan.pixel_array.tobytes()
        assert copy.file_meta.TransferSyntaxUID == scan.file_meta.TransferSyntaxUID
    assert [is_open() for _, is_open in node.images_received] == [False] * 3
    assert node.partial_files() == []


def test_c_store_and_stow_know_the_same_instance(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node()
    sent = dcmread(scan)
    ae = AE("SENDER")
    ae.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
    link = ae.associate("127.0.0.1", node.settings.port, ae_title="MEDOPT")
    assert link.send_c_store(sent).Status == 0
    link.release()
    assert post(node, body(scan.read_bytes())).status_code == 200
    assert len(node.files()) == 1
    assert node.audit.counts()["received", ""] == 1


def test_the_senders_file_header_is_not_stored(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node()
    assert post(node, body(b"#!/bin/sh\n".ljust(128) + scan.read_bytes()[128:])).status_code == 200
    assert node.files()[0].read_bytes()[:128] == bytes(128)


def test_each_instance_is_stored_or_refused_by_itself(
    start_http_node: Callable[..., HttpNode], scan: Path, tmp_path: Path
) -> None:
    node = start_http_node()
    other, first = dcmread(radiograph(tmp_path / "scans" / "o.dcm", study=2)), dcmread(scan)
    first.SeriesDescription = "changed"
    changed = io.BytesIO()
    first.save_as(changed)
    assert post(node, body(scan.read_bytes())).status_code == 200
    stream = io.BytesIO()
    other.save_as(stream)
    response = post(node, body(stream.getvalue(), changed.getvalue(), b"no DICOM" * 50, scan.read_bytes()[:300]))
    assert response.status_code == 202
    module = response_module(response)
    assert [item.ReferencedSOPInstanceUID for item in module.ReferencedSOPSequence] == [other.SOPInstanceUID]
    (failed,) = module.FailedSOPSequence[:1]
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (first.SOPInstanceUID, DUPLICATE_INSTANCE)
    assert reasons(response)[-1] == CANNOT_UNDERSTAND
    assert len(node.files()) == 2


def test_an_instance_of_another_study_than_the_request_names(
    start_http_node: Callable[..., HttpNode], scan: Path
) -> None:
    node = start_http_node()
    study = dcmread(scan).StudyInstanceUID
    response = post(node, body(scan.read_bytes()), "/1.2.3")
    assert (response.status_code, reasons(response), node.files()) == (409, [DATA_SET_MISMATCH], [])
    assert post(node, body(scan.read_bytes()), f"/{study}").status_code == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/dicom", 415),
        ('multipart/related; type="application/dicom+json"; boundary=aBc', 415),
        ('multipart/related; type="application/dicom"', 400),
        (f'multipart/related; type="application/dicom"; boundary={"a" * 71}', 400),
        (CONTENT_TYPE.replace("aBc", "other"), 400),
    ],
)
def test_a_wrong_content_type(
    start_http_node: Callable[..., HttpNode], scan: Path, content_type: str, status: int
) -> None:
    node = start_http_node()
    assert post(node, body(scan.read_bytes()), content_type=content_type).status_code == status
    assert (node.files(), node.partial_files()) == ([], [])


def test_an_incomplete_body_is_not_stored(start_http_node: Callable[..., HttpNode], scan: Path, tmp_path: Path) -> None:
    node = start_http_node()
    second = radiograph(tmp_path / "scans" / "2.dcm", number=2).read_bytes()
    assert post(node, body(second)[:-3000]).status_code == 400
    assert (node.files(), node.partial_files()) == ([], [])
    whole = body(scan.read_bytes(), second)
    response = post(node, whole[: -len(second) // 2])  # the first is complete, and the response says so
    assert (response.status_code, len(response_module(response).ReferencedSOPSequence), reasons(response)) == (
        202,
        1,
        [CANNOT_UNDERSTAND],
    )
    assert post(node, whole).status_code == 200  # sent again, nothing is stored twice
    assert (len(node.files()), node.partial_files()) == (2, [])


def test_a_sender_that_goes_away_or_falls_silent(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node(idle_seconds=1)
    head = request_head(10**6)
    for silent in (False, True):
        with socket.create_connection(("127.0.0.1", node.settings.web.port)) as connection:  # type: ignore[union-attr]
            connection.sendall(head + body(scan.read_bytes())[:4000])
            if silent:
                assert b"400" in connection.recv(200)
    until = time.monotonic() + 120
    while node.partial_files() and time.monotonic() < until:
        time.sleep(0.05)
    assert (node.files(), node.partial_files()) == ([], [])
    assert requests.get(f"{node.url}/health", timeout=60).status_code == 200


def test_an_instance_that_is_too_large_is_refused(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node(limits={"free_mb": 0, "instance_mb": 0.002})
    response = post(node, body(scan.read_bytes()))
    assert (response.status_code, reasons(response)) == (503, [OUT_OF_RESOURCES])
    with socket.create_connection(("127.0.0.1", node.settings.web.port)) as connection:  # type: ignore[union-attr]
        connection.sendall(request_head(10**13))
        assert b"413" in connection.recv(200)
    assert (node.files(), node.partial_files()) == ([], [])


def test_a_full_disk(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node(limits={"free_mb": 10**9})
    response = post(node, body(scan.read_bytes()))
    assert (response.status_code, reasons(response), "Retry-After" in response.headers) == (
        503,
        [OUT_OF_RESOURCES],
        True,
    )


def test_malformed_headers_and_other_media_types(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node()
    claims = bytearray(scan.read_bytes())
    claims[140:144] = (1 << 31).to_bytes(4, "little")  # the file header's length
    assert reasons(post(node, body(bytes(claims)))) == [CANNOT_UNDERSTAND]
    assert reasons(post(node, body(scan.read_bytes(), part_type="text/plain"))) == [CANNOT_UNDERSTAND]
    assert post(node, body(scan.read_bytes()), Accept="application/dicom+xml").status_code == 406
    assert post(node, b"x", **{"Content-Encoding": "gzip"}).status_code == 415
    assert post(node, b"--aBc--").status_code == 400


def test_a_deflated_data_set_is_refused(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node, bomb = start_http_node(), dcmread(scan)
    bomb.PixelData = bytes(5_000_000)
    bomb.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stream = io.BytesIO()
    bomb.save_as(stream)
    assert len(stream.getvalue()) < 50_000
    assert reasons(post(node, body(stream.getvalue()))) == [CANNOT_UNDERSTAND]
    assert (node.files(), node.partial_files()) == ([], [])


def test_without_stow_there_is_no_such_path(start_http_node: Callable[..., HttpNode], scan: Path) -> None:
    node = start_http_node(web={"stow": False})
    assert post(node, body(scan.read_bytes())).status_code == 404
