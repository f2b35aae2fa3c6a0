"""Does the PACS node lose anything, and how fast is it? Studies through `medopt pacs run` into a real Orthanc.

    python benchmarks/pacs.py RELEASE [--studies 200] [--kills 50] [--size 256 256] [--copies FOLDER]
                              [--shadow RELEASE [--priority low]] [--all-outputs] [--json]

Orthanc (`apt-get install orthanc`) receives the results of a node that runs in a process of its own:

- latency: studies one after the other, from the last acknowledgement to the last result that Orthanc lists, less
  `quiet_seconds`;
- load: studies by several senders at once; acknowledgement (from the last byte sent to the answer, and the whole
  C-STORE) while the model runs, studies a minute, memory;
- crowd: 60 sockets that send nothing, 5 slow ones, 90 associations, and the senders: C-ECHO and acknowledgements;
- kills: the node is ended by SIGKILL while it receives, while the model runs and while it sends, in turn and at random
  moments, and started again; senders repeat what was not acknowledged. In the end Orthanc holds one set of results of
  every study, and their data sets are those of the spool, byte by byte.

Studies are drawn radiographs of one image (`--size 1760 1180`: 2 megapixels), or copies of a real study under new UIDs
(`--copies FOLDER`, with `--description PATTERN` as the node's rule). With `--shadow RELEASE` a candidate answers beside
the release; each answered study must then be counted as compared, failed or skipped. With `--all-outputs` the node
sends every kind of object; each study must then have exactly one of each kind that its answer asks for. Exit code 1
where anything is lost or doubled.
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
REPORTS = {"report": 1, "text": 1}
MAPS = {"heat map": 1, "evidence map": 1}
KEYS = {"key images": 1}
"""Kinds of objects of a study of one image, as the ledger names them: always; of a finding that is present or
undecided; of one that is present."""
DRAWN_IMAGES = 6
"""Different images; beyond that, studies differ only in their UIDs and patients."""


def orthanc_program() -> str | None:
    """The path of Orthanc, None if it is not installed."""
    return shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
        command = [orthanc_program() or "Orthanc", str(folder / "orthanc.json")]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > deadline:
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
        """The IDs of its instances, by study UID."""
        instances: dict[str, list[str]] = defaultdict(list)
        for study in self.ask("/studies?expand"):
            uid = study["MainDicomTags"]["StudyInstanceUID"]
            instances[uid] += [instance["ID"] for instance in self.ask(f"/studies/{study['ID']}/instances")]
        return instances

    def stop(self) -> None:
        """Kill it; its data is not needed any more."""
        self._process.kill()
        self._process.wait()
        self._log.close()


class Node:
    """`medopt pacs run` in a process of its own; started again after each kill."""

    aet, quiet_seconds = "MEDOPT", 0.4

    def __init__(self, folder: Path, release: Path, pacs: Orthanc, **changes: Any) -> None:
        self.folder, self.port = folder, free_port()
        self.file, self.spool = folder / "node.yaml", folder / "spool"
        values = {
            "aet": self.aet, "host": "127.0.0.1", "port": self.port, "release": str(release.resolve()),
            "spool": "spool", "quiet_seconds": self.quiet_seconds, "limits": {"free_mb": 0},
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": pacs.aet, "host": "127.0.0.1", "port": pacs.port}],
            "sending": {"first_seconds": 0.3, "longest_seconds": 1, "tries": 1000, "timeout_seconds": 20},
        }  # fmt: skip
        self.file.write_text(yaml.safe_dump(values | changes))
        self._log = (folder / "node.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; it listens a little later."""
        command = [sys.executable, "-m", "medopt", "pacs", "run", str(self.file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)

    def wait_for_port(self, seconds: float = 60) -> None:
        """Until it listens."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or (self.process and self.process.poll() is not None):
                    raise RuntimeError((self.folder / "node.log").read_text()) from None
                time.sleep(0.02)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it; its worker ends by itself."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The rows of a query to the ledger; none while it does not exist."""
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
        """Largest resident memory so far, of the node and of its worker process."""
        assert self.process is not None
        lists = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = " ".join(path.read_text() for path in lists).split()
        return _peak_mb(self.process.pid), max((_peak_mb(int(pid)) for pid in children), default=0.0)

    def close(self) -> None:
        """End the process, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._log.close()


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), 0.0)


# The studies that are sent


def drawn(size: tuple[int, int], seed: int) -> list[Dataset]:
    """Radiographs of fictional chests."""
    return [
        dataset(draw_case(seed, f"site_{'ab'[n % 2]}", nodule=bool(n % 2), size=size, patient=n), Radiograph(), f"{n}")
        for n in range(DRAWN_IMAGES)
    ]


def studies(sources: Sequence[Sequence[Dataset]], count: int, tag: str) -> Iterator[list[Dataset]]:
    """Copies of these studies under UIDs that follow from `tag` and a number."""
    for number in range(count):
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


def _uid(*parts: object) -> str:
    return str(generate_uid(entropy_srcs=[f"/{part}" for part in parts]))


@dataclass
class SendLog:
    """What the senders measured: milliseconds, and when a study's last image was acknowledged."""

    acknowledged_ms: list[float] = field(default_factory=list)
    stored_ms: list[float] = field(default_factory=list)
    ended_at: dict[str, float] = field(default_factory=dict)
    storing: int = 0
    """How many C-STOREs are under way."""
    broken: int = 0
    fault: BaseException | None = None


def send(node: Node, study: Sequence[Dataset], log: SendLog, seconds: float = 300) -> None:
    """Send a study as a modality does, and repeat what was not acknowledged."""
    remaining, deadline = list(study), time.monotonic() + seconds
    while remaining:
        if time.monotonic() > deadline:
            raise RuntimeError("a study was not acknowledged in time")
        last_pdu = [0.0]
        ae = AE("SENDER")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        for image in remaining:
            if not any(context.abstract_syntax == image.SOPClassUID for context in ae.requested_contexts):
                ae.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
        handlers: list[Any] = [(evt.EVT_PDU_SENT, _note_time, [last_pdu])]
        link = ae.associate("127.0.0.1", node.port, ae_title=node.aet, evt_handlers=handlers)
        while link.is_established and remaining:
            started = time.perf_counter()
            log.storing += 1
            try:
                response = link.send_c_store(remaining[0])
            except Exception:  # pynetdicom raises many kinds of exceptions when the node is killed
                log.broken += 1
                break
            finally:
                log.storing -= 1
            if response.get("Status") != 0x0000:
                break
            now = time.perf_counter()
            log.acknowledged_ms.append(1e3 * (now - last_pdu[0]))
            log.stored_ms.append(1e3 * (now - started))
            del remaining[0]
        if link.is_established:
            link.release()
        elif remaining:
            time.sleep(0.02)
    log.ended_at[str(study[0].StudyInstanceUID)] = time.perf_counter()


def _note_time(_event: evt.Event, last_pdu: list[float]) -> None:
    last_pdu[0] = time.perf_counter()


def send_all(node: Node, batch: Iterator[list[Dataset]], senders: int, log: SendLog) -> list[threading.Thread]:
    """Send studies by several senders at once; returns their threads."""
    waiting: queue.Queue[list[Dataset] | None] = queue.Queue(maxsize=senders)

    def fill() -> None:
        for study in batch:
            waiting.put(study)
        for _ in range(senders):
            waiting.put(None)

    def work() -> None:
        try:
            while (study := waiting.get()) is not None:
                send(node, study, log)
        except BaseException as fault:
            log.fault = fault
            raise

    threads = [threading.Thread(target=target, daemon=True) for target in (fill, *[work] * senders)]
    for thread in threads:
        thread.start()
    return threads


# The three parts


class Arrivals(threading.Thread):
    """When Orthanc listed each study's latest instance; it is asked 50 times a second."""

    def __init__(self, pacs: Orthanc) -> None:
        super().__init__(daemon=True)
        self._pacs, self._end = pacs, threading.Event()
        self.latest: dict[str, float] = {}
        self.count: Counter[str] = Counter()

    def run(self) -> None:
        """Poll until `stop`."""
        since = 0
        while not self._end.wait(0.02):
            changes = self._pacs.ask(f"/changes?since={since}&limit=100")
            since, now = changes["Last"], time.perf_counter()
            for change in changes["Changes"]:
                if change["ChangeType"] == "NewInstance":
                    uid = self._pacs.ask(f"/instances/{change['ID']}/study")["MainDicomTags"]["StudyInstanceUID"]
                    self.latest[uid] = now
                    self.count[uid] += 1

    def stop(self) -> None:
        """Stop polling."""
        self._end.set()
        self.join()


def wait_until(condition: Callable[[], bool], node: Node, seconds: float = 600) -> None:
    """Poll a condition; a node that takes too long is an error that quotes its ledger."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not in time: {node.rows('SELECT state, reason FROM studies')[:5]}")
        time.sleep(0.02)


def is_answered(node: Node, arrivals: Arrivals, uid: str, objects: int) -> bool:
    """Whether Orthanc has listed all results that the ledger has for a study."""
    results = node.rows(f"SELECT count(*) FROM results WHERE study_uid = '{uid}'")
    return arrivals.count[uid] >= max(objects, int(results[0][0]) if results else 0)


def measure_latency(node: Node, arrivals: Arrivals, batch: Iterator[list[Dataset]], objects: int) -> list[float]:
    """Seconds from the last acknowledgement to the last result in Orthanc, less the quiet time, a study at a time."""
    seconds, log = [], SendLog()
    for study in batch:
        send(node, study, log)
        uid = str(study[0].StudyInstanceUID)
        wait_until(lambda uid=uid: is_answered(node, arrivals, uid, objects), node, 120)  # type: ignore[misc]
        seconds.append(arrivals.latest[uid] - log.ended_at[uid] - node.quiet_seconds)
    return seconds


def measure_load(
    node: Node, arrivals: Arrivals, batch: Iterator[list[Dataset]], count: int, senders: int, objects: int
) -> dict[str, Any]:
    """Several senders at once: acknowledgements while the model runs, studies a minute, memory."""
    log, before, started = SendLog(), set(arrivals.latest), time.perf_counter()
    for thread in send_all(node, batch, senders, log):
        thread.join()
    received = time.perf_counter() - started
    wait_until(lambda: sum(arrivals.count[uid] >= objects for uid in log.ended_at) == count, node)
    wait_until(lambda: all(is_answered(node, arrivals, uid, objects) for uid in log.ended_at), node)
    last = max(when for uid, when in arrivals.latest.items() if uid not in before)
    own, worker = node.resident_mb()
    return {
        "acknowledged_ms": percentiles(log.acknowledged_ms),
        "stored_ms": percentiles(log.stored_ms),
        "images": len(log.stored_ms),
        "receiving_s": round(received, 2),
        "studies_a_minute": round(60 * count / (last - started - node.quiet_seconds), 1),
        "node_mb": round(own),
        "worker_mb": round(worker),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and the largest."""
    return {f"p{at}": round(float(np.percentile(values, at)), 2) for at in (50, 99, 100)}


def measure_crowd(node: Node, batch: Iterator[list[Dataset]], senders: int) -> dict[str, Any]:
    """60 sockets that send nothing, 5 that send slowly, 90 idle associations, and senders: their waits."""
    request = _association_request(node)
    crowd = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(155)]
    for number, each in enumerate(crowd[60:]):
        each.sendall(request[:7] if number < 5 else request)
    accepted = sum(each.recv(1) == b"\x02" for each in crowd[65:])
    log = SendLog()
    echoes: list[float] = []
    threads = send_all(node, batch, senders, log)
    ae = AE("SENDER")
    ae.add_requested_context(Verification)
    while any(thread.is_alive() for thread in threads) or len(echoes) < 20:
        started = time.perf_counter()
        link = ae.associate("127.0.0.1", node.port, ae_title=node.aet)
        if link.is_established and link.send_c_echo().get("Status") == 0x0000:
            echoes.append(1e3 * (time.perf_counter() - started))
            link.release()
        else:
            echoes.append(1e6)
        time.sleep(0.05)
    for each in crowd:
        each.close()
    if log.fault is not None:
        raise log.fault
    return {
        "accepted": accepted,
        "echo_ms": percentiles(echoes),
        "acknowledged_ms": percentiles(log.acknowledged_ms),
        "stored_ms": percentiles(log.stored_ms),
    }


