"""From a decoded request to its response, whichever protocol it came by: queue, readers, answers, the log."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from medopt.release.predictor import UNDECIDED, Answer, PreparedCase, Release
from medopt.serving.server.decode_scan import ScanBytes, prepare_bytes
from medopt.serving.server.limits import HTTP, Admission, Refused, ServerLimits
from medopt.serving.server.log import event
from medopt.serving.server.metrics import ServerMetrics
from medopt.serving.server.releases import ReleaseRegistry, ServedRelease

IMAGE, SCAN = "image", "scan"
PROBABILITIES, DECISION, DECLINED, LOGITS = "probabilities", "decision", "declined", "logits"
NUMBER = "number"
"""Of a regression study's release only: the number, and the interval that is promised for the true one, (N, 3)."""
MISSING = "missing_covariates"
"""Of a release with covariates only: those that counted as missing, joined by semicolons, (N,)."""
OUTPUTS = (PROBABILITIES, DECISION, DECLINED, LOGITS, NUMBER, MISSING)
_MARGIN = 1e-3


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request: prepared images (N, C, *size) float32, or the bytes of N scans, each of one file or one a channel.

    `covariates` are those that it gives of each case, by name; empty where it gives none.
    """

    images: FloatArray | None = None
    scans: tuple[ScanBytes, ...] = ()
    covariates: tuple[Mapping[str, str], ...] = ()

    @property
    def count(self) -> int:
        """Images in it."""
        return len(self.scans) if self.images is None else len(self.images)

    @property
    def cells(self) -> Sequence[Mapping[str, str]]:
        """The covariates of each case."""
        return self.covariates or [{}] * self.count

    @property
    def files(self) -> list[bytes]:
        """The bytes of every file."""
        return [file for scan in self.scans for file in ([scan] if isinstance(scan, bytes) else scan)]


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """Answers as named arrays of N rows: probabilities (N, labels), logits (N, K), decision and declined (N,).

    Of a release of a number also number (N, 3): the number, and the ends of its interval; of one with covariates also
    missing_covariates (N,).
    """

    model: str
    version: str
    arrays: dict[str, NDArray[Any]]
    parameters: dict[str, str]


@dataclass(slots=True)
class RequestLog:
    """What is logged about one request. `digest` stands for its content, from which no name can be read."""

    door: str
    begun: float = field(default_factory=time.perf_counter)
    model: str = ""
    version: str = ""
    digest: str = ""
    images: int = 0
    declined: int = 0


class Service:
    """Answers requests from REST and gRPC. Belongs to one event loop."""

    def __init__(self, registry: ReleaseRegistry, limits: ServerLimits, metrics: ServerMetrics) -> None:
        self.registry, self.limits, self.metrics = registry, limits, metrics
        self.admission = Admission(limits)
        self.stopping = False
        self._uploads = 0
        self.readers = ThreadPoolExecutor(
            limits.readers, "medopt-reader", initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def ready(self) -> bool:
        """Whether every release serves and the server is not on its way out."""
        return self.registry.ready and not self.stopping

    @contextmanager
    def admitted(self, images: int, size: int = 0) -> Iterator[None]:
        """A place in the queue; raises Refused where there is none."""
        self.admission.take(images, size)
        self.metrics.queue(self.images_in_hand)
        try:
            yield
        finally:
            self.admission.give(images, size)
            self.metrics.queue(self.images_in_hand)

    @property
    def images_in_hand(self) -> int:
        """Images of requests that are coming in, and of those in the queue."""
        return self.admission.images + self._uploads

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """While a request's body arrives: it is in hand, and has no place in the queue yet."""
        self._uploads += 1
        self.metrics.queue(self.images_in_hand)
        try:
            yield
        finally:
            self._uploads -= 1
            self.metrics.queue(self.images_in_hand)

    @contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Call what is yielded for each piece of a body that arrives; raises Refused where there is no memory for it.

        A request takes memory for what has come, and not for what it announces.
        """
        self.admission.check_queue()
        received = 0

        def take(size: int) -> None:
            nonlocal received
            self.admission.take(0, size)
            received += size

        try:
            yield take
        finally:
            self.admission.give(0, received)

    @contextmanager
    def logged(self, door: str) -> Iterator[RequestLog]:
        """One request: its line in the log and in the metrics, however it ends.

        An exception other than Refused becomes a Refused that gives its type only: its text may quote what was sent.
        """
        log = RequestLog(door)
        try:
            yield log
        except Refused as refused:
            self._log(log, refused)
            raise
        except asyncio.CancelledError:
            self._log(log, Refused("slow", "The client went away."))
            raise
        except Exception as error:
            failed = Refused("internal", f"The server failed ({type(error).__name__}); its log tells when.")
            self._log(log, failed)
            raise failed from error
        else:
            self._log(log, None)

    def _log(self, log: RequestLog, refused: Refused | None) -> None:
        seconds = time.perf_counter() - log.begun
        code = str(HTTP[refused.kind]) if refused else "200"
        self.metrics.answered(log.model, log.version, log.door, code, seconds)
        line: dict[str, Any] = {
            "door": log.door, "model": log.model, "version": log.version, "request": log.digest,
            "images": log.images, "declined": log.declined, "code": code, "ms": round(1000 * seconds, 2),
        }  # fmt: skip
        if refused:
            refused.logged = True
            self.metrics.refused(log.model, refused.kind)
            line |= {"refused": refused.kind, "reason": refused.text}
        event(logging.WARNING if refused else logging.INFO, "request", line)

    async def answer(
        self, served: ServedRelease, request: InferenceRequest, log: RequestLog, taken: int = 0
    ) -> InferenceResponse:
        """The response to a request that `taken` places in the queue were given to already. Raises Refused."""
        return response_of(served, await self.answers(served, request, log, taken))

    async def answers(
        self, served: ServedRelease, request: InferenceRequest, log: RequestLog, taken: int = 0
    ) -> list[Answer]:
        """The same as the release's own answers, one for each image."""
        log.images = request.count
        extra = max(0, request.count - taken)
        try:
            with self.admitted(extra), served.in_use():
                async with asyncio.timeout(self.limits.answer_seconds):
                    answers = await self._predict(served, request)
        except TimeoutError:
            raise Refused("slow", f"There was no answer within {self.limits.answer_seconds:g} s.") from None
        except DataError as error:
            raise Refused("malformed", str(error)) from None
        log.declined = sum(bool(answer.declined) for answer in answers)
        for answer in answers:
            self.metrics.scan(log.model, log.version, outcome_of(answer))
        return answers

    async def _predict(self, served: ServedRelease, request: InferenceRequest) -> list[Answer]:
        if request.images is not None:
            check_prepared(request.images, served.verified.release)
            return await served.batcher.ask(request.images, [None] * request.count, request.cells)
        with served.batcher.expecting() as arrived:
            cases = await self._read(served.verified.release, request)
            arrived()
            images, facts, cells = zip(*cases, strict=True)
            return await served.batcher.ask(np.stack(images), facts, cells)

    async def _read(self, release: Release, request: InferenceRequest) -> list[PreparedCase]:
        """Scans prepared by the readers. A reader that is stuck cannot be ended, but nobody waits for it any longer."""
        scans, limits = request.scans, self.limits
        pairs = zip(scans, request.cells, strict=True)
        jobs = [self._in_reader(prepare_bytes, release, data, limits, known) for data, known in pairs]
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                results = await asyncio.gather(*jobs, return_exceptions=True)
        except TimeoutError:
            raise Refused("slow", f"The scan was not read within {self.limits.read_seconds:g} s.") from None
        for number, result in enumerate(results, 1):
            if isinstance(result, DataError):
                raise Refused("malformed", f"Scan {number} of {len(scans)} is refused. {result}")
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, PreparedCase)]

    def _in_reader(self, *call: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self.readers, *call)

    async def in_reader(self, *call: Any) -> Any:
        """Run a function in a reader's thread, so that the event loop goes on."""
        return await self._in_reader(*call)


