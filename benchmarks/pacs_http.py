"""How fast are the PACS node's HTTP side and its pull, and how much memory do they take? One node, real clients.

    python benchmarks/pacs_http.py RELEASE [--megabytes 1000] [--instances 100] [--studies 100000] [--json]

- stow: radiographs of 2 megapixels by STOW-RS, one a request, one and eight senders at once: seconds until the
  response, and how long C-ECHO takes meanwhile;
- large: one instance of `--megabytes`: bytes a second, and the node's peak memory;
- idle: 200 sockets that send nothing at the HTTP port, and how long /health and C-ECHO take then;
- page: the page, /metrics and /health with `--studies` studies in the ledger;
- pull: `--instances` of a real Orthanc, by C-MOVE and by WADO-RS: instances a second.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import requests
import yaml
from pynetdicom import AE
from pynetdicom.sop_class import Verification
from rich.console import Console
from rich.table import Table

from medopt.core.provenance import machine
from medopt.pacs.example_site import DemoSite, orthanc_program, running_process, wait_for_start, write_orthanc_config
from medopt.phantom import Radiograph, write_radiograph

CONTENT_TYPE = 'multipart/related; type="application/dicom"; boundary=aBc'
HEAD, TAIL = b"--aBc\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--aBc--"
SIZE = (1760, 1180)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


class Node:
    """`medopt pacs run` with its HTTP side; its destination is not reachable."""

    def __init__(self, folder: Path, release: Path, port: int, **changes: Any) -> None:
        self.folder, self.port, (self.page, nowhere) = folder, port, free_ports(2)
        self.url = f"http://127.0.0.1:{self.page}"
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "aet": "MEDOPT",
            "host": "127.0.0.1",
            "port": port,
            "release": str(release.resolve()),
            "spool": "spool",
            "accept": [{"aet": title, "addresses": ["127.0.0.1"]} for title in ("SENDER", "ORTHANC")],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": nowhere}],
            "quiet_seconds": 3600,
            "limits": {"free_mb": 0, "instance_mb": 8000},
            "web": {"port": self.page, "stow": True, "body_mb": 9000},
        }
        (folder / "node.yaml").write_text(yaml.safe_dump(values | changes))

    @contextmanager
    def running(self) -> Iterator[Node]:
        """Until the end of the block."""
        log = self.folder / "node.log"
        with log.open("wb") as stream:
            command = [sys.executable, "-m", "medopt", "pacs", "run", str(self.folder / "node.yaml")]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            wait_for_start(lambda: "status page" in log.read_text(), "The node", self.process, log)
            yield self
        finally:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def memory_mb(self, name: str = "VmHWM") -> float:
        """Memory of the node's own process, without its worker: now (VmRSS) or the largest so far (VmHWM)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1000
        return 0.0

    def echo_seconds(self) -> float:
        """One association with one C-ECHO."""
        started = time.monotonic()
        ae = AE("SENDER")
        ae.add_requested_context(Verification)
        link = ae.associate("127.0.0.1", self.port, ae_title="MEDOPT")
        assert link.send_c_echo().Status == 0x0000
        link.release()
        return time.monotonic() - started


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {name: round(float(np.percentile(seconds, at)), 4) for name, at in (("p50", 50), ("p99", 99))}


def radiographs(folder: Path, count: int) -> list[Path]:
    """Noise of 2 megapixels, ten images a study."""
    noise = np.random.default_rng(7).random(SIZE, dtype=np.float32)
    today = f"{date.today():%Y%m%d}"
    return [
        write_radiograph(
            folder / f"{number:04d}.dcm",
            np.roll(noise, number),
            Radiograph(patient_id=f"P{number // 10}", study_uid=f"2.25.1{number // 10}", date=today),
        )
        for number in range(count)
    ]


