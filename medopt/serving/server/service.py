"""A request in neutral form to its reply, between the doors and the releases: queue, readers, answers, the log."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medopt import __version__
from medopt.core.errors import DataError
from medopt.core.privacy import pseudonym
from medopt.core.records import FloatArray
from medopt.imaging.acquisition import Acquisition
from medopt.release.predictor import UNDECIDED, Answer, Predictor
from medopt.serving.server.decode_scan import prepare_bytes
from medopt.serving.server.limits import HTTP, Admission, Refused, ServerLimits
from medopt.serving.server.log import event
from medopt.serving.server.metrics import Measures
from medopt.serving.server.releases import ReleaseRegistry, Served

IMAGE, SCAN = "image", "scan"
PROBABILITIES, DECISION, DECLINED, LOGITS = "probabilities", "decision", "declined", "logits"
OUTPUTS = (PROBABILITIES, DECISION, DECLINED, LOGITS)
_MARGIN = 1e-3


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request: prepared images (N, C, *size) float32, or the bytes of N scans."""

    images: FloatArray | None = None
    scans: tuple[bytes, ...] = ()

    @property
    def count(self) -> int:
        """Images in it."""
        return len(self.scans) if self.images is None else len(self.images)


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """Answers as named arrays of N rows: probabilities (N, labels), logits (N, K), decision and declined (N,)."""

    model: str
    version: str
    arrays: dict[str, NDArray[Any]]
    parameters: dict[str, str]


@dataclass(slots=True)
class RequestLog:
    """What the log tells of one request. `digest` stands for its content and for no name in it."""

    door: str
    begun: float = field(default_factory=time.perf_counter)
    model: str = ""
    version: str = ""
    digest: str = ""
    images: int = 0
    declined: int = 0


