"""Dynamic batching: images of several requests are joined into one call of the engine, one call at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from medopt.core.errors import DataError
from medopt.core.records import FloatArray, batches
from medopt.imaging.acquisition import Acquisition
from medopt.release.case_covariates import Cells
from medopt.release.predictor import Answer

Facts = Sequence[Acquisition | None]
Predict = Callable[[FloatArray, Facts, Sequence[Cells]], list[Answer]]


@dataclass(frozen=True, slots=True)
class _Part:
    """Images of one request (N, C, *size), what is known of each, and the future that gets their answers."""

    images: FloatArray
    facts: Facts
    cells: Sequence[Cells]
    answers: asyncio.Future[list[Answer]]


class Batcher:
    """Gathers up to `size` images and predicts them; waits `seconds` for a full batch while requests are on their way.

    A request's images stay together where `size` allows; more than `size` are split as `medopt predict` splits them.
    Belongs to one event loop.
    """

    def __init__(self, predict: Predict, size: int, seconds: float, observe: Callable[[int], None] = lambda _: None):
        self.size = size
        self._predict, self._seconds, self._observe = predict, seconds, observe
        self._waiting: deque[_Part] = deque()
        self._expected = 0
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "medopt-engine")
        self._worker = asyncio.create_task(self._work())

    @contextmanager
    def expecting(self) -> Iterator[Callable[[], None]]:
        """A request is on its way: a batch may wait for it. Call the function that is yielded when it has arrived."""
        self._expected += 1
        waiting = True

        def arrived() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                self._expected -= 1
                self._changed.set()

        try:
            yield arrived
        finally:
            arrived()

    async def ask(self, images: FloatArray, facts: Facts, cells: Sequence[Cells] | None = None) -> list[Answer]:
        """Answers for prepared images (N, C, *size); raises DataError where the model has none for one of them.

        `cells` are those of the covariates of each.
        """
        loop, known = asyncio.get_running_loop(), cells or [{}] * len(images)
        parts = [
            _Part(images[rows], facts[rows], known[rows], loop.create_future())
            for rows in batches(len(images), self.size)
        ]
        self._waiting.extend(parts)
        self._changed.set()
        results = await asyncio.gather(*(part.answers for part in parts))
        return [answer for answers in results for answer in answers]

    def close(self) -> None:
        """End the worker; no request may be waiting."""
        self._worker.cancel()
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        while True:
            await self._gather()
            parts = self._next()
            self._observe(sum(len(part.images) for part in parts))
            await self._run(parts)

    async def _gather(self) -> None:
        """Return when a batch should run: it is full, no request is on its way, or the wait is over."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        while self._expected and sum(len(part.images) for part in self._waiting) < self.size:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), end - loop.time())
            except TimeoutError:
                return

    def _next(self) -> list[_Part]:
        parts = [self._waiting.popleft()]
        count = len(parts[0].images)
        while self._waiting and count + len(self._waiting[0].images) <= self.size:
            parts.append(self._waiting.popleft())
            count += len(parts[-1].images)
        return parts

    async def _run(self, parts: list[_Part]) -> None:
        """One call of the engine; where it fails, each request is predicted alone: one of them is at fault."""
        images = parts[0].images if len(parts) == 1 else np.concatenate([part.images for part in parts])
        facts = [scan for part in parts for scan in part.facts]
        cells = [case for part in parts for case in part.cells]
        loop = asyncio.get_running_loop()
        try:
            answers = iter(await loop.run_in_executor(self._thread, self._predict, images, facts, cells))
        except Exception as error:
            if len(parts) > 1 and isinstance(error, DataError):
                for part in parts:
                    await self._run([part])
                return
            for part in parts:
                if not part.answers.done():
                    part.answers.set_exception(error)
            return
        for part in parts:
            own = [next(answers) for _ in part.facts]
            if not part.answers.done():  # the client may have gone
                part.answers.set_result(own)
