"""The node beside a real Orthanc: drawn studies go to Orthanc, which routes them to the node, which answers there.

The files of `medopt/pacs/example`, which a site copies, are used as they are but for ports, folders and waits.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import yaml
from pydicom import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import DigitalXRayImageStorageForPresentation  # type: ignore[attr-defined]

from medopt.core.errors import ConfigError, DataError
from medopt.core.files import write_text
from medopt.imaging.parse_dicom import parse_dicom
from medopt.phantom import Radiograph, draw_case, write_radiograph

EXAMPLE = ("node.yaml", "orthanc.json", "route.lua", "medopt-pacs.service")
SITES = ("site_a", "site_b", "site_c")
_SEED = 4711  # not the demo study's: other chests than those it was trained on
_QUIET_SECONDS = 2.0
_LOOK_SECONDS = 0.2
_CERTAINTY, _PRESENCE, _COMMENT = "111012", "121052", "121106"


@dataclass(frozen=True, slots=True)
class Shown:
    """One study: what was drawn, what came back. `seconds` are those from its last image in Orthanc to the result."""

    study: int
    truth: str
    answer: str = "no result"
    probability: float | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Places:
    """Ports on this machine, and the folder for everything."""

    folder: Path
    web: int
    dicom: int
    node: int
    page: int

    @property
    def orthanc(self) -> str:
        """Orthanc's own page."""
        return f"http://127.0.0.1:{self.web}"


@dataclass(slots=True)
class _Study:
    shown: Shown
    uid: str
    file: Path
    sent: float = field(default=0.0)


