"""The shadow trial: a candidate release answers the studies that the release has answered, when nothing else is to do.

Nothing of it is sent. Whatever a candidate does (it crashes, hangs, takes memory, refuses to open), the study was
answered before, and the trial alone is told of it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from medopt.core.errors import MedoptError
from medopt.core.files import file_digest
from medopt.core.privacy import pseudonym
from medopt.core.run_paths import SUMS
from medopt.pacs.answers import Trial, TrialEnd, TrialQueue
from medopt.pacs.audit import AuditTrail
from medopt.pacs.ledger import Ledger
from medopt.pacs.settings import NodeSettings, ResultSettings, ShadowSettings, WorkerSettings
from medopt.pacs.spool import Spool
from medopt.pacs.worker import Interrupted, Worker, WorkerFailed
from medopt.pacs.worker_protocol import StudyRecord, StudyRequest

log = logging.getLogger("medopt.pacs")
RUNS = "ok"
_TICK_SECONDS = 0.5
_PAUSE_SECONDS, _LONGEST_PAUSE = 5.0, 600.0
"""The wait after a failure of the candidate's process; it doubles with each further one."""


class ShadowTrial:
    """The candidate beside a running node, in a thread and a process of its own."""

    def __init__(
        self, settings: NodeSettings, shadow: ShadowSettings, spool: Spool, ledger: Ledger, audit: AuditTrail,
        stop: threading.Event, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._spool, self._ledger, self._audit, self._clock, self._stop = spool, ledger, audit, clock, stop
        self._queue, self._release, self._failures = TrialQueue(ledger), shadow.release, 0
        self._worker = Worker(_as_candidate(settings, shadow), stop.is_set, stop.is_set, shadow.priority)
        self._thread = threading.Thread(target=self._repeat, name="pacs-shadow")
        self.state = RUNS
        """`ok`, or why the candidate does not answer."""

    def candidate(self) -> str:
        """SHA-256 of the candidate's list of checksums as it is now, else of the one that ran; "" where none did."""
        try:
            return file_digest(self._release / SUMS)
        except OSError:
            return self._worker.release_digest

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end, which follows at once when the node stops."""
        if self._thread.ident is not None:
            self._thread.join()
        self._worker.stop()

    def _repeat(self) -> None:
        """Until the node stops. No error of the trial leaves this thread: the node goes on without the candidate."""
        while not self._stop.is_set():
            wait = _TICK_SECONDS
            try:
                if self._run_next():
                    wait, self._failures = 0.0, 0
                    self.state = RUNS
            except Interrupted:
                return
            except (MedoptError, OSError, sqlite3.Error) as error:
                wait = self._note_failure(str(error) if isinstance(error, MedoptError) else "the spool cannot be used")
            except Exception as error:
                wait = self._note_failure(f"an unexpected {type(error).__name__}")
            self._stop.wait(wait)

    def _note_failure(self, reason: str) -> float:
        """Say it, and how long to wait before the candidate is tried again."""
        if reason != self.state:
            log.warning("the candidate does not answer: %s", reason)
            self._audit("candidate failed", reason=reason)
        self.state, self._failures = reason, self._failures + 1
        return float(min(_PAUSE_SECONDS * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE))

    def _run_next(self) -> bool:
        """Have the next study answered; False while the release itself is busy, or nothing waits.

        Raises ReleaseError or WorkerFailed where the candidate does not answer, and Interrupted.
        """
        if self._queue.is_release_busy():
            return False
        before = self._worker.release_digest
        self._worker.start()
        if self._worker.release_digest != before:
            self._audit("candidate opened", candidate=self._worker.release_digest)
        trial = self._queue.take(self._clock())
        if trial is None:
            self.state = RUNS
            return False
        try:
            self._answer(trial)
        except Interrupted:
            self._queue.give_back(trial)
            raise
        except WorkerFailed as failure:
            self._end(trial, "failed", str(failure))
            raise
        except FileNotFoundError:
            self._end(trial, "skipped", "its images have left the spool")
        except (OSError, sqlite3.Error):  # the disk is full: it is no fault of the candidate
            self._queue.give_back(trial)
            raise
        except Exception as error:
            self._end(trial, "failed", f"an unexpected {type(error).__name__}")
        return True

    def _answer(self, trial: Trial) -> None:
        images = self._ledger.images(trial.study_uid)
        if len(images) != trial.images:
            self._end(trial, "skipped", "more images of the study came")
            return
        with self._spool.working_folder(image.file for image in images) as folder:
            request = StudyRequest(
                folder=folder,
                digests={image.file.rpartition("/")[2]: image.digest for image in images},
                previous={},
                now=datetime.fromtimestamp(self._clock(), UTC),
            )
            response = self._worker.answer(request)
        state: TrialEnd = "failed" if response.record is None else "compared"
        self._end(trial, state, response.reason, response.record, decisions=response.decisions)

    def _end(
        self, trial: Trial, state: TrialEnd, reason: str, record: StudyRecord | None = None, **details: object
    ) -> None:
        candidate = self._worker.release_digest
        self._queue.end(trial, candidate, state, reason, record, self._clock())
        study = pseudonym(trial.study_uid)
        self._audit("candidate", study=study, candidate=candidate, ending=state, reason=reason, **details)


def _as_candidate(settings: NodeSettings, shadow: ShadowSettings) -> NodeSettings:
    """The node's settings as the candidate's process takes them."""
    return settings.model_copy(
        update={
            "release": shadow.release,
            "model": shadow.model,
            "series": shadow.series or settings.series,
            "results": ResultSettings(heat_maps=0),
            "work": WorkerSettings(tries=1, seconds=shadow.seconds, memory_mb=shadow.memory_mb),
        }
    )
