"""The whole node as a process of its own: poisoned, late, repeated or delayed studies harm nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clinic_fixtures import call, environment
from node_process import NodeProcess, node_file_values, wait_for
from peers import Archive, radiograph, send
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from medopt.pacs.intake import DATA_SET_MISMATCH

PLANTED = "QUITTENBAUM"


def changed(path: Path, **values: Any) -> Path:
    dataset = dcmread(path)
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def bomb(path: Path, side: int = 16000) -> Path:
    """A file of 8 MB whose pixels take half a gigabyte when they are decoded."""
    dataset = dcmread(radiograph(path, study=5))
    segment = b"\x81\x00" * (side * side // 128)
    header = b"".join(value.to_bytes(4, "little") for value in (2, 64, 64 + len(segment))) + bytes(52)
    dataset.Rows = dataset.Columns = side
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([header + segment + segment])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


def worker_of(node: NodeProcess) -> int:
    """The node's worker process."""
    assert node.process is not None
    lists = Path(f"/proc/{node.process.pid}/task").glob("*/children")
    (pid,) = " ".join(path.read_text() for path in lists).split()
    return int(pid)


def identifiers(*scans: Path) -> set[str]:
    """The values that may appear nowhere outside the spool."""
    names = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return {PLANTED} | {str(dcmread(scan, stop_before_pixels=True)[name].value) for scan in scans for name in names}


def test_poisoned_studies_are_parked_and_the_rest_goes_on(
    start_node_process: Callable[..., NodeProcess], archive: Archive, tmp_path: Path
) -> None:
    node = start_node_process(work={"tries": 2, "seconds": 20, "memory_mb": 900})
    first = radiograph(tmp_path / "1.dcm", study=1)
    node.deliver(changed(first, SpecificCharacterSet="ISO_IR 999", SeriesDescription=PLANTED))
    wait_for(lambda: node.status()["studies"] == {"done": 1}, node)

    odd = dcmread(radiograph(tmp_path / "0.dcm", study=9))  # a library's warning would quote it
    odd.StudyInstanceUID = f"1.2.{PLANTED}"
    assert send(node.port, [odd]) == [DATA_SET_MISMATCH]

    os.kill(worker_of(node), signal.SIGSTOP)  # it hangs
    second = radiograph(tmp_path / "2.dcm", study=2)
    node.deliver(second)
    wait_for(lambda: node.status()["studies"] == {"done": 2}, node, 180)
    assert "try 1 failed: the worker process took longer than 20 seconds" in node.log_text()

    cut = radiograph(tmp_path / "3.dcm", study=3)
    node.deliver(changed(cut, PixelData=dcmread(cut).PixelData[:1000]))
    huge = radiograph(tmp_path / "4.dcm", study=4)
    node.deliver(changed(huge, Rows=65535, Columns=65535))  # 8 GB, it says
    large, last = bomb(tmp_path / "5.dcm"), radiograph(tmp_path / "6.dcm", study=6)
    node.deliver(large)
    node.deliver(last)
    wait_for(lambda: node.status()["studies"] == {"done": 3, "parked": 3}, node, 240)
    reasons = sorted(item["reason"] for item in node.status()["parked"])
    assert "given up after 2 tries: the worker process took more than 900 MB of memory (work.memory_mb)" in reasons
    assert sum("pixel" in reason for reason in reasons) == 2, reasons
    wait_for(lambda: set(node.status()["sends"]) == {"sent"}, node)

    assert node.kill(signal.SIGTERM) == 0
    assert call("pacs", "audit", "verify", node.file).code == 0
    status, retry = call("pacs", "status", node.file), call("pacs", "retry", node.file)
    assert retry.stdout == "3 studies and 0 results are tried again\n"
    written = (
        node.log_text() + status.stdout + status.stderr + retry.stdout + (node.folder / "spool/audit.jsonl").read_text()
    )
    assert [word for word in identifiers(first, second, cut, huge, large, last) if word in written] == []
    assert [uid for uid in archive.kept if uid in written] == []


def test_down_doubled_routed_back_and_late(
    start_node_process: Callable[..., NodeProcess], archive: Archive, tmp_path: Path
) -> None:
    archive.stop()
    node = start_node_process(results={"heat_maps": 0})
    scan = radiograph(tmp_path / "1.dcm", study=1)
    node.deliver(scan)
    wait_for(lambda: node.status()["sends"] == {"waiting": 2}, node)
    archive.start()
    wait_for(lambda: node.status()["sends"] == {"sent": 2}, node)
    first = set(archive.kept)
    for _ in range(2):  # two more times, and its own results as a PACS routes them back
        assert set(send(node.port, [scan, *archive.objects()])) == {0}
    time.sleep(1.5)
    assert node.status() | {"parked": []} == {"studies": {"done": 1}, "sends": {"sent": 2}, "parked": []}

    node.deliver(radiograph(tmp_path / "2.dcm", study=1, number=2))
    wait_for(lambda: node.status()["sends"] == {"sent": 4}, node)
    late = [report for report in archive.objects() if report.SOPInstanceUID not in first]
    assert {predecessor(report) for report in late} == first
    assert [len(copies) for copies in archive.kept.values()] == [1] * 4
    events = [json.loads(line)["event"] for line in (tmp_path / "spool" / "audit.jsonl").read_text().splitlines()]
    assert {"started", "received", "complete", "answered", "not sent", "sent"} <= set(events)


def predecessor(report: Dataset) -> str:
    """The report that this one replaces."""
    series = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    return str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)


def test_a_release_that_was_changed_is_refused_before_the_node_listens(
    release: Path, archive: Archive, tmp_path: Path
) -> None:
    broken = shutil.copytree(release, tmp_path / "broken")
    with (broken / "model.int8.onnx").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff\x00\xff")
    with socket.socket() as taken:  # listening would fail otherwise, with another exit code
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        file = tmp_path / "node.yaml"
        file.write_text(json.dumps(node_file_values(tmp_path, taken.getsockname()[1], broken, archive)))
        command = [sys.executable, "-m", "medopt", "pacs", "run", str(file)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=100, check=False)
    assert (ended.returncode, ended.stdout) == (6, "")
    assert "Traceback" not in ended.stderr
    assert "model.int8.onnx" in ended.stderr