def write_example(folder: Path) -> list[Path]:
    """Write the files that a site starts from; raises ConfigError where one of them is there already."""
    there = [name for name in EXAMPLE if (folder / name).exists()]
    if there:
        raise ConfigError(f"{folder} holds {', '.join(there)} already; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLE:
        write_text(folder / name, example(name))
    return [folder / name for name in EXAMPLE]


def example(name: str) -> str:
    """One of the example's files."""
    return files("medopt.pacs").joinpath("example", name).read_text(encoding="utf-8")


@contextmanager
def started(release: Path, folder: Path) -> Iterator[Places]:
    """Orthanc and a node, until the end of the block; raises ConfigError where one of them does not start."""
    program = orthanc_program()
    places = Places(folder, *_free_ports(4))
    with ExitStack() as stack:
        orthanc_log, node_log = folder / "orthanc.log", folder / "node.log"
        orthanc = stack.enter_context(running([program, str(orthanc_config(places))], orthanc_log))
        wait(lambda: _get(f"{places.orthanc}/system") is not None, "Orthanc", orthanc, orthanc_log)
        words = [sys.executable, "-m", "medopt", "pacs", "run", str(_node(places, release))]
        node = stack.enter_context(running(words, node_log))
        wait(lambda: "listens on" in node_log.read_text(), "The node", node, node_log)
        yield places


def orthanc_program() -> str:
    """Where Orthanc is; raises ConfigError."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ConfigError(
            "There is no Orthanc on this machine. On Debian and Ubuntu: apt-get install --no-install-recommends "
            "orthanc orthanc-dicomweb"
        )
    return program


def send_studies(places: Places, count: int, told: Callable[[str], None]) -> Iterator[list[Shown]]:
    """Draw studies, send them to Orthanc as a modality does, and yield all of them each time a result has come."""
    studies = [_drawn(places.folder / "scans", number) for number in range(1, count + 1)]
    told(f"{count} studies drawn")
    _send(places, studies)
    told("sent to Orthanc, which routes them to the node")
    waiting = list(studies)
    until = time.monotonic() + 60 + 6 * count
    while waiting and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        for one in list(waiting):
            report = _report(places, one.uid)
            if report is not None:
                one.shown = replace(_read(report, one.shown), seconds=round(time.monotonic() - one.sent, 1))
                waiting.remove(one)
                yield [study.shown for study in studies]
    if waiting:
        yield [study.shown for study in studies]


def newest_release(runs: Path, study: str = "phantom") -> Path:
    """The release of a study's newest run; raises DataError where there is none."""
    found = sorted((runs / study).glob("*/release/SHA256SUMS"))
    if not found:
        raise DataError(f"There is no release in {runs / study}/*/release. Make one first: make demo (3 minutes).")
    return found[-1].parent


def orthanc_config(places: Places) -> Path:
    """Write the example's Orthanc configuration for these places."""
    told = json.loads(example("orthanc.json"))
    told |= {"HttpPort": places.web, "DicomPort": places.dicom, "StableAge": 1, "RemoteAccessAllowed": False}
    told |= {"StorageDirectory": str(places.folder / "orthanc"), "IndexDirectory": str(places.folder / "orthanc")}
    told["DicomModalities"]["medopt"] = ["MEDOPT", "127.0.0.1", places.node]
    told["LuaScripts"] = [str(places.folder / "route.lua")]
    told["AuthenticationEnabled"] = False
    write_text(places.folder / "route.lua", example("route.lua"))
    write_text(places.folder / "orthanc.json", json.dumps(told, indent=2))
    return places.folder / "orthanc.json"


def _node(places: Places, release: Path) -> Path:
    told = yaml.safe_load(example("node.yaml"))
    told |= {"host": "127.0.0.1", "port": places.node, "release": str(release.resolve()), "spool": "spool"}
    told |= {"quiet_seconds": _QUIET_SECONDS, "limits": {"free_mb": 100}}
    told["destinations"][0]["port"] = places.dicom
    told["web"]["port"] = places.page
    told["pull"]["source"]["port"] = places.dicom
    write_text(places.folder / "node.yaml", yaml.safe_dump(told))
    return places.folder / "node.yaml"


def _drawn(folder: Path, number: int) -> _Study:
    nodule, site = number % 2 == 0, SITES[number % len(SITES)]
    pixels = draw_case(_SEED, site, nodule=nodule, patient=number, sex="MF"[number % 2])
    header = Radiograph(patient_id=f"DEMO-{number:02d}", patient_name=f"DEMO^{number:02d}", accession=f"D{number:03d}")
    path = write_radiograph(folder / f"{number:02d}.dcm", pixels, header)
    uid = str(parse_dicom(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    return _Study(Shown(number, "nodule" if nodule else "no_nodule"), uid, path)


def _send(places: Places, studies: Sequence[_Study]) -> None:
    ae = AE("MODALITY")
    ae.add_requested_context(DigitalXRayImageStorageForPresentation)
    link = ae.associate("127.0.0.1", places.dicom, ae_title="ORTHANC")
    try:
        for one in studies:
            status = link.send_c_store(parse_dicom(one.file)).get("Status") if link.is_established else None
            if status != 0x0000:
                raise DataError("Orthanc did not take a drawn study; see its log.")
            one.sent = time.monotonic()
    finally:
        if link.is_established:
            link.release()


def _report(places: Places, study: str) -> Dataset | None:
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study, "Modality": "SR"}}
    for instance in json.loads(_get(f"{places.orthanc}/tools/find", json.dumps(query).encode()) or "[]"):
        content = _get(f"{places.orthanc}/instances/{instance}/file")
        if content is not None:
            report = parse_dicom(io.BytesIO(content))
            if "3D" in report.SOPClassUID.name:
                return report
    return None


def _read(report: Dataset, shown: Shown) -> Shown:
    for item in _items(report):
        code = item.ConceptNameCodeSequence[0].CodeValue if item.get("ConceptNameCodeSequence") else ""
        if code == _PRESENCE:
            shown = replace(shown, answer=item.ConceptCodeSequence[0].CodeMeaning)
        elif code == _CERTAINTY:
            shown = replace(shown, probability=round(float(item.MeasuredValueSequence[0].NumericValue) / 100, 4))
        elif code == _COMMENT:
            shown = replace(shown, note=item.TextValue)
    return shown


def _items(place: Dataset) -> Iterator[Dataset]:
    for item in place.get("ContentSequence", []):
        yield item
        yield from _items(item)


def _get(url: str, body: bytes | None = None) -> bytes | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10) as answer:
            found: bytes = answer.read()
            return found
    except (urllib.error.URLError, OSError):
        return None


@contextmanager
def running(words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block: asked first, killed after 30 seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def wait(
    ready: Callable[[], bool], what: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120
) -> None:
    """Until a process is ready; raises ConfigError, with the last line of its log, where it ends or takes too long."""
    until = time.monotonic() + seconds
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > until:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            how = "ended as it started" if ended else f"did not start within {seconds:g} s"
            raise ConfigError(f"{what} {how}: {' '.join(last)}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]