def post(url: str, scan: Path) -> float:
    """Seconds until one instance is confirmed."""
    body = HEAD + scan.read_bytes() + TAIL
    started = time.monotonic()
    answer = requests.post(f"{url}/dicom-web/studies", data=body, headers={"Content-Type": CONTENT_TYPE}, timeout=300)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - started


def measure_stow(node: Node, scans: Sequence[Path], senders: int) -> dict[str, Any]:
    """Several senders, one instance a request."""
    seconds: list[float] = []
    threads = [
        threading.Thread(target=lambda part=scans[at::senders]: seconds.extend(post(node.url, scan) for scan in part))
        for at in range(senders)
    ]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    echoes = []
    while any(thread.is_alive() for thread in threads):
        echoes.append(node.echo_seconds())
        time.sleep(0.05)
    duration = time.monotonic() - started
    megabytes = sum(scan.stat().st_size for scan in scans) / 1e6
    return {
        "senders": senders,
        "instances": len(scans),
        **{f"answer_{name}_s": value for name, value in percentiles(seconds).items()},
        "echo_p99_s": percentiles(echoes)["p99"],
        "mb_per_s": round(megabytes / duration, 1),
    }


def measure_large(node: Node, scan: Path, megabytes: int) -> dict[str, Any]:
    """A radiograph with very long pixel data under the header of a real one; the claimed length is the sent length."""
    from pydicom import dcmread

    dataset = dcmread(scan)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.999"
    rows = megabytes * 1_000_000 // (2 * dataset.Columns)
    dataset.Rows, dataset.PixelData = min(rows, 65535), b"\0\0"
    before = node.memory_mb("VmRSS")
    path = scan.parent / "large.dcm"
    dataset.save_as(path)
    head = bytearray(path.read_bytes())
    at = head.rindex(b"\xe0\x7f\x10\x00")
    head[at + 8 : at + 12] = (2 * dataset.Columns * rows).to_bytes(4, "little")
    path.unlink()

    def body() -> Iterator[bytes]:
        yield HEAD + bytes(head[: at + 12])
        remaining, chunk = 2 * dataset.Columns * rows, b"\0" * (1 << 20)
        while remaining:
            yield chunk[: min(remaining, len(chunk))]
            remaining -= min(remaining, len(chunk))
        yield TAIL

    started = time.monotonic()
    answer = requests.post(
        f"{node.url}/dicom-web/studies", data=body(), headers={"Content-Type": CONTENT_TYPE}, timeout=600
    )
    duration = time.monotonic() - started
    assert answer.status_code == 200, answer.text
    return {
        "megabytes": megabytes,
        "seconds": round(duration, 1),
        "mb_per_s": round(megabytes / duration, 1),
        "memory_before_mb": round(before),
        "memory_peak_mb": round(node.memory_mb()),
    }


def timed(step: Callable[[], Any], times: int = 10) -> dict[str, float]:
    """Seconds of a step."""
    seconds = []
    for _ in range(times):
        started = time.monotonic()
        step()
        seconds.append(time.monotonic() - started)
    return {"p50_s": round(float(np.median(seconds)), 4), "max_s": round(max(seconds), 4)}


def measure_idle(node: Node, count: int = 200) -> dict[str, Any]:
    """Sockets that send nothing."""
    idle = [socket.create_connection(("127.0.0.1", node.page)) for _ in range(count)]
    measured = {"sockets": count, "echo": timed(node.echo_seconds, 5)}
    started = time.monotonic()
    while True:
        try:
            requests.get(f"{node.url}/health", timeout=5)
            break
        except requests.RequestException:
            time.sleep(0.1)
    measured["health_answers_after_s"] = round(time.monotonic() - started, 1)
    for connection in idle:
        connection.close()
    return measured


