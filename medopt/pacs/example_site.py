"""A node beside a real Orthanc: the files that a site copies, and both processes started with them for the demo.

The demo uses the files of `medopt/pacs/example` as they are except for ports, folders and waits.
"""

from __future__ import annotations

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
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml

from medopt.core.errors import ConfigError
from medopt.core.files import write_text

EXAMPLE_FILES = ("node.yaml", "orthanc.json", "route.lua", "medopt-pacs.service")
_QUIET_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class DemoSite:
    """Ports on this machine, and the folder for all files."""

    folder: Path
    orthanc_http_port: int
    orthanc_dicom_port: int
    node_dicom_port: int
    node_http_port: int

    @property
    def orthanc_url(self) -> str:
        """Orthanc's REST API and page."""
        return f"http://127.0.0.1:{self.orthanc_http_port}"


def write_example(folder: Path) -> list[Path]:
    """Write the files that a site starts from; raises ConfigError if one of them exists."""
    existing = [name for name in EXAMPLE_FILES if (folder / name).exists()]
    if existing:
        raise ConfigError(f"{folder} holds {', '.join(existing)} already; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLE_FILES:
        write_text(folder / name, _example_text(name))
    return [folder / name for name in EXAMPLE_FILES]


def _example_text(name: str) -> str:
    return files("medopt.pacs").joinpath("example", name).read_text(encoding="utf-8")


@contextmanager
def running_site(release: Path, folder: Path) -> Iterator[DemoSite]:
    """Orthanc and a node, until the end of the block; raises ConfigError if one of them does not start."""
    program = orthanc_program()
    site = DemoSite(folder, *_free_ports(4))
    with ExitStack() as stack:
        orthanc_log, node_log = folder / "orthanc.log", folder / "node.log"
        orthanc = stack.enter_context(running_process([program, str(write_orthanc_config(site))], orthanc_log))
        wait_for_start(lambda: http_body(f"{site.orthanc_url}/system") is not None, "Orthanc", orthanc, orthanc_log)
        command = [sys.executable, "-m", "medopt", "pacs", "run", str(_write_node_file(site, release))]
        node = stack.enter_context(running_process(command, node_log))
        wait_for_start(lambda: "listens on" in node_log.read_text(), "The node", node, node_log)
        yield site


def orthanc_program() -> str:
    """The path of Orthanc; raises ConfigError if it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise ConfigError(
            "There is no Orthanc on this machine. On Debian and Ubuntu: apt-get install --no-install-recommends "
            "orthanc orthanc-dicomweb"
        )
    return program


def write_orthanc_config(site: DemoSite) -> Path:
    """Write the example's Orthanc configuration for a site."""
    config = json.loads(_example_text("orthanc.json"))
    config |= {"HttpPort": site.orthanc_http_port, "DicomPort": site.orthanc_dicom_port, "StableAge": 1}
    config |= {"StorageDirectory": str(site.folder / "orthanc"), "IndexDirectory": str(site.folder / "orthanc")}
    config |= {"RemoteAccessAllowed": False, "AuthenticationEnabled": False}
    config["DicomModalities"]["medopt"] = ["MEDOPT", "127.0.0.1", site.node_dicom_port]
    config["LuaScripts"] = [str(site.folder / "route.lua")]
    write_text(site.folder / "route.lua", _example_text("route.lua"))
    write_text(site.folder / "orthanc.json", json.dumps(config, indent=2))
    return site.folder / "orthanc.json"


def _write_node_file(site: DemoSite, release: Path) -> Path:
    config = yaml.safe_load(_example_text("node.yaml"))
    config |= {"host": "127.0.0.1", "port": site.node_dicom_port, "release": str(release.resolve()), "spool": "spool"}
    config |= {"quiet_seconds": _QUIET_SECONDS, "limits": {"free_mb": 100}}
    config["destinations"][0]["port"] = site.orthanc_dicom_port
    config["web"]["port"] = site.node_http_port
    config["pull"]["source"]["port"] = site.orthanc_dicom_port
    write_text(site.folder / "node.yaml", yaml.safe_dump(config))
    return site.folder / "node.yaml"


def http_body(url: str, body: bytes | None = None) -> bytes | None:
    """The body of a GET, or of a POST of `body`; None if there is no answer."""
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # all of it is on this machine
        with direct.open(urllib.request.Request(url, data=body), timeout=10) as response:
            content: bytes = response.read()
            return content
    except (urllib.error.URLError, OSError):
        return None


@contextmanager
def running_process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block: by SIGTERM, or after 30 seconds by SIGKILL."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def wait_for_start(
    is_ready: Callable[[], bool], name: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120
) -> None:
    """Wait until a process is ready; raises ConfigError with the last line of its log if it ends or takes too long."""
    deadline = time.monotonic() + seconds
    while not is_ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            last_line = log.read_text(errors="replace").strip().splitlines()[-1:]
            outcome = "ended as it started" if ended else f"did not start within {seconds:g} s"
            raise ConfigError(f"{name} {outcome}: {' '.join(last_line)}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in sockets]
