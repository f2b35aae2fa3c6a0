"""The node's side of its worker process: started when needed, bounded in time and memory, killed without loss."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from medopt.core.errors import MedoptError, ReleaseError
from medopt.pacs.settings import NodeSettings
from medopt.pacs.worker_protocol import Message, OpenRelease, ReleaseOpened, StudyRequest, StudyResponse

_POLL_SECONDS = 0.1
_START_SECONDS = 300


class WorkerFailed(MedoptError):
    """The process ended, or was ended, before it answered."""


class Interrupted(MedoptError):
    """The node was stopped while the process worked."""


class Worker:
    """One process that answers one study at a time."""

    def __init__(
        self, settings: NodeSettings, stopping: Callable[[], bool], out_of_time: Callable[[], bool],
        candidate: Literal["", "idle", "low"] = "",
    ) -> None:  # fmt: skip
        """`stopping`: the node was stopped; `out_of_time`: the study that is being answered has to end, too.

        `candidate` is the priority of a candidate, which makes no objects; "" for the release.
        """
        self._settings, self._stopping, self._out_of_time = settings, stopping, out_of_time
        self._candidate, self._section = candidate, "shadow" if candidate else "work"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self.model_digest = ""
        """SHA-256 of the model, known once the process has started."""
        self.release_digest = ""
        """SHA-256 of the release's list of checksums, known then, too."""

    @property
    def pid(self) -> int | None:
        """The ID of the running process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start a process if none runs.

        Raises ReleaseError if it refuses the release, WorkerFailed if it ends before it is ready; Interrupted.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        self._connection, theirs = Pipe()
        try:
            command = [sys.executable, "-m", "medopt.pacs.worker_process", str(theirs.fileno())]
            # Its output is discarded, because a library's message could quote a header.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, process_group=0,  # not a new session: there Linux ignores its nice value
            )  # fmt: skip
        finally:
            theirs.close()
        settings = self._settings
        request = OpenRelease(
            release=settings.release, model=settings.model, series=settings.series, results=settings.results,
            candidate=self._candidate,
        )  # fmt: skip
        opened = ReleaseOpened.model_validate_json(self._exchange(request, _START_SECONDS, self._stopping))
        if opened.refusal is not None:
            self.stop()
            raise ReleaseError(opened.refusal)
        self.model_digest, self.release_digest = opened.model_digest, opened.release_digest

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def answer(self, request: StudyRequest) -> StudyResponse:
        """Have a study answered by the started process.

        Raises WorkerFailed if the process ends or takes too long or too much memory; Interrupted.
        """
        response = self._exchange(request, self._settings.work.seconds, self._out_of_time)
        return StudyResponse.model_validate_json(response)

    def _exchange(self, message: Message, seconds: float, stopping: Callable[[], bool]) -> bytes:
        if self._connection is None:
            raise WorkerFailed("the worker process does not run")
        deadline = time.monotonic() + seconds
        try:
            self._connection.send_bytes(message.to_json())
            while not self._connection.poll(_POLL_SECONDS):
                self._check_bounds(deadline, seconds, stopping)
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            self.stop()
            raise WorkerFailed("the worker process ended before it answered") from None
        except BaseException:
            self.stop()
            raise

    def _check_bounds(self, deadline: float, seconds: float, stopping: Callable[[], bool]) -> None:
        if stopping():
            raise Interrupted("the node stops")
        if time.monotonic() > deadline:
            raise WorkerFailed(f"the worker process took longer than {seconds:g} seconds ({self._section}.seconds)")
        if self._resident_mb() > (limit := self._settings.work.memory_mb):
            raise WorkerFailed(f"the worker process took more than {limit:g} MB of memory ({self._section}.memory_mb)")

    def _resident_mb(self) -> float:
        with suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        return 0.0
