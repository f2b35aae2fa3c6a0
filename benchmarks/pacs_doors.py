"""How fast are the PACS node's other doors, and how much memory do they take? A node of its own, real clients.

    python benchmarks/pacs_doors.py RELEASE [--megabytes 1000] [--instances 100] [--studies 100000] [--json]

- stow: radiographs of 2 megapixels by STOW-RS, one a request, one and eight senders at once: seconds until the answer,
  and how long C-ECHO takes meanwhile;
- large: one instance of `--megabytes`: bytes a second, and the node's peak memory;
- idle: 200 sockets that say nothing at the HTTP port, and how long /health and C-ECHO take then;
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
from medopt.pacs.demo import Places, orthanc_config, orthanc_program, running, wait
from medopt.phantom import Radiograph, write_radiograph

KIND = 'multipart/related; type="application/dicom"; boundary=aBc'
HEAD, TAIL = b"--aBc\r\nContent-Type: application/dicom\r\n\r\n", b"\r\n--aBc--"
SIZE = (1760, 1180)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return found


class Node:
    """`medopt pacs run` with its HTTP side; results go nowhere."""

    def __init__(self, folder: Path, release: Path, port: int, **changes: Any) -> None:
        self.folder, self.port, (self.page, nowhere) = folder, port, free_ports(2)
        self.url = f"http://127.0.0.1:{self.page}"
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "aet": "MEDOPT",
            "host": "127.0.0.1",
            "port": port,
            "release": str(release.resolve()),
            "spool": "spool",
            "accept": [{"aet": one, "addresses": ["127.0.0.1"]} for one in ("SENDER", "ORTHANC")],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": nowhere}],
            "quiet_seconds": 3600,
            "limits": {"free_mb": 0, "instance_mb": 8000},
            "web": {"port": self.page, "stow": True, "body_mb": 9000},
        }
        (folder / "node.yaml").write_text(yaml.safe_dump(told | changes))

    @contextmanager
    def running(self) -> Iterator[Node]:
        """Until the end of the block."""
        log = self.folder / "node.log"
        with log.open("wb") as stream:
            words = [sys.executable, "-m", "medopt", "pacs", "run", str(self.folder / "node.yaml")]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment)
        try:
            wait(lambda: "its page" in log.read_text(), "The node", self.process, log)
            yield self
        finally:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def memory_mb(self, name: str = "VmHWM") -> float:
        """Of the node's own process, without its worker: now (VmRSS) or the most so far."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1000
        return 0.0

    def echo_seconds(self) -> float:
        """One association with one C-ECHO."""
        begun = time.monotonic()
        ae = AE("SENDER")
        ae.add_requested_context(Verification)
        link = ae.associate("127.0.0.1", self.port, ae_title="MEDOPT")
        assert link.send_c_echo().Status == 0x0000
        link.release()
        return time.monotonic() - begun


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles."""
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
    begun = time.monotonic()
    answer = requests.post(f"{url}/dicom-web/studies", data=body, headers={"Content-Type": KIND}, timeout=300)
    assert answer.status_code == 200, answer.text
    return time.monotonic() - begun


def measure_stow(node: Node, scans: Sequence[Path], senders: int) -> dict[str, Any]:
    """Several senders, one instance a request."""
    seconds: list[float] = []
    threads = [
        threading.Thread(target=lambda part=scans[at::senders]: seconds.extend(post(node.url, one) for one in part))
        for at in range(senders)
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    echoes = []
    while any(thread.is_alive() for thread in threads):
        echoes.append(node.echo_seconds())
        time.sleep(0.05)
    took = time.monotonic() - begun
    megabytes = sum(scan.stat().st_size for scan in scans) / 1e6
    return {
        "senders": senders,
        "instances": len(scans),
        **{f"answer_{name}_s": value for name, value in spread(seconds).items()},
        "echo_p99_s": spread(echoes)["p99"],
        "mb_per_s": round(megabytes / took, 1),
    }


def measure_large(node: Node, scan: Path, megabytes: int) -> dict[str, Any]:
    """A radiograph whose pixel data goes on and on: its header is a real one's, the claim is as long as what comes."""
    from pydicom import dcmread

    one = dcmread(scan)
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = "2.25.999"
    rows = megabytes * 1_000_000 // (2 * one.Columns)
    one.Rows, one.PixelData = min(rows, 65535), b"\0\0"
    before = node.memory_mb("VmRSS")
    place = scan.parent / "large.dcm"
    one.save_as(place)
    head = bytearray(place.read_bytes())
    at = head.rindex(b"\xe0\x7f\x10\x00")
    head[at + 8 : at + 12] = (2 * one.Columns * rows).to_bytes(4, "little")
    place.unlink()

    def body() -> Iterator[bytes]:
        yield HEAD + bytes(head[: at + 12])
        left, piece = 2 * one.Columns * rows, b"\0" * (1 << 20)
        while left:
            yield piece[: min(left, len(piece))]
            left -= min(left, len(piece))
        yield TAIL

    begun = time.monotonic()
    answer = requests.post(f"{node.url}/dicom-web/studies", data=body(), headers={"Content-Type": KIND}, timeout=600)
    took = time.monotonic() - begun
    assert answer.status_code == 200, answer.text
    return {
        "megabytes": megabytes,
        "seconds": round(took, 1),
        "mb_per_s": round(megabytes / took, 1),
        "memory_before_mb": round(before),
        "memory_peak_mb": round(node.memory_mb()),
    }


