"""The whole node as a process with its HTTP side: STOW-RS in and out, the page, and the pull from a PACS."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
import requests
from clinic_fixtures import call
from node_process import NodeProcess, wait_for
from orthanc import Orthanc, needs_orthanc
from peers import Archive, radiograph
from ports import free_port
from pydicom import dcmread

pytestmark = pytest.mark.long

CONTENT_TYPE = 'multipart/related; type="application/dicom"; boundary=aBc'


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    orthanc = Orthanc(tmp_path / "orthanc", free_port())
    orthanc.start()
    yield orthanc
    orthanc.stop()


def stow(url: str, scan: Path) -> bool:
    """Whether the node confirmed it."""
    body = b"--aBc\r\nContent-Type: application/dicom\r\n\r\n" + scan.read_bytes() + b"\r\n--aBc--"
    try:
        answer = requests.post(
            f"{url}/dicom-web/studies", data=body, headers={"Content-Type": CONTENT_TYPE}, timeout=20
        )
    except requests.ConnectionError:
        return False
    return answer.status_code == 200


def deliver(node: NodeProcess, url: str, scan: Path) -> None:
    """Send until the node confirms it, and start the node again if it was killed."""
    deadline = time.monotonic() + 200
    while not stow(url, scan):
        assert time.monotonic() < deadline, node.log_text()
        assert node.process is not None
        if node.process.poll() is not None:
            node.start()
        time.sleep(0.1)


def check_report(orthanc: Orthanc, instance: str, path: Path) -> None:
    """A report as Orthanc stores it can be read by other programs."""
    tags = orthanc.get(f"/instances/{instance}/simplified-tags")
    if tags["Modality"] != "SR":
        return
    assert (tags["VerificationFlag"], tags["PreliminaryFlag"]) == ("UNVERIFIED", "PRELIMINARY")
    path.write_bytes(orthanc.file(instance))
    for program in ("dciodvfy", "dsrdump"):
        if shutil.which(program):
            ended = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
            errors = [line for line in ended.stderr.splitlines() if line.startswith(("Error", "E:", "F:"))]
            assert errors == [], (program, errors)


@needs_orthanc
def test_studies_by_stow_through_a_killed_node_and_what_routing_lost(
    tmp_path: Path, release: Path, orthanc: Orthanc
) -> None:
    page = free_port()
    url = f"http://127.0.0.1:{page}"
    pull = {"source": {"url": orthanc.web}, "modalities": ["DX"], "every_minutes": 60}
    scans = [radiograph(tmp_path / "scans" / f"{study}.dcm", study=study, number=study) for study in range(1, 4)]
    lost = radiograph(tmp_path / "scans" / "lost.dcm", study=9, date=f"{date.today():%Y%m%d}")
    orthanc.upload(lost)  # it was in the PACS before the node started
    node = NodeProcess(
        tmp_path,
        release,
        Archive(),  # not started: the destination is Orthanc
        destinations=[{"url": orthanc.web}],
        web={"port": page, "stow": True},
        pull=pull,
    )
    node.start()
    try:
        deliver(node, url, scans[0])
        killer = threading.Timer(0.05, node.kill)
        killer.start()
        for scan in scans[1:]:
            deliver(node, url, scan)
        killer.join()
        if node.process is not None and node.process.poll() is not None:
            node.start()
        for scan in scans:  # all of it again: nothing may be stored twice
            deliver(node, url, scan)
        wait_for(lambda: node.status()["studies"] == {"done": 4}, node)
        wait_for(lambda: set(node.status()["sends"]) == {"sent"}, node)
        stored = [dcmread(io.BytesIO(orthanc.file(uid))) for uid in orthanc.instances()]
        reports = [report for report in stored if report.Modality == "SR"]
        studies = [str(dcmread(scan).StudyInstanceUID) for scan in [*scans, lost]]
        assert sorted(str(report.StudyInstanceUID) for report in reports) == sorted(2 * studies)
        for uid in orthanc.instances():
            check_report(orthanc, uid, tmp_path / "one.dcm")
        health = requests.get(f"{url}/health", timeout=60)
        assert (health.status_code, health.json()["healthy"]) == (200, True)
        output = (
            node.log_text() + requests.get(f"{url}/", timeout=60).text + requests.get(f"{url}/metrics", timeout=60).text
        )
        output += (tmp_path / "spool" / "audit.jsonl").read_text()
        for scan in [*scans, lost]:
            sent = dcmread(scan)
            for word in (
                sent.PatientID,
                "QUITTENBAUM",
                sent.AccessionNumber,
                sent.StudyInstanceUID,
                sent.SOPInstanceUID,
            ):
                assert str(word) not in output
        started = time.monotonic()
        assert node.kill(signal.SIGHUP) == 0
        assert time.monotonic() - started < 30
        assert call("pacs", "audit", "verify", node.file).code == 0
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()
        node.log.close()