def log_refusal(door: str, refused: Refused) -> None:
    """The line of a request that was refused before it came to a release; none where it has one."""
    if not refused.logged:
        refused.logged = True
        line = {"door": door, "code": str(HTTP[refused.kind]), "refused": refused.kind, "reason": refused.text}
        event(logging.WARNING, "request", line)


def check_prepared(images: FloatArray, release: Release) -> None:
    """Raises Refused for images that the release's chain cannot have prepared."""
    prepare = release.info.prepare
    shape = (prepare.input_channels, *prepare.size)
    if images.shape[1:] != shape or not len(images):
        sides = ", ".join(map(str, shape))
        raise Refused("malformed", f"The input image must have the shape (N, {sides}); got {images.shape}.")
    if not np.isfinite(images).all():
        raise Refused("malformed", "The input image holds values that are not finite numbers.")
    if images.min() < -_MARGIN or images.max() > 1 + _MARGIN:
        raise Refused("malformed", "The input image must be prepared by the release's chain: values from 0 to 1.")


def outcome_of(answer: Answer) -> str:
    """How a scan ended; undecided where any label was left so."""
    if answer.declined:
        return "declined"
    return UNDECIDED if any(map(answer.is_undecided, answer.probabilities)) else "answered"


def response_of(served: ServedRelease, answers: Sequence[Answer]) -> InferenceResponse:
    """Answers as arrays. A declined scan has no decision, and NaN for its probabilities and logits."""
    info = served.verified.release.info
    nothing = [float("nan")] * len(info.labels)
    values = [nothing if answer.declined else [answer.probabilities[key] for key in info.labels] for answer in answers]
    logits = [[float("nan")] * len(answer.logits) if answer.declined else answer.logits for answer in answers]
    arrays: dict[str, NDArray[Any]] = {
        PROBABILITIES: np.array(values, np.float64),
        DECISION: np.array([answer.decision.encode() for answer in answers], np.object_),
        DECLINED: np.array([(answer.declined or "").encode() for answer in answers], np.object_),
        LOGITS: np.array(logits, np.float64),
    }
    if info.number is not None:
        arrays[NUMBER] = np.array([_number_row(answer) for answer in answers], np.float64)
    if info.covariates:
        arrays[MISSING] = np.array([";".join(answer.missing).encode() for answer in answers], np.object_)
    return InferenceResponse(served.name, served.verified.version, arrays, identity(served))


def _number_row(answer: Answer) -> list[float]:
    """The number, and the lower and upper end of its interval; NaN where there is none."""
    number = answer.number
    if answer.declined or number is None:
        return [float("nan")] * 3
    return [float("nan") if one is None else one for one in (number.value, number.low, number.high)]


def identity(served: ServedRelease) -> dict[str, str]:
    """What answered: hashes of release, model and chain, the engine and medopt's version, and the labels' order."""
    verified, release = served.verified, served.verified.release
    return {
        "release_sha256": verified.digest,
        "model_sha256": verified.model_digest,
        "chain": release.chain.fingerprint,
        "model_kind": release.kind,
        "engine": release.engine.name,
        "medopt": __version__,
        "labels": ";".join(release.info.labels),
    } | ({"unit": release.info.number.unit, "quantity": release.info.number.quantity} if release.info.number else {})


def content_digest(*data: bytes | memoryview) -> str:
    """What stands for a request's content in the log."""
    digest = hashlib.sha256()
    for piece in data:
        digest.update(piece)
    return pseudonym(digest.hexdigest())
