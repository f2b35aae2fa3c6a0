"""The whole node as a process with all its other doors: STOW-RS in and out, the page, and what it asks the PACS for."""

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
from orthanc import Orthanc, needs_orthanc
from peers import Archive, radiograph
from ports import free_port
from pydicom import dcmread
from running import Running, wait_for

pytestmark = pytest.mark.long

KIND = 'multipart/related; type="application/dicom"; boundary=aBc'


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    one = Orthanc(tmp_path / "orthanc", free_port())
    one.start()
    yield one
    one.stop()


def stow(url: str, scan: Path) -> bool:
    """Whether the node confirmed it."""
    body = b"--aBc\r\nContent-Type: application/dicom\r\n\r\n" + scan.read_bytes() + b"\r\n--aBc--"
    try:
        answer = requests.post(f"{url}/dicom-web/studies", data=body, headers={"Content-Type": KIND}, timeout=20)
    except requests.ConnectionError:
        return False
    return answer.status_code == 200


def deliver(node: Running, url: str, scan: Path) -> None:
    """Send until the node confirms it, and begin it again where it was killed."""
    until = time.monotonic() + 200
    while not stow(url, scan):
        assert time.monotonic() < until, node.said()
        assert node.process is not None
        if node.process.poll() is not None:
            node.begin()
        time.sleep(0.1)


def check_report(orthanc: Orthanc, instance: str, place: Path) -> None:
    """A report as Orthanc holds it opens elsewhere."""
    tags = orthanc.get(f"/instances/{instance}/simplified-tags")
    if tags["Modality"] != "SR":
        return
    assert (tags["VerificationFlag"], tags["PreliminaryFlag"]) == ("UNVERIFIED", "PRELIMINARY")
    place.write_bytes(orthanc.file(instance))
    for program in ("dciodvfy", "dsrdump"):
        if shutil.which(program):
            done = subprocess.run([program, str(place)], capture_output=True, text=True, check=False)
            errors = [line for line in done.stderr.splitlines() if line.startswith(("Error", "E:", "F:"))]
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
    orthanc.upload(lost)  # it was in the PACS before the node began
    node = Running(
        tmp_path,
        release,
        Archive(),  # not started: the destination is Orthanc
        destinations=[{"url": orthanc.web}],
        web={"port": page, "stow": True},
        pull=pull,
    )
    node.begin()
    try:
        deliver(node, url, scans[0])
        killer = threading.Timer(0.05, node.kill)
        killer.start()
        for scan in scans[1:]:
            deliver(node, url, scan)
        killer.join()
        if node.process is not None and node.process.poll() is not None:
            node.begin()
        for scan in scans:  # all of it again: nothing may be doubled
            deliver(node, url, scan)
        wait_for(lambda: node.status()["studies"] == {"done": 4}, node)
        wait_for(lambda: set(node.status()["sends"]) == {"sent"}, node)
        found = [dcmread(io.BytesIO(orthanc.file(one))) for one in orthanc.instances()]
        reports = [one for one in found if one.Modality == "SR"]
        studies = [str(dcmread(scan).StudyInstanceUID) for scan in [*scans, lost]]
        assert sorted(str(one.StudyInstanceUID) for one in reports) == sorted(2 * studies)
        for one in orthanc.instances():
            check_report(orthanc, one, tmp_path / "one.dcm")
        health = requests.get(f"{url}/health", timeout=10)
        assert (health.status_code, health.json()["healthy"]) == (200, True)
        said = node.said() + requests.get(f"{url}/", timeout=10).text + requests.get(f"{url}/metrics", timeout=10).text
        said += (tmp_path / "spool" / "audit.jsonl").read_text()
        for scan in [*scans, lost]:
            sent = dcmread(scan)
            for word in (
                sent.PatientID,
                "QUITTENBAUM",
                sent.AccessionNumber,
                sent.StudyInstanceUID,
                sent.SOPInstanceUID,
            ):
                assert str(word) not in said
        begun = time.monotonic()
        assert node.kill(signal.SIGTERM) == 0
        assert time.monotonic() - begun < 30
        assert call("pacs", "audit", "verify", node.file).code == 0
    finally:
        if node.process is not None and node.process.poll() is None:
            node.kill()
        node.log.close()