def measure_page(node: Node, studies: int) -> dict[str, Any]:
    """A ledger after a long time."""
    with closing(sqlite3.connect(node.folder / "spool" / "ledger.db", timeout=30)) as db, db:
        numbers = range(studies)
        db.executemany(
            "INSERT INTO studies (uid, state, changed) VALUES (?, 'done', ?)", ((f"9.{n}", 1e9 + n) for n in numbers)
        )
        db.executemany(
            "INSERT INTO instances (sop_uid, study_uid, sop_class, transfer_syntax, digest, size, file, image, "
            "received) VALUES (?, ?, 'c', 't', 'd', 1, ?, 1, ?)",
            ((f"9.{n}.1", f"9.{n}", f"f{n}", 1e9 + n) for n in numbers),
        )
        db.executemany(
            "INSERT INTO results (sop_uid, study_uid, sop_class, kind, file, digest, made) "
            "VALUES (?, ?, 'c', 'report', ?, 'd', ?)",
            ((f"9.{n}.2", f"9.{n}", f"r{n}", 1e9 + n) for n in numbers),
        )
        db.executemany(
            "INSERT INTO sends (sop_uid, destination, state, due) VALUES (?, 'PACS', 'sent', ?)",
            ((f"9.{n}.2", 1e9 + n + 5) for n in numbers),
        )
    measured: dict[str, Any] = {"studies": studies}
    for path in ("/", "/metrics", "/health"):
        measured[path] = timed(lambda path=path: requests.get(node.url + path, timeout=60))
    return measured


def measure_pull(folder: Path, release: Path, scans: Sequence[Path]) -> list[dict[str, Any]]:
    """`medopt pacs reconcile` twice: all is missing, then nothing."""
    site = DemoSite(folder, *free_ports(4))
    measured = []
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "orthanc.log"
    with running_process([orthanc_program(), str(write_orthanc_config(site))], log) as orthanc:
        wait_for_start(lambda: _answers(f"{site.orthanc_url}/system"), "Orthanc", orthanc, log)
        # the example's Orthanc routes; here only what is requested may come
        requests.post(f"{site.orthanc_url}/tools/execute-script", data="function OnStableStudy() end", timeout=10)
        for scan in scans:
            requests.post(f"{site.orthanc_url}/instances", data=scan.read_bytes(), timeout=60).raise_for_status()
        ways: dict[str, dict[str, Any]] = {
            "C-MOVE": {"aet": "ORTHANC", "host": "127.0.0.1", "port": site.orthanc_dicom_port},
            "WADO-RS": {"url": f"{site.orthanc_url}/dicom-web"},
        }
        for way, source in ways.items():
            pull = {"source": source, "modalities": ["DX"], "every_minutes": None}
            with Node(folder / way, release, site.node_dicom_port, pull=pull).running() as node:
                command = [
                    sys.executable,
                    "-m",
                    "medopt",
                    "pacs",
                    "reconcile",
                    str(node.folder / "node.yaml"),
                    "--json",
                ]
                for _ in range(2):
                    started = time.monotonic()
                    ended = subprocess.run(command, capture_output=True, text=True, check=True)
                    duration = time.monotonic() - started
                    summary = json.loads(ended.stdout.strip().splitlines()[-1])
                    measured.append({"by": way, **summary, "seconds": round(duration, 1)})
    return measured


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medopt-pacs-http-") as name:
        folder = Path(name)
        scans = radiographs(folder / "scans", options.instances)
        (port,) = free_ports(1)
        with Node(folder / "node", options.release, port).running() as node:
            half = len(scans) // 2
            measured: dict[str, Any] = {
                "stow": [measure_stow(node, scans[:half], 1), measure_stow(node, scans[half:], 8)]
            }
            measured["large"] = [measure_large(node, scans[0], options.megabytes)]
            measured["idle"] = [measure_idle(node)]
            measured["page"] = [measure_page(node, options.studies)]
        measured["pull"] = measure_pull(folder / "pull", options.release, scans)
    for title, rows in measured.items():
        table = Table(*rows[0], title=title)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        Console().print(table)
    if options.json:
        print(json.dumps({"machine": asdict(machine()), **measured}))


if __name__ == "__main__":
    main()
