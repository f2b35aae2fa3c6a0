"""The node's handle on its worker process: started when needed, watched for time and memory, killed without loss."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medopt.core.errors import MedoptError, ReleaseError
from medopt.pacs.dicom_object import OutgoingObject
from medopt.pacs.settings import Node

_LOOK_SECONDS = 0.1
_START_SECONDS = 300


class WorkerFailed(MedoptError):
    """The process ended, or was ended, before it answered."""


class Interrupted(MedoptError):
    """The node was asked to stop while the process worked."""


class Worker:
    """One process that answers one study at a time."""

    def __init__(self, node: Node, stopping: Callable[[], bool], over: Callable[[], bool]) -> None:
        """`stopping`: the node was asked to end; `over`: the study at work may not go on either."""
        self._node, self._stopping, self._over = node, stopping, over
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Connection | None = None
        self.model = ""
        """SHA-256 of the model, known once the process has started."""

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin a process where none runs.

        Raises ReleaseError where it refuses the release, WorkerFailed where it ends before it is ready; Interrupted.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        ours, theirs = Pipe()
        try:
            words = [sys.executable, "-m", "medopt.pacs.worker_process", str(theirs.fileno())]
            # Its words could quote what stands in a header, so nobody hears them.
            self._process = subprocess.Popen(
                words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, process_group=0,  # of the node's session: in another, Linux ignores its nice
            )  # fmt: skip
        finally:
            theirs.close()
        self._wire = ours
        node = self._node
        found = self._ask(
            {"release": str(node.release), "model": node.model}
            | {"series": None if node.series is None else node.series.model_dump(mode="json")}
            | {"results": node.results.model_dump(mode="json")},
            _START_SECONDS,
            self._stopping,
        )
        if "refused" in found:
            self.stop()
            raise ReleaseError(found["refused"])
        self.model = found["model"]

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def study(
        self, folder: Path, digests: Mapping[str, str], previous: Mapping[str, Sequence[str]], now: datetime
    ) -> tuple[dict[str, Any], list[OutgoingObject]]:
        """Answer a study: its ending with the reason, and the objects to send.

        Needs a started process. Raises WorkerFailed where that ends, takes too long or too much memory; Interrupted.
        """
        asked = {"folder": str(folder), "digests": dict(digests), "previous": dict(previous), "now": now.isoformat()}
        found = self._ask(asked, self._node.work.seconds, self._over)
        made = [OutgoingObject(**one | {"content": base64.b64decode(one["content"])}) for one in found.pop("made")]
        return found, made

    def _ask(self, message: Mapping[str, Any], seconds: float, stopping: Callable[[], bool]) -> dict[str, Any]:
        if self._wire is None:
            raise WorkerFailed("the worker process does not run")
        until = time.monotonic() + seconds
        try:
            self._wire.send_bytes(json.dumps(message).encode())
            while not self._wire.poll(_LOOK_SECONDS):
                self._watch(until, seconds, stopping)
            found: dict[str, Any] = json.loads(self._wire.recv_bytes())
            return found
        except (EOFError, OSError):
            self.stop()
            raise WorkerFailed("the worker process ended before it answered") from None
        except BaseException:
            self.stop()
            raise

    def _watch(self, until: float, seconds: float, stopping: Callable[[], bool]) -> None:
        if stopping():
            raise Interrupted("the node stops")
        if time.monotonic() > until:
            raise WorkerFailed(f"the worker process took longer than {seconds:g} seconds (work.seconds)")
        if self._resident_mb() > (most := self._node.work.memory_mb):
            raise WorkerFailed(f"the worker process took more than {most:g} MB of memory (work.memory_mb)")

    def _resident_mb(self) -> float:
        with suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0
