"""What does the PACS node keep, and how fast is it? Studies through `medopt pacs run` into a real Orthanc.

    python benchmarks/pacs.py RELEASE [--studies 200] [--kills 50] [--size 256 256] [--copies FOLDER] [--json]

Orthanc (`apt-get install orthanc`) receives the results, and a node in a process of its own makes them:

- latency: studies one after the other, from the last acknowledgement to the last result that Orthanc lists, less
  `quiet_seconds`;
- load: studies by several senders at once; acknowledgement (from the last byte sent to the answer, and the whole
  C-STORE) while the model runs, studies a minute, memory;
- crowd: 60 sockets that say nothing, 5 slow ones, 90 associations, and the senders: C-ECHO and acknowledgements;
- kills: the node is ended by SIGKILL while it receives, while the model runs and while it sends, in turn and at random
  moments, and begun again; senders send anew what was not acknowledged. In the end Orthanc holds one set of results of
  every study, whose data sets are the spool's to the byte.

Studies are drawn radiographs of one image (`--size 1760 1180`: 2 megapixels), or copies of a real study under new UIDs
(`--copies FOLDER`, with `--description PATTERN` as the node's rule). Exit code 1 where anything is lost or doubled.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import queue
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from rich.console import Console
from rich.table import Table

from medopt.core.provenance import machine
from medopt.phantom import Radiograph, draw_case
from medopt.phantom.radiograph_dicom import dataset

PHASES = ("receiving", "predicting", "sending")
KINDS = {"1.2.840.10008.5.1.4.1.1.88.34": "report", "1.2.840.10008.5.1.4.1.1.88.11": "text"}
DRAWN = 6
"""So many different images; what differs between studies is their UIDs and patients."""


def orthanc_program() -> str | None:
    """Where Orthanc is, if it is installed."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Orthanc:
    """A real PACS, empty, on random ports of this machine."""

    aet = "ORTHANC"

    def __init__(self, folder: Path) -> None:
        self.port, self._http = free_port(), free_port()
        settings = {
            "Name": "benchmark", "DicomAet": self.aet, "DicomPort": self.port, "HttpPort": self._http,
            "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"), "Plugins": [],
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True, "OverwriteInstances": False, "DicomThreadsCount": 8,
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._log = (folder / "orthanc.log").open("wb")
        words = [orthanc_program() or "Orthanc", str(folder / "orthanc.json")]
        self._process = subprocess.Popen(words, stdout=self._log, stderr=self._log)
        until = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > until:
                raise RuntimeError((folder / "orthanc.log").read_text())
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("/system"))
        except OSError:
            return False

    def raw(self, path: str) -> bytes:
        """The body of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def ask(self, path: str) -> Any:
        """The JSON of a GET."""
        return json.loads(self.raw(path))

    def results(self) -> dict[str, list[str]]:
        """The instances that it holds, by study UID."""
        found = defaultdict(list)
        for study in self.ask("/studies?expand"):
            uid = study["MainDicomTags"]["StudyInstanceUID"]
            found[uid] += [one["ID"] for one in self.ask(f"/studies/{study['ID']}/instances")]
        return found

    def stop(self) -> None:
        """Kill it: what it holds is thrown away."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class Node:
    """`medopt pacs run` in a process of its own; begun again after each kill."""

    aet, quiet = "MEDOPT", 0.4

    def __init__(self, folder: Path, release: Path, pacs: Orthanc, **changes: Any) -> None:
        self.folder, self.port = folder, free_port()
        self.file, self.spool = folder / "node.yaml", folder / "spool"
        told = {
            "aet": self.aet, "host": "127.0.0.1", "port": self.port, "release": str(release.resolve()),
            "spool": "spool", "quiet_seconds": self.quiet, "limits": {"free_mb": 0},
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}],
            "sending": {"first_seconds": 0.3, "longest_seconds": 1, "tries": 1000, "timeout_seconds": 20},
        }  # fmt: skip
        self.file.write_text(yaml.safe_dump(told | changes))
        self._log = (folder / "node.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start the process; it listens a little later."""
        words = [sys.executable, "-m", "medopt", "pacs", "run", str(self.file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdout=self._log, stderr=self._log, env=environment)

    def wait_for_port(self, seconds: float = 60) -> None:
        """Until it listens."""
        until = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > until or (self.process and self.process.poll() is not None):
                    raise RuntimeError((self.folder / "node.log").read_text()) from None
                time.sleep(0.02)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it; its worker ends by itself."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the ledger holds; nothing while it is not there."""
        if not (self.spool / "ledger.db").is_file():
            return []
        try:
            with closing(sqlite3.connect(f"file:{self.spool / 'ledger.db'}?mode=ro", uri=True, timeout=5)) as db:
                return db.execute(query).fetchall()
        except sqlite3.OperationalError:  # not there yet
            return []

    def count(self, table: str, state: str) -> int:
        """Rows of a table in a state."""
        return int((self.rows(f"SELECT count(*) FROM {table} WHERE state = '{state}'") or [(0,)])[0][0])

    def resident_mb(self) -> tuple[float, float]:
        """Resident memory of the node and of its worker process, the most so far."""
        assert self.process is not None
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = " ".join(path.read_text() for path in lists).split()
        return _peak_mb(self.process.pid), max((_peak_mb(int(one)) for one in children), default=0.0)

    def close(self) -> None:
        """End the process, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._log.close()


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), 0.0)


# What is sent


def drawn(size: tuple[int, int], seed: int) -> list[Dataset]:
    """Radiographs of fictional chests."""
    return [
        dataset(draw_case(seed, f"site_{'ab'[n % 2]}", nodule=bool(n % 2), size=size, patient=n), Radiograph(), f"{n}")
        for n in range(DRAWN)
    ]


def studies(sources: Sequence[Sequence[Dataset]], many: int, tag: str) -> Iterator[list[Dataset]]:
    """Copies of these studies under UIDs that follow from `tag` and a number."""
    for number in range(many):
        copies = []
        for image in sources[number % len(sources)]:
            copy = deepcopy(image)  # Dataset(image) would share its elements
            copy.StudyInstanceUID = _uid(tag, number, "study")
            copy.SeriesInstanceUID = _uid(tag, number, str(image.SeriesInstanceUID))
            copy.SOPInstanceUID = _uid(tag, number, str(image.SOPInstanceUID))
            copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
            copy.PatientID, copy.PatientName = f"BENCH{number}", f"BENCH^{number}"
            copies.append(copy)
        yield copies


def _uid(*words: object) -> str:
    return str(generate_uid(entropy_srcs=[f"/{word}" for word in words]))


@dataclass
class Sent:
    """What the senders saw: milliseconds, and when a study's last image was acknowledged."""

    acknowledged_ms: list[float] = field(default_factory=list)
    stored_ms: list[float] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    storing: int = 0
    broken: int = 0
    fault: BaseException | None = None


def send(node: Node, study: Sequence[Dataset], sent: Sent, seconds: float = 300) -> None:
    """Send a study as a modality does: again and again what was not acknowledged."""
    left, until = list(study), time.monotonic() + seconds
    while left:
        if time.monotonic() > until:
            raise RuntimeError("a study was not acknowledged in time")
        out = [0.0]
        ae = AE("SENDER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        for one in left:
            if not any(asked.abstract_syntax == one.SOPClassUID for asked in ae.requested_contexts):
                ae.add_requested_context(one.SOPClassUID, one.file_meta.TransferSyntaxUID)
        handlers: list[Any] = [(evt.EVT_PDU_SENT, _noted, [out])]
        link = ae.associate("127.0.0.1", node.port, ae_title=node.aet, evt_handlers=handlers)
        while link.is_established and left:
            begun = time.perf_counter()
            sent.storing += 1
            try:
                answer = link.send_c_store(left[0])
            except Exception:  # whatever pynetdicom meets where the node is killed in the midst of it
                sent.broken += 1
                break
            finally:
                sent.storing -= 1
            if answer.get("Status") != 0x0000:
                break
            now = time.perf_counter()
            sent.acknowledged_ms.append(1e3 * (now - out[0]))
            sent.stored_ms.append(1e3 * (now - begun))
            del left[0]
        if link.is_established:
            link.release()
        elif left:
            time.sleep(0.02)
    sent.ended[str(study[0].StudyInstanceUID)] = time.perf_counter()


def _noted(_event: evt.Event, out: list[float]) -> None:
    out[0] = time.perf_counter()


def send_all(node: Node, many: Iterator[list[Dataset]], senders: int, sent: Sent) -> list[threading.Thread]:
    """Send studies by several senders at once; returns their threads."""
    waiting: queue.Queue[list[Dataset] | None] = queue.Queue(maxsize=senders)

    def fill() -> None:
        for one in many:
            waiting.put(one)
        for _ in range(senders):
            waiting.put(None)

    def work() -> None:
        try:
            while (one := waiting.get()) is not None:
                send(node, one, sent)
        except BaseException as fault:
            sent.fault = fault
            raise

    threads = [threading.Thread(target=what, daemon=True) for what in (fill, *[work] * senders)]
    for thread in threads:
        thread.start()
    return threads


# The three parts


class Arrivals(threading.Thread):
    """When each study's latest instance was listed by Orthanc, looked at 50 times a second."""

    def __init__(self, pacs: Orthanc) -> None:
        super().__init__(daemon=True)
        self._pacs, self._end = pacs, threading.Event()
        self.latest: dict[str, float] = {}
        self.count: Counter[str] = Counter()

    def run(self) -> None:
        """Look until `stop`."""
        since = 0
        while not self._end.wait(0.02):
            found = self._pacs.ask(f"/changes?since={since}&limit=100")
            since, now = found["Last"], time.perf_counter()
            for one in found["Changes"]:
                if one["ChangeType"] == "NewInstance":
                    uid = self._pacs.ask(f"/instances/{one['ID']}/study")["MainDicomTags"]["StudyInstanceUID"]
                    self.latest[uid] = now
                    self.count[uid] += 1

    def stop(self) -> None:
        """Look no more."""
        self._end.set()
        self.join()


def wait_until(what: Callable[[], bool], node: Node, seconds: float = 600) -> None:
    """Poll; a node that takes too long is an error with its log."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            raise RuntimeError(f"not in time: {node.rows('SELECT state, reason FROM studies')[:5]}")
        time.sleep(0.02)


def is_back(node: Node, seen: Arrivals, uid: str, objects: int) -> bool:
    """Whether Orthanc has listed all that the ledger holds for a study: its reports, and heat maps if it has any."""
    made = node.rows(f"SELECT count(*) FROM results WHERE study_uid = '{uid}'")
    return seen.count[uid] >= max(objects, int(made[0][0]) if made else 0)


def measure_latency(node: Node, seen: Arrivals, many: Iterator[list[Dataset]], objects: int) -> list[float]:
    """Seconds from the last acknowledgement to the last result in Orthanc, less the quiet time, a study at a time."""
    found, sent = [], Sent()
    for study in many:
        send(node, study, sent)
        uid = str(study[0].StudyInstanceUID)
        wait_until(lambda uid=uid: is_back(node, seen, uid, objects), node, 120)  # type: ignore[misc]
        found.append(seen.latest[uid] - sent.ended[uid] - node.quiet)
    return found


def measure_load(
    node: Node, seen: Arrivals, many: Iterator[list[Dataset]], count: int, senders: int, objects: int
) -> dict[str, Any]:
    """Several senders at once: acknowledgements while the model runs, studies a minute, memory."""
    sent, before, begun = Sent(), set(seen.latest), time.perf_counter()
    for thread in send_all(node, many, senders, sent):
        thread.join()
    received = time.perf_counter() - begun
    wait_until(lambda: sum(seen.count[uid] >= objects for uid in sent.ended) == count, node)
    wait_until(lambda: all(is_back(node, seen, uid, objects) for uid in sent.ended), node)
    last = max(when for uid, when in seen.latest.items() if uid not in before)
    own, worker = node.resident_mb()
    return {
        "acknowledged_ms": percentiles(sent.acknowledged_ms),
        "stored_ms": percentiles(sent.stored_ms),
        "images": len(sent.stored_ms),
        "receiving_s": round(received, 2),
        "studies_a_minute": round(60 * count / (last - begun - node.quiet), 1),
        "node_mb": round(own),
        "worker_mb": round(worker),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and the largest."""
    return {f"p{at}": round(float(np.percentile(values, at)), 2) for at in (50, 99, 100)}


def measure_crowd(node: Node, many: Iterator[list[Dataset]], senders: int) -> dict[str, Any]:
    """60 sockets that say nothing, 5 that say it slowly, 90 associations at rest, and senders: C-ECHO and answers."""
    asking = _greeting(node)
    crowd = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(155)]
    for number, each in enumerate(crowd[60:]):
        each.sendall(asking[:7] if number < 5 else asking)
    accepted = sum(each.recv(1) == b"\x02" for each in crowd[65:])
    sent, echoes = Sent(), []
    threads = send_all(node, many, senders, sent)
    ae = AE("SENDER")
    ae.add_requested_context(Verification)
    while any(thread.is_alive() for thread in threads) or len(echoes) < 20:
        begun = time.perf_counter()
        link = ae.associate("127.0.0.1", node.port, ae_title=node.aet)
        if link.is_established and link.send_c_echo().get("Status") == 0x0000:
            echoes.append(1e3 * (time.perf_counter() - begun))
            link.release()
        else:
            echoes.append(1e6)
        time.sleep(0.05)
    for each in crowd:
        each.close()
    if sent.fault is not None:
        raise sent.fault
    return {
        "accepted": accepted,
        "echo_ms": percentiles(echoes),
        "acknowledged_ms": percentiles(sent.acknowledged_ms),
        "stored_ms": percentiles(sent.stored_ms),
    }


def _greeting(node: Node) -> bytes:
    """The bytes by which pynetdicom asks for an association."""
    said: list[bytes] = []
    ae = AE("SENDER")
    ae.add_requested_context(Verification)
    handlers: list[Any] = [(evt.EVT_DATA_SENT, lambda event: said.append(event.data))]
    ae.associate("127.0.0.1", node.port, ae_title=node.aet, evt_handlers=handlers).release()
    return said[0]


@dataclass
class Killer:
    """Ends the node in a phase that it was asked to, at a random moment in it, and begins it again."""

    node: Node
    sent: Sent
    chance: random.Random
    hit: Counter[str] = field(default_factory=Counter)
    """How often the ledger, read while the node was dead, shows each state; one kill may show several."""

    def now(self, phase: str) -> bool:
        """Whether the node is in a phase, as its ledger and the senders say."""
        if phase == "receiving":
            return self.sent.storing > 0
        table, state = ("studies", "working") if phase == "predicting" else ("sends", "waiting")
        return self.node.count(table, state) > 0

    def kill(self, phase: str, seconds: float = 30) -> None:
        """Wait for the phase, then a moment more, and kill."""
        until = time.monotonic() + seconds
        while not self.now(phase) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(self.chance.expovariate(1 / 0.008))
        storing = self.sent.storing
        self.node.kill()
        shown = {
            "receiving": storing > 0,
            "predicting": self.node.count("studies", "working") > 0,
            "sending": self.node.count("sends", "waiting") > 0,
        }
        self.hit.update([name for name, there in shown.items() if there] or ["between"])
        self.node.begin()


def measure_kills(
    node: Node, many: Iterator[list[Dataset]], count: int, kills: int, seed: int, senders: int = 2
) -> dict[str, Any]:
    """Kill the node in each phase in turn, over all of the studies; then wait until nothing is owed."""
    ended = "SELECT count(*) FROM studies WHERE state IN ('done', 'declined', 'parked')"
    before = (node.rows(ended) or [(0,)])[0][0]
    sent, begun = Sent(), time.perf_counter()
    killer = Killer(node, sent, random.Random(seed))
    gate = threading.Semaphore(0)

    def paced() -> Iterator[list[Dataset]]:
        for study in many:
            gate.acquire()
            yield study

    threads = send_all(node, paced(), senders, sent)
    released = 0
    for kill in range(kills):
        share = -(-count * (kill + 1) // kills) - released
        released += share
        if share:
            gate.release(share)
        killer.kill(PHASES[kill % len(PHASES)])
    wait_until(lambda: not any(thread.is_alive() for thread in threads) or sent.fault is not None, node)
    if sent.fault is not None:
        raise sent.fault
    wait_until(lambda: (node.rows(ended) or [(0,)])[0][0] >= before + count, node)
    return {"kills": kills, "studies": len(sent.ended), "hit": dict(killer.hit), "s": time.perf_counter() - begun}


# What Orthanc holds in the end


def judged(node: Node, pacs: Orthanc, objects: int) -> dict[str, int]:
    """Compare Orthanc with the ledger and the spool: studies, those with one set of results, bytes that differ."""
    busy = ("receiving", "ready", "working")
    wait_until(lambda: not any(node.count("studies", one) for one in busy) and not node.count("sends", "waiting"), node)
    held = pacs.results()
    known = [str(row[0]) for row in node.rows("SELECT uid FROM studies WHERE state IN ('done', 'declined')")]
    files = {str(uid): str(file) for uid, file in node.rows("SELECT sop_uid, file FROM results")}
    owed = defaultdict(set)
    for study, uid in node.rows("SELECT study_uid, sop_uid FROM results"):
        owed[str(study)].add(str(uid))
    one_set, differ, strangers = 0, 0, 0
    for study in known:
        found = [dcmread(io.BytesIO(pacs.raw(f"/instances/{one}/file"))) for one in held.get(study, [])]
        reports = [one.SOPClassUID for one in found if one.Modality == "SR"]  # heat maps depend on what is found
        whole = sorted(str(one.SOPInstanceUID) for one in found) == sorted(owed[study])
        one_set += whole and len(reports) == len(set(reports)) == objects
        for one in found:
            place = files.get(str(one.SOPInstanceUID))
            strangers += place is None
            differ += place is not None and _body(one) != _body(dcmread(node.spool / place))
    return {
        "answered": len(known),
        "one_set": one_set,
        "differ": differ,
        "strangers": strangers + sum(study not in known for study in held),
        "parked": node.count("studies", "parked") + node.count("sends", "parked"),
    }


def _body(one: Dataset) -> bytes:
    """The data set without the file header, which every archive writes itself."""
    stream = io.BytesIO()
    bare = Dataset(one)
    bare.save_as(stream, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def main() -> None:
    """Run the parts and print a table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("release", type=Path)
    words.add_argument("--studies", type=int, default=200, help="in the part with kills")
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--speed-studies", type=int, default=60, help="under load; a sixth of it one after the other")
    words.add_argument("--senders", type=int, default=2)
    words.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("ROWS", "COLUMNS"))
    words.add_argument("--copies", type=Path, help="a folder of one real study, sent under new UIDs")
    words.add_argument("--description", help="the node's rule: a pattern for the description of the series meant")
    words.add_argument("--objects", type=int, default=2, help="reports that a study has")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--json", action="store_true", help="one JSON line at the end")
    told = words.parse_args()
    if orthanc_program() is None:
        raise SystemExit("Orthanc is not installed (apt-get install orthanc).")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started here ends, too
    sources = _sources(told)
    changes = {"series": {"description": [told.description], "derived": True}} if told.description else {}
    with tempfile.TemporaryDirectory() as name:
        pacs = Orthanc(Path(name))
        node = Node(Path(name), told.release, pacs, **changes)
        try:
            node.begin()
            node.wait_for_port()
            seen = Arrivals(pacs)
            seen.start()
            alone = max(told.speed_studies // 6, 1)
            first = measure_latency(node, seen, studies(sources, 1, "first"), told.objects)  # the worker starts
            latency = measure_latency(node, seen, studies(sources, alone, "alone"), told.objects)
            many = studies(sources, told.speed_studies, "load")
            load = measure_load(node, seen, many, told.speed_studies, told.senders, told.objects)
            seen.stop()
            crowd = measure_crowd(node, studies(sources, told.speed_studies, "crowd"), told.senders)
            killed: dict[str, Any] = {}
            if told.kills:
                many = studies(sources, told.studies, "kills")
                killed = measure_kills(node, many, told.studies, told.kills, told.seed, told.senders)
            found = judged(node, pacs, told.objects)
        finally:
            node.close()
            pacs.stop()
    _show(told, first[0], latency, load, crowd, killed, found)
    if found["one_set"] != found["answered"] or found["differ"] or found["strangers"] or found["parked"]:
        raise SystemExit(1)


def _sources(told: argparse.Namespace) -> list[list[Dataset]]:
    if told.copies is None:
        return [[one] for one in drawn(tuple(told.size), told.seed)]
    return [[dcmread(path) for path in sorted(told.copies.rglob("*")) if path.is_file()]]


def _show(
    told: argparse.Namespace, first: float, latency: list[float], load: dict[str, Any], crowd: dict[str, Any],
    killed: dict[str, Any], found: dict[str, int],
) -> None:  # fmt: skip
    console, table = Console(), Table(title=f"PACS node with {told.release.name}, results in Orthanc")
    table.add_column("what")
    table.add_column("measured", justify="right")
    ms, stored = load["acknowledged_ms"], load["stored_ms"]
    table.add_row(f"last image to result, less {Node.quiet} s of quiet, median", f"{np.median(latency):.2f} s")
    table.add_row("the same, longest", f"{max(latency):.2f} s")
    table.add_row("acknowledgement while the model runs, p50 / p99", f"{ms['p50']} / {ms['p99']} ms")
    table.add_row("whole C-STORE, p50 / p99", f"{stored['p50']} / {stored['p99']} ms")
    table.add_row(f"studies a minute ({told.senders} senders)", f"{load['studies_a_minute']}")
    table.add_row("memory of the node / of its worker, most", f"{load['node_mb']} / {load['worker_mb']} MB")
    echo, ms = crowd["echo_ms"], crowd["acknowledged_ms"]
    table.add_row(f"C-ECHO beside 60 idle sockets, 5 slow, {crowd['accepted']} associations", f"{echo['p50']} ms")
    table.add_row("the same, longest", f"{echo['p100']} ms")
    table.add_row("acknowledgement beside them, p50 / p99", f"{ms['p50']} / {ms['p99']} ms")
    if killed:
        table.add_row(
            f"kills in {killed['s']:.0f} s; states they hit", ", ".join(f"{k} {n}" for k, n in killed["hit"].items())
        )
    table.add_row("studies answered / with one set of results in Orthanc", f"{found['answered']} / {found['one_set']}")
    table.add_row(
        "results that differ from the spool / strangers / parked",
        " / ".join(str(found[k]) for k in ("differ", "strangers", "parked")),
    )
    console.print(table)
    if told.json:
        kept = {"latency_s": [round(one, 3) for one in latency], "first_s": round(first, 3), "quiet_s": Node.quiet}
        print(
            json.dumps(
                kept | {"load": load, "crowd": crowd, "kills": killed, "found": found, "machine": asdict(machine())}
            )
        )


if __name__ == "__main__":
    main()