def _association_request(node: Node) -> bytes:
    """A-ASSOCIATE-RQ as pynetdicom sends it."""
    sent: list[bytes] = []
    ae = AE("SENDER")
    ae.add_requested_context(Verification)
    handlers: list[Any] = [(evt.EVT_DATA_SENT, lambda event: sent.append(event.data))]
    ae.associate("127.0.0.1", node.port, ae_title=node.aet, evt_handlers=handlers).release()
    return sent[0]


@dataclass
class Killer:
    """Ends the node in a given phase, at a random moment of it, and starts it again."""

    node: Node
    log: SendLog
    generator: random.Random
    hits: Counter[str] = field(default_factory=Counter)
    """How often the ledger, read while the node was down, has each state; one kill may count for several."""

    def is_in(self, phase: str) -> bool:
        """Whether the node is in a phase, as its ledger and the senders say."""
        if phase == "receiving":
            return self.log.storing > 0
        table, state = ("studies", "working") if phase == "predicting" else ("sends", "waiting")
        return self.node.count(table, state) > 0

    def kill(self, phase: str, seconds: float = 30) -> None:
        """Wait for the phase, then a moment more, and kill."""
        deadline = time.monotonic() + seconds
        while not self.is_in(phase) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self.generator.expovariate(1 / 0.008))
        storing = self.log.storing
        self.node.kill()
        hit = {
            "receiving": storing > 0,
            "predicting": self.node.count("studies", "working") > 0,
            "sending": self.node.count("sends", "waiting") > 0,
        }
        self.hits.update([name for name, is_hit in hit.items() if is_hit] or ["between"])
        self.node.start()


