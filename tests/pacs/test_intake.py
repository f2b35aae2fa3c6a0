"""What counts as an image, what as the same image, and that no state of a study is without an end."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from closing import closing_all
from http_node import HttpNode
from peers import radiograph, send
from pydicom import Dataset, dcmread
from pydicom.uid import (
    BasicTextSRStorage,
    EnhancedUSVolumeStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE

from medopt.imaging.series_index import index_folder
from medopt.pacs.intake import DUPLICATE_INSTANCE, SUCCESS
from medopt.pacs.ledger import STATES
from medopt.pacs.settings import ResultSettings
from medopt.pacs.status import retry_parked
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.study_processing import StudyCompletion, StudyProcessor


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., HttpNode]]:
    yield from closing_all(partial(HttpNode, tmp_path))


def as_class(path: Path, sop_class: str, *, pixels: bool = True) -> Dataset:
    image = dcmread(path)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    if not pixels:
        del image.PixelData
    return image


def c_store(node: HttpNode, image: Dataset) -> Any:
    ae = AE("SENDER")
    ae.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    link = ae.associate("127.0.0.1", node.settings.port, ae_title="MEDOPT")
    response = link.send_c_store(image)
    link.release()
    return response


@pytest.mark.parametrize(
    ("sop_class", "pixels", "is_image"),
    [
        (EnhancedUSVolumeStorage, True, True),
        (SegmentationStorage, True, False),
        (BasicTextSRStorage, False, False),
        ("1.2.840.10008.5.1.4.1.1.1.1", True, True),
    ],
)
def test_an_image_is_what_the_reader_reads(
    listen: Callable[..., HttpNode], tmp_path: Path, sop_class: str, pixels: bool, is_image: bool
) -> None:
    node = listen()
    image = as_class(radiograph(tmp_path / "in" / "a.dcm"), sop_class, pixels=pixels)
    image.save_as(tmp_path / "in" / "a.dcm")
    assert c_store(node, image).Status == SUCCESS
    assert bool(node.ledger.images(image.StudyInstanceUID)) is is_image
    if is_image:
        assert len(index_folder(tmp_path / "in").series) == 1


def transcoded(path: Path, syntax: str, **changes: Any) -> Dataset:
    image = dcmread(path)
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    if syntax == RLELossless:
        image.compress(RLELossless, generate_instance_uid=False)
        image.LossyImageCompression = "00"
        return image
    buffer = io.BytesIO()
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(buffer, implicit_vr=True, little_endian=True)
    return dcmread(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("by", ["C-STORE", "STOW-RS"])
def test_the_same_image_in_another_transfer_syntax_is_kept_once(
    listen: Callable[..., HttpNode], tmp_path: Path, syntax: str, by: str
) -> None:
    node, scan = listen(), radiograph(tmp_path / "in" / "a.dcm")
    first = dcmread(scan)
    first.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    assert c_store(node, first).Status == SUCCESS
    (kept,) = node.files()
    before = kept.read_bytes()
    again = transcoded(scan, syntax)
    other = transcoded(scan, syntax, SeriesDescription="another")
    if by == "C-STORE":
        assert c_store(node, again).Status == SUCCESS
        refused = c_store(node, other)
        assert refused.Status == DUPLICATE_INSTANCE
        assert refused.ErrorComment == "one with this UID is here, with another SeriesDescription"
    else:
        assert stow(node, again, tmp_path).status_code == 200
        answer = stow(node, other, tmp_path)
        assert answer.status_code == 409
        assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [DUPLICATE_INSTANCE]
    assert (node.files(), kept.read_bytes()) == ([kept], before)
    assert node.audit.counts()["received", ""] == 1


def stow(node: HttpNode, image: Dataset, folder: Path) -> requests.Response:
    image.save_as(folder / "part.dcm")
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + (folder / "part.dcm").read_bytes() + b"\r\n--b--\r\n"
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    return requests.post(f"{node.url}/dicom-web/studies", body, headers=headers, timeout=60)


class InThisProcess:
    """The worker without its process."""

    model_digest = release_digest = "digest"

    def __init__(self, release: Path) -> None:
        self.answer = StudyInference(release, "int8", None, ResultSettings(heat_maps=0)).answer


def test_no_state_is_without_an_end(listen: Callable[..., HttpNode], release: Path, tmp_path: Path) -> None:
    node, seen = listen(), set()
    completion = StudyCompletion(0.0, time.monotonic)
    worker: Any = InThisProcess(release)
    processor = StudyProcessor(node.settings, node.spool, node.ledger, worker, node.audit, time.time)

    def walk() -> None:
        """As the node's threads do, until nothing moves."""
        for study in node.ledger.receiving():
            seen.add(node.ledger.state(study))
            if completion.is_complete(study):
                node.ledger.complete(study, time.time())
                seen.add(node.ledger.state(study))
        while processor.process_next():
            pass

    scans = [radiograph(tmp_path / f"{n}.dcm", study=n) for n in range(1, 4)]
    blank = dcmread(scans[1])
    blank.PixelData = bytes(len(blank.PixelData))
    cut = dcmread(scans[2])
    cut.PixelData = cut.PixelData[:10]
    report = as_class(radiograph(tmp_path / "4.dcm", study=4), BasicTextSRStorage, pixels=False)
    for image in (dcmread(scans[0]), blank, cut, report):
        assert c_store(node, image).Status == SUCCESS
    walk()
    uids = [dcmread(scan).StudyInstanceUID for scan in scans]
    ends = {uid: node.ledger.state(uid) for uid in (*uids, report.StudyInstanceUID)}
    assert ends[uids[0]] in ("done", "declined")
    assert (ends[uids[1]], ends[uids[2]], ends[report.StudyInstanceUID]) == ("declined", "parked", "declined")
    assert retry_parked(node.ledger, 1) == (1, 0)  # parked is left by a person
    walk()
    assert node.ledger.take(1) is None
    more = [radiograph(tmp_path / f"{n}_2.dcm", study=n, number=2) for n in (1, 2, 3, 4)]
    assert send(node.settings.port, more) == [SUCCESS] * 4  # each end is left by a new image
    assert len(node.ledger.receiving()) == 4
    walk()
    assert node.ledger.receiving() == []
    taken = node.ledger.record(node.ledger.images(uids[0])[0], 1, late=True)
    assert taken == "known"
    seen |= {"working", "done", "declined", "parked"}  # working: recover and hand_back end it, in test_ledger
    assert seen == set(STATES)