class Service:
    """Answers requests of all doors. Belongs to one event loop."""

    def __init__(self, shelf: ReleaseRegistry, limits: ServerLimits, measures: Measures) -> None:
        self.shelf, self.limits, self.measures = shelf, limits, measures
        self.admission = Admission(limits)
        self.stopping = False
        self.readers = ThreadPoolExecutor(
            limits.readers, "medopt-reader", initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def ready(self) -> bool:
        """Whether every release serves and the server is not on its way out."""
        return self.shelf.ready and not self.stopping

    @contextmanager
    def admitted(self, images: int, size: int = 0) -> Iterator[None]:
        """A place in the queue; raises Refused where there is none."""
        self.admission.take(images, size)
        self.measures.queue(self.admission.images)
        try:
            yield
        finally:
            self.admission.give(images, size)
            self.measures.queue(self.admission.images)

    @contextmanager
    def visited(self, door: str) -> Iterator[RequestLog]:
        """One request: its line in the log and its figures, whatever becomes of it.

        What is no Refused becomes one that says nothing: an exception's text may quote what was sent.
        """
        visit = RequestLog(door)
        try:
            yield visit
        except Refused as refused:
            self._tell(visit, refused)
            raise
        except asyncio.CancelledError:
            self._tell(visit, Refused("slow", "The client went away."))
            raise
        except Exception as error:
            failed = Refused("internal", f"The server failed ({type(error).__name__}); its log tells when.")
            self._tell(visit, failed)
            raise failed from error
        else:
            self._tell(visit, None)

    def _tell(self, visit: RequestLog, refused: Refused | None) -> None:
        seconds = time.perf_counter() - visit.begun
        code = str(HTTP[refused.kind]) if refused else "200"
        self.measures.answered(visit.model, visit.version, visit.door, code, seconds)
        told: dict[str, Any] = {
            "door": visit.door, "model": visit.model, "version": visit.version, "request": visit.digest,
            "images": visit.images, "declined": visit.declined, "code": code, "ms": round(1000 * seconds, 2),
        }  # fmt: skip
        if refused:
            self.measures.refused(visit.model, refused.kind)
            told |= {"refused": refused.kind, "reason": refused.text}
        event(logging.WARNING if refused else logging.INFO, "request", told)

    async def answer(
        self, served: Served, asked: InferenceRequest, visit: RequestLog, taken: int = 0
    ) -> InferenceResponse:
        """Answer a request that holds `taken` places already. Raises Refused."""
        visit.images = asked.count
        extra = max(0, asked.count - taken)
        try:
            with self.admitted(extra), served.held():
                async with asyncio.timeout(self.limits.answer_seconds):
                    answers = await self._answers(served, asked)
        except TimeoutError:
            raise Refused("slow", f"There was no answer within {self.limits.answer_seconds:g} s.") from None
        except DataError as error:
            raise Refused("malformed", str(error)) from None
        visit.declined = sum(bool(one.declined) for one in answers)
        for one in answers:
            self.measures.scan(visit.model, visit.version, outcome_of(one))
        return reply_of(served, answers)

    async def _answers(self, served: Served, asked: InferenceRequest) -> list[Answer]:
        if asked.images is not None:
            check_prepared(asked.images, served.checked.predictor)
            return await served.batcher.ask(asked.images, [None] * len(asked.images))
        with served.batcher.expecting() as come:
            images, facts = await self._read(served.checked.predictor, asked.scans)
            come()
            return await served.batcher.ask(images, facts)

    async def _read(self, predictor: Predictor, scans: Sequence[bytes]) -> tuple[FloatArray, list[Acquisition]]:
        """Scans prepared by the readers. A reader that is stuck cannot be ended, but nobody waits for it any longer."""
        jobs = [self._in_reader(prepare_bytes, predictor, data, self.limits) for data in scans]
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                found = await asyncio.gather(*jobs, return_exceptions=True)
        except TimeoutError:
            raise Refused("slow", f"The scan was not read within {self.limits.read_seconds:g} s.") from None
        for place, one in enumerate(found, 1):
            if isinstance(one, DataError):
                raise Refused("malformed", f"Scan {place} of {len(scans)} is refused. {one}")
            if isinstance(one, BaseException):
                raise one
        return np.stack([image for image, _ in found]), [facts for _, facts in found]  # type: ignore[misc]

    def _in_reader(self, *call: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self.readers, *call)

    async def in_reader(self, *call: Any) -> Any:
        """Run a function in a reader's thread, so that the event loop goes on."""
        return await self._in_reader(*call)


def check_prepared(images: FloatArray, predictor: Predictor) -> None:
    """Refuse what the release's chain cannot have made."""
    prepare = predictor.info.prepare
    wanted = (prepare.channels, *prepare.size)
    if images.shape[1:] != wanted or not len(images):
        shown = ", ".join(map(str, wanted))
        raise Refused("malformed", f"The input image must have the shape (N, {shown}); got {images.shape}.")
    if not np.isfinite(images).all():
        raise Refused("malformed", "The input image holds values that are no finite numbers.")
    if images.min() < -_MARGIN or images.max() > 1 + _MARGIN:
        raise Refused("malformed", "The input image must be prepared by the release's chain: values from 0 to 1.")


def outcome_of(answer: Answer) -> str:
    """How a scan ended."""
    if answer.declined:
        return "declined"
    return UNDECIDED if answer.decision == UNDECIDED else "answered"


def reply_of(served: Served, answers: Sequence[Answer]) -> InferenceResponse:
    """Answers as arrays. A declined scan has no decision, and NaN for its probabilities, as it has none in a table."""
    checked = served.checked
    info = checked.predictor.info
    nothing = [float("nan")] * len(info.labels)
    values = [nothing if one.declined else [one.probabilities[label] for label in info.labels] for one in answers]
    arrays: dict[str, NDArray[Any]] = {
        PROBABILITIES: np.array(values, np.float64),
        DECISION: np.array([one.decision.encode() for one in answers], np.object_),
        DECLINED: np.array([one.declined.encode() for one in answers], np.object_),
        LOGITS: np.array([one.logits for one in answers], np.float64),
    }
    return InferenceResponse(served.name, checked.version, arrays, identity(served))


def identity(served: Served) -> dict[str, str]:
    """What answers: hashes of release, model and chain, the engine and medopt's version, and the labels' order."""
    checked, predictor = served.checked, served.checked.predictor
    return {
        "release_sha256": checked.digest,
        "model_sha256": checked.model_digest,
        "chain": predictor.chain.fingerprint,
        "model_kind": predictor.kind,
        "engine": predictor.engine.name,
        "medopt": __version__,
        "labels": ";".join(predictor.info.labels),
    }


def content_digest(data: bytes | memoryview) -> str:
    """What stands for a request's content in the log."""
    return pseudonym(hashlib.sha256(data).hexdigest())