def timed(step: Callable[[], Any], times: int = 10) -> dict[str, float]:
    """Seconds of a step."""
    seconds = []
    for _ in range(times):
        begun = time.monotonic()
        step()
        seconds.append(time.monotonic() - begun)
    return {"p50_s": round(float(np.median(seconds)), 4), "most_s": round(max(seconds), 4)}


def measure_idle(node: Node, count: int = 200) -> dict[str, Any]:
    """Sockets that say nothing."""
    idle = [socket.create_connection(("127.0.0.1", node.page)) for _ in range(count)]
    found = {"sockets": count, "echo": timed(node.echo_seconds, 5)}
    begun = time.monotonic()
    while True:
        try:
            requests.get(f"{node.url}/health", timeout=5)
            break
        except requests.RequestException:
            time.sleep(0.1)
    found["health_answers_after_s"] = round(time.monotonic() - begun, 1)
    for one in idle:
        one.close()
    return found


def measure_page(node: Node, studies: int) -> dict[str, Any]:
    """A ledger after a long time."""
    with closing(sqlite3.connect(node.folder / "spool" / "ledger.db", timeout=30)) as db, db:
        many = range(studies)
        db.executemany(
            "INSERT INTO studies (uid, state, changed) VALUES (?, 'done', ?)", ((f"9.{n}", 1e9 + n) for n in many)
        )
        db.executemany(
            "INSERT INTO instances (sop_uid, study_uid, sop_class, transfer_syntax, digest, size, file, image, "
            "received) VALUES (?, ?, 'c', 't', 'd', 1, ?, 1, ?)",
            ((f"9.{n}.1", f"9.{n}", f"f{n}", 1e9 + n) for n in many),
        )
        db.executemany(
            "INSERT INTO results (sop_uid, study_uid, sop_class, kind, file, digest, made) "
            "VALUES (?, ?, 'c', 'report', ?, 'd', ?)",
            ((f"9.{n}.2", f"9.{n}", f"r{n}", 1e9 + n) for n in many),
        )
        db.executemany(
            "INSERT INTO sends (sop_uid, destination, state, due) VALUES (?, 'PACS', 'sent', ?)",
            ((f"9.{n}.2", 1e9 + n + 5) for n in many),
        )
    found: dict[str, Any] = {"studies": studies}
    for path in ("/", "/metrics", "/health"):
        found[path] = timed(lambda path=path: requests.get(node.url + path, timeout=60))
    return found


def measure_pull(folder: Path, release: Path, scans: Sequence[Path]) -> list[dict[str, Any]]:
    """`medopt pacs reconcile` twice: all is missing, then nothing."""
    places = Places(folder, *free_ports(4))
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "orthanc.log"
    with running([orthanc_program(), str(orthanc_config(places))], log) as orthanc:
        wait(lambda: _answers(f"{places.orthanc}/system"), "Orthanc", orthanc, log)
        # the example's Orthanc routes; here nothing may come but what is asked for
        requests.post(f"{places.orthanc}/tools/execute-script", data="function OnStableStudy() end", timeout=10)
        for scan in scans:
            requests.post(f"{places.orthanc}/instances", data=scan.read_bytes(), timeout=60).raise_for_status()
        ways: dict[str, dict[str, Any]] = {
            "C-MOVE": {"aet": "ORTHANC", "host": "127.0.0.1", "port": places.dicom},
            "WADO-RS": {"url": f"{places.orthanc}/dicom-web"},
        }
        for way, source in ways.items():
            pull = {"source": source, "modalities": ["DX"], "every_minutes": None}
            with Node(folder / way, release, places.node, pull=pull).running() as node:
                words = [sys.executable, "-m", "medopt", "pacs", "reconcile", str(node.folder / "node.yaml"), "--json"]
                for _ in range(2):
                    begun = time.monotonic()
                    done = subprocess.run(words, capture_output=True, text=True, check=True)
                    took = time.monotonic() - begun
                    told = json.loads(done.stdout.strip().splitlines()[-1])
                    found.append({"by": way, **told, "seconds": round(took, 1)})
    return found


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
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medopt-doors-") as name:
        folder = Path(name)
        scans = radiographs(folder / "scans", told.instances)
        (port,) = free_ports(1)
        with Node(folder / "node", told.release, port).running() as node:
            half = len(scans) // 2
            found: dict[str, Any] = {"stow": [measure_stow(node, scans[:half], 1), measure_stow(node, scans[half:], 8)]}
            found["large"] = [measure_large(node, scans[0], told.megabytes)]
            found["idle"] = [measure_idle(node)]
            found["page"] = [measure_page(node, told.studies)]
        found["pull"] = measure_pull(folder / "pull", told.release, scans)
    for what, rows in found.items():
        table = Table(*rows[0], title=what)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        Console().print(table)
    if told.json:
        print(json.dumps({"machine": asdict(machine()), **found}))


if __name__ == "__main__":
    main()
