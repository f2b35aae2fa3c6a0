"""A node as a process of its own, started again after each kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from clinic_fixtures import call
from peers import Archive, association, store
from ports import free_port


def node_file_values(folder: Path, port: int, release: Path, archive: Archive, **changes: Any) -> dict[str, Any]:
    """The content of a node file."""
    values = {
        "aet": "MEDOPT",
        "host": "127.0.0.1",
        "port": port,
        "release": str(release),
        "spool": str(folder / "spool"),
        "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
        "destinations": [{"aet": archive.aet, "host": "127.0.0.1", "port": archive.port}],
        "quiet_seconds": 0.5,
        "limits": {"free_mb": 0},
        "sending": {"first_seconds": 0.2, "longest_seconds": 0.5, "tries": 500, "timeout_seconds": 10},
    }
    return values | changes


class NodeProcess:
    """A node's process, started again after each kill."""

    def __init__(self, folder: Path, release: Path, archive: Archive, **changes: Any) -> None:
        self.folder, self.port, self.file = folder, free_port(), folder / "node.yaml"
        self.file.write_text(yaml.safe_dump(node_file_values(folder, self.port, release, archive, **changes)))
        self.log = (folder / "node.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "medopt", "pacs", "run", str(self.file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=40)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.log.close()

    def log_text(self) -> str:
        return (self.folder / "node.log").read_text()

    def status(self) -> dict[str, Any]:
        return call("pacs", "status", self.file, "--json").summary

    def deliver(self, scan: Path, within: float = 200) -> None:
        """Send until the node acknowledges it, as a modality does."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            link = association(self.port)
            if link.is_established:
                with suppress(RuntimeError):  # killed before it answered
                    status = int(store(link, scan).Status)
                    link.release()
                    if status == 0x0000:
                        return
            assert self.process is not None
            if self.process.poll() is not None:
                self.start()
            time.sleep(0.1)
        raise AssertionError(self.log_text())


def wait_for(condition: Callable[[], bool], node: NodeProcess, seconds: float = 280) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, node.log_text()
        time.sleep(0.1)
