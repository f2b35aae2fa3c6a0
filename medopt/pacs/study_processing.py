"""A study's way from its last image to its results: when it is complete, who answers it, what is recorded then."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO

from medopt.core.privacy import pseudonym
from medopt.imaging.parse_dicom import parse_dicom
from medopt.pacs.answers import AnswerLog
from medopt.pacs.audit import AuditTrail
from medopt.pacs.ledger import DueStudy, Ending, Ledger, Result
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import RESULTS, Spool, spool_file
from medopt.pacs.worker import Interrupted, Worker, WorkerFailed
from medopt.pacs.worker_protocol import EarlierResult, OutgoingObject, StudyRecord, StudyRequest

log = logging.getLogger("medopt.pacs")


@dataclass(slots=True)
class _Activity:
    last_image: float
    connections: list[Callable[[], bool]] = field(default_factory=list)


class StudyCompletion:
    """Decides when a study is complete, which DICOM does not signal.

    It is, when no image came for `quiet_seconds` and no association that sent any of it is open. The clock must be
    monotonic. Nothing of this outlives the process: after a start the wait of every unfinished study begins anew, so
    that a sender that was cut off has time to come back.
    """

    def __init__(self, quiet_seconds: float, clock: Callable[[], float]) -> None:
        self._quiet_seconds, self._clock = quiet_seconds, clock
        self._activity: dict[str, _Activity] = {}
        self._lock = threading.Lock()

    def image_received(self, study_uid: str, is_open: Callable[[], bool]) -> None:
        """An image of a study came by a connection; `is_open` says whether that is still open."""
        with self._lock:
            activity = self._activity.setdefault(study_uid, _Activity(self._clock()))
            activity.last_image = self._clock()
            if is_open not in activity.connections:
                activity.connections.append(is_open)

    def is_complete(self, study_uid: str) -> bool:
        """Whether a study is complete. While a connection is open the wait does not begin."""
        with self._lock:
            now = self._clock()
            activity = self._activity.setdefault(study_uid, _Activity(now))
            activity.connections = [is_open for is_open in activity.connections if is_open()]
            if activity.connections:
                activity.last_image = now
            return now - activity.last_image >= self._quiet_seconds

    def forget(self, study_uid: str) -> None:
        """Stop watching a study."""
        with self._lock:
            self._activity.pop(study_uid, None)


class StudyProcessor:
    """Answers the ready studies of the ledger, one at a time. One object is used by one thread."""

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        ledger: Ledger,
        worker: Worker,
        audit: AuditTrail,
        clock: Callable[[], float],
        answers: AnswerLog | None = None,
    ) -> None:
        self._answers = answers or AnswerLog()
        self._settings, self._spool, self._ledger, self._worker = settings, spool, ledger, worker
        self._audit, self._clock = audit, clock
        self._unfinished = False

    def process_next(self) -> bool:
        """Answer the study that has been ready for longest; False if there is none, or the node stops.

        The worker must have been started. Raises OSError, sqlite3.Error where the disk is full.
        """
        if self._unfinished:  # a full disk prevented that the last study was finished or handed back
            self._ledger.recover(self._clock())
        self._unfinished = True
        study = self._ledger.take(self._clock())
        processed = study is not None and self._answer(study)
        self._unfinished = False
        return processed

    def _answer(self, study: DueStudy) -> bool:
        if not study.images:
            self._finish(study, "declined", "no image of this study came")
            return True
        try:
            with self._spool.working_folder(image.file for image in study.images) as folder:
                request = StudyRequest(
                    folder=folder,
                    digests={image.file.rpartition("/")[2]: image.digest for image in study.images},
                    previous=self._earlier_results(study),
                    now=datetime.fromtimestamp(self._clock(), UTC),
                )
                response = self._worker.answer(request)
        except Interrupted:
            self._ledger.hand_back(study.study_uid, self._clock())
            return False
        except WorkerFailed as failure:
            self._record_failed_try(study, str(failure))
            return True
        except FileNotFoundError:
            self._finish(study, "parked", "an image of the study is no longer in the spool")
            return True
        log.info("study %s: %s", pseudonym(study.study_uid), response.ending)
        self._finish(study, response.ending, response.reason, response.objects, response.record,
                     decisions=response.decisions)  # fmt: skip
        return True

    def _earlier_results(self, study: DueStudy) -> dict[str, EarlierResult]:
        """The latest result of each type that the study has."""
        latest = {}
        for result in self._ledger.results(study.study_uid):
            series_uid = result.series_uid
            if not series_uid:  # recorded by a ledger before its third version
                header = parse_dicom(self._spool.root / result.file, specific_tags=["SeriesInstanceUID"])
                series_uid = str(header.SeriesInstanceUID)
            latest[result.result_type] = EarlierResult(sop_uid=result.sop_uid, series_uid=series_uid)
        return latest

    def _record_failed_try(self, study: DueStudy, reason: str) -> None:
        """The study may have caused the failure: it is tried again, and parked after the last try."""
        tries = study.tries + 1
        log.warning("study %s: try %d failed: %s", pseudonym(study.study_uid), tries, reason)
        if tries >= self._settings.work.tries:
            self._finish(study, "parked", f"given up after {tries} tries: {reason}")
        else:
            self._ledger.hand_back(study.study_uid, self._clock(), failure=reason)

    def _finish(
        self, study: DueStudy, ending: Ending, reason: str, objects: Sequence[OutgoingObject] = (),
        record: StudyRecord | None = None, **details: object,
    ) -> None:  # fmt: skip
        """Write the results to the disk, then everything to the ledger at once."""
        results = [
            self._write(study.study_uid, result)
            for result in objects
            if not self._ledger.is_result(result.sop_uid)  # the bytes of a known result stay as they are
        ]
        destinations = [peer.name for peer in self._settings.destinations]
        now = self._clock()

        def also(db: sqlite3.Connection) -> None:
            if record is not None:
                self._answers.record(db, study, self._worker.release_digest, record, now)

        new = self._ledger.finish(study, ending, reason, results, destinations, now, also)
        self._audit(
            "answered",
            study=pseudonym(study.study_uid),
            images=sorted(image.digest for image in study.images),
            model=self._worker.model_digest,
            ending=ending,
            reason=reason,
            results=[result.digest for result in new],
            **details,
        )

    def _write(self, study_uid: str, result: OutgoingObject) -> Result:
        file = spool_file(RESULTS, study_uid, result.sop_uid)
        self._spool.write(file, [result.content])
        header = parse_dicom(BytesIO(result.content), specific_tags=["SeriesInstanceUID"])
        return Result(
            result.sop_uid,
            study_uid,
            result.sop_class,
            result.result_type,
            file,
            hashlib.sha256(result.content).hexdigest(),
            str(header.SeriesInstanceUID),
            len(result.content),
        )