def measure_kills(
    node: Node, batch: Iterator[list[Dataset]], count: int, kills: int, seed: int, senders: int = 2
) -> dict[str, Any]:
    """Kill the node in each phase in turn, over all of the studies; then wait until nothing is pending."""
    answered = "SELECT count(*) FROM studies WHERE state IN ('done', 'declined', 'parked')"
    before = (node.rows(answered) or [(0,)])[0][0]
    log, started = SendLog(), time.perf_counter()
    killer = Killer(node, log, random.Random(seed))
    gate = threading.Semaphore(0)

    def paced() -> Iterator[list[Dataset]]:
        for study in batch:
            gate.acquire()
            yield study

    threads = send_all(node, paced(), senders, log)
    released = 0
    for kill in range(kills):
        batch_size = -(-count * (kill + 1) // kills) - released
        released += batch_size
        if batch_size:
            gate.release(batch_size)
        killer.kill(PHASES[kill % len(PHASES)])
    wait_until(lambda: not any(thread.is_alive() for thread in threads) or log.fault is not None, node)
    if log.fault is not None:
        raise log.fault
    wait_until(lambda: (node.rows(answered) or [(0,)])[0][0] >= before + count, node)
    return {"kills": kills, "studies": len(log.ended_at), "hit": dict(killer.hits), "s": time.perf_counter() - started}


# The final comparison


def compare_with_orthanc(node: Node, pacs: Orthanc, objects: int) -> dict[str, int]:
    """Compare Orthanc with the ledger and the spool.

    Counts the answered studies, those with exactly one set of results, and the data sets that differ.
    """
    busy = ("receiving", "ready", "working")
    wait_until(
        lambda: not any(node.count("studies", state) for state in busy) and not node.count("sends", "waiting"), node
    )
    stored = pacs.results()
    known = [str(row[0]) for row in node.rows("SELECT uid FROM studies WHERE state IN ('done', 'declined')")]
    files = {str(uid): str(file) for uid, file in node.rows("SELECT sop_uid, file FROM results")}
    expected = defaultdict(set)
    for study, uid in node.rows("SELECT study_uid, sop_uid FROM results"):
        expected[str(study)].add(str(uid))
    complete, differ, unknown = 0, 0, 0
    for study in known:
        objects_there = [dcmread(io.BytesIO(pacs.raw(f"/instances/{uid}/file"))) for uid in stored.get(study, [])]
        reports = [each.SOPClassUID for each in objects_there if each.Modality == "SR"]  # not every study has heat maps
        all_there = sorted(str(each.SOPInstanceUID) for each in objects_there) == sorted(expected[study])
        complete += all_there and len(reports) == len(set(reports)) == objects
        for each in objects_there:
            file = files.get(str(each.SOPInstanceUID))
            unknown += file is None
            differ += file is not None and _body(each) != _body(dcmread(node.spool / file))
    return {
        "answered": len(known),
        "complete": complete,
        "differ": differ,
        "unknown": unknown + sum(study not in known for study in stored),
        "parked": node.count("studies", "parked") + node.count("sends", "parked"),
    }


def kinds_by_study(node: Node, pacs: Orthanc) -> dict[str, Any]:
    """How many objects of each kind Orthanc has, and of how many studies it has not what their answer asks for.

    The answer is that of the ledger's latest record; kinds are those that the ledger has for the UIDs in Orthanc.
    """
    kind_of = {str(uid): str(kind) for uid, kind in node.rows("SELECT sop_uid, kind FROM results")}
    stored = {study: Counter(kind_of[_uid_of(pacs, one)] for one in ids) for study, ids in pacs.results().items()}
    expected = {}
    for study, record in node.rows("SELECT study_uid, record FROM answers ORDER BY id"):
        (scan,) = json.loads(record)["scans"]
        expected[study] = dict(REPORTS)
        if not scan["declined"] and scan["decision"] != next(iter(scan["probabilities"])):
            expected[study] |= MAPS | (KEYS if scan["decision"] != "undecided" else {})
    wrong = sum(stored.get(study) != expected.get(study) for study in stored.keys() | expected.keys())
    return {"by_kind": dict(sum(stored.values(), Counter())), "studies_with_other_kinds": wrong}


def _uid_of(pacs: Orthanc, instance: str) -> str:
    return str(pacs.ask(f"/instances/{instance}/simplified-tags")["SOPInstanceUID"])


def wait_for_trials(node: Node, seconds: float = 600) -> dict[str, int]:
    """What the candidate did with the answered studies, once none waits for it."""
    wait_until(lambda: not node.count("trials", "waiting"), node, seconds)
    return {state: node.count("trials", state) for state in ("waiting", "compared", "failed", "skipped")}


def _body(document: Dataset) -> bytes:
    """The data set without the file header, which every archive writes itself."""
    stream = io.BytesIO()
    bare = Dataset(document)
    bare.save_as(stream, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return stream.getvalue()


def main() -> None:
    """Run the parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--studies", type=int, default=200, help="in the part with kills")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--speed-studies", type=int, default=60, help="under load; a sixth of it one after the other")
    parser.add_argument("--senders", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--copies", type=Path, help="a folder of one real study, sent under new UIDs")
    parser.add_argument("--description", help="the node's rule: a pattern for the description of the series meant")
    parser.add_argument("--objects", type=int, default=2, help="reports that a study has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shadow", type=Path, help="a candidate release that answers beside the other")
    parser.add_argument("--all-outputs", action="store_true", help="send every kind of object, and count them")
    parser.add_argument("--priority", choices=("idle", "low"), default="idle", help="of the candidate")
    parser.add_argument("--json", action="store_true", help="one JSON line at the end")
    options = parser.parse_args()
    if orthanc_program() is None:
        raise SystemExit("Orthanc is not installed (apt-get install orthanc).")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the processes started here end, too
    sources = _sources(options)
    with tempfile.TemporaryDirectory() as name:
        pacs = Orthanc(Path(name))
        node = Node(Path(name), options.release, pacs, **_changes(options))
        try:
            node.start()
            node.wait_for_port()
            arrivals = Arrivals(pacs)
            arrivals.start()
            alone = max(options.speed_studies // 6, 1)
            first = measure_latency(node, arrivals, studies(sources, 1, "first"), options.objects)  # the worker starts
            latency = measure_latency(node, arrivals, studies(sources, alone, "alone"), options.objects)
            batch = studies(sources, options.speed_studies, "load")
            load = measure_load(node, arrivals, batch, options.speed_studies, options.senders, options.objects)
            arrivals.stop()
            crowd = measure_crowd(node, studies(sources, options.speed_studies, "crowd"), options.senders)
            killed: dict[str, Any] = {}
            if options.kills:
                batch = studies(sources, options.studies, "kills")
                killed = measure_kills(node, batch, options.studies, options.kills, options.seed, options.senders)
            comparison, trials, kinds = _compared(node, pacs, options)
        finally:
            node.close()
            pacs.stop()
    _show(options, first[0], latency, load, crowd, killed, comparison, trials, kinds)
    if comparison["complete"] != comparison["answered"] or any(
        comparison.get(name) for name in ("differ", "unknown", "parked", "uncounted", "other_kinds")
    ):
        raise SystemExit(1)


def _compared(
    node: Node, pacs: Orthanc, options: argparse.Namespace
) -> tuple[dict[str, int], dict[str, int], dict[str, Any]]:
    """Orthanc against the ledger, what the candidate did, and the kinds of objects."""
    comparison = compare_with_orthanc(node, pacs, options.objects)
    trials = {} if options.shadow is None else wait_for_trials(node, 7200)
    kinds = kinds_by_study(node, pacs) if options.all_outputs else {}
    comparison |= {"uncounted": _uncounted(node, trials), "other_kinds": kinds.get("studies_with_other_kinds", 0)}
    return comparison, trials, kinds


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """What the node file has beside the usual."""
    changes: dict[str, Any] = {}
    if options.description:
        changes["series"] = {"description": [options.description], "derived": True}
    if options.shadow is not None:
        shadow = {"release": str(options.shadow.resolve()), "backlog": 10_000, "priority": options.priority}
        changes["shadow"] = shadow
    if options.all_outputs:
        changes["results"] = {"text": True, "heat_maps": 8, "heat_map_data": True, "key_images": True}
    return changes


def _uncounted(node: Node, trials: dict[str, int]) -> int:
    """Answers of which the trial tells nothing; 0 without a candidate."""
    return int(node.rows("SELECT count(*) FROM answers")[0][0]) - sum(trials.values()) if trials else 0


def _sources(options: argparse.Namespace) -> list[list[Dataset]]:
    if options.copies is None:
        return [[image] for image in drawn(tuple(options.size), options.seed)]
    return [[dcmread(path) for path in sorted(options.copies.rglob("*")) if path.is_file()]]


def _show(
    options: argparse.Namespace, first: float, latency: list[float], load: dict[str, Any], crowd: dict[str, Any],
    killed: dict[str, Any], comparison: dict[str, int], trials: dict[str, int], kinds: dict[str, Any],
) -> None:  # fmt: skip
    console, table = Console(), Table(title=f"PACS node with {options.release.name}, results in Orthanc")
    table.add_column("what")
    table.add_column("measured", justify="right")
    ms, stored = load["acknowledged_ms"], load["stored_ms"]
    table.add_row(f"last image to result, less {Node.quiet_seconds} s of quiet, median", f"{np.median(latency):.2f} s")
    table.add_row("the same, longest", f"{max(latency):.2f} s")
    table.add_row("acknowledgement while the model runs, p50 / p99", f"{ms['p50']} / {ms['p99']} ms")
    table.add_row("whole C-STORE, p50 / p99", f"{stored['p50']} / {stored['p99']} ms")
    table.add_row(f"studies a minute ({options.senders} senders)", f"{load['studies_a_minute']}")
    table.add_row("memory of the node / of its worker, most", f"{load['node_mb']} / {load['worker_mb']} MB")
    echo, ms = crowd["echo_ms"], crowd["acknowledged_ms"]
    table.add_row(f"C-ECHO beside 60 idle sockets, 5 slow, {crowd['accepted']} associations", f"{echo['p50']} ms")
    table.add_row("the same, longest", f"{echo['p100']} ms")
    table.add_row("acknowledgement beside them, p50 / p99", f"{ms['p50']} / {ms['p99']} ms")
    if killed:
        table.add_row(
            f"kills in {killed['s']:.0f} s; states they hit",
            ", ".join(f"{phase} {number}" for phase, number in killed["hit"].items()),
        )
    table.add_row(
        "studies answered / with one set of results in Orthanc", f"{comparison['answered']} / {comparison['complete']}"
    )
    table.add_row(
        "results that differ from the spool / unknown / parked",
        " / ".join(str(comparison[name]) for name in ("differ", "unknown", "parked")),
    )
    if trials:
        table.add_row(
            "studies with the candidate: compared / failed / skipped / not counted",
            " / ".join(str(trials[state]) for state in ("compared", "failed", "skipped"))
            + f" / {comparison['uncounted']}",
        )
    if kinds:
        table.add_row("objects in Orthanc", ", ".join(f"{kind} {n}" for kind, n in sorted(kinds["by_kind"].items())))
        table.add_row("studies without exactly the kinds of their answer", str(kinds["studies_with_other_kinds"]))
    console.print(table)
    if options.json:
        measured = {
            "latency_s": [round(seconds, 3) for seconds in latency], "first_s": round(first, 3),
            "quiet_s": Node.quiet_seconds, "load": load, "crowd": crowd, "kills": killed, "comparison": comparison,
            "trials": trials, "kinds": kinds, "machine": asdict(machine()),
        }  # fmt: skip
        print(json.dumps(measured))


if __name__ == "__main__":
    main()
