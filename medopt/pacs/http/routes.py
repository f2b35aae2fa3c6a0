"""What the HTTP port answers."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from medopt.pacs.audit import CountingAudit
from medopt.pacs.http.health import OK, NodeHealth, SpoolSize, checks
from medopt.pacs.http.metrics import Metrics
from medopt.pacs.http.middleware import HEADERS, Channel, Forms, HttpGuard
from medopt.pacs.http.page import EVERY, POLICY, PageFacts, render
from medopt.pacs.http.status_query import Ledgers
from medopt.pacs.http.stow import Stow
from medopt.pacs.intake import Intake
from medopt.pacs.ledger import Ledger
from medopt.pacs.queue_status import retry
from medopt.pacs.settings import Node
from medopt.pacs.spool import LEDGER, Spool
from medopt.serving.server.auth import Key

log = logging.getLogger("medopt.pacs")
_FORM_BYTES, _FORM_SECONDS = 4096, 10.0


@dataclass(frozen=True, slots=True)
class NodeParts:
    """The parts of a running node that its HTTP side looks at."""

    node: Node
    spool: Spool
    ledger: Ledger
    intake: Intake
    counted: CountingAudit
    vital: NodeHealth
    clock: Callable[[], float] = time.time


def application(parts: NodeParts, key: Key) -> Channel:
    """The whole HTTP side as an ASGI application."""
    web = parts.node.web
    assert web is not None
    pages = _Pages(parts)
    routes = [
        Route("/", pages.page, methods=["GET"]),
        Route("/retry", pages.retry, methods=["POST"]),
        Route("/health", pages.health, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
    ]
    if web.stow:
        stow = Stow(parts.node, parts.spool, parts.intake)
        routes += [
            Route(path, stow.store, methods=["POST"]) for path in ("/dicom-web/studies", "/dicom-web/studies/{study}")
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _plain, Exception: _failed})
    return HttpGuard(app, key, [web.host, *web.names])


class _Pages:
    def __init__(self, parts: NodeParts) -> None:
        self._parts, self._forms = parts, Forms()
        self._ledgers = Ledgers(parts.spool.root / LEDGER)
        self._spool_bytes = SpoolSize(parts.spool.root)
        self._checks = partial(checks, parts.vital, parts.intake)
        self._metrics = Metrics(
            parts.counted, self._ledgers, self._checks, self._spool_bytes, parts.spool.free_bytes, parts.clock
        )

    async def health(self, _: Request) -> Response:
        """200 where all parts work, else 503; each part with its reason."""
        found = await run_in_threadpool(self._checks)
        healthy = all(why == OK for why in found.values())
        return JSONResponse({"healthy": healthy, "parts": found}, 200 if healthy else 503, HEADERS)

    async def metrics(self, _: Request) -> Response:
        """Prometheus' text."""
        try:
            text = await run_in_threadpool(self._metrics.text)
        except sqlite3.Error:
            return PlainTextResponse("The ledger cannot be read now.\n", 503, HEADERS)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8", headers=HEADERS)

    async def page(self, request: Request) -> Response:
        """The status page."""
        try:
            text = await run_in_threadpool(self._page, request.query_params)
        except sqlite3.Error:
            return PlainTextResponse("The ledger cannot be read now.\n", 503, HEADERS)
        return HTMLResponse(text, headers=HEADERS | {"Content-Security-Policy": POLICY})

    def _page(self, asked: object) -> str:
        words = dict(asked)  # type: ignore[call-overload]
        parts = self._parts
        told = ""
        if words.get("studies", "").isdecimal() and words.get("results", "").isdecimal():
            told = f"{int(words['studies'][:9])} studies and {int(words['results'][:9])} results are tried again."
        every = words.get("every", "")
        return render(
            PageFacts(
                parts.node.aet,
                self._checks(),
                self._ledgers.overview([one.name for one in parts.node.destinations]),
                self._spool_bytes(),
                parts.spool.free_bytes(),
                parts.clock(),
                self._forms.token,
                told,
                int(every) if every in map(str, EVERY) else 0,
            )
        )

    async def retry(self, request: Request) -> Response:
        """Begin anew with all that is parked; only the page's own form may ask."""
        words = parse_qs((await _body(request)).decode("ascii", "replace"), max_num_fields=10)
        if not self._forms.genuine(words.get("token", [""])[0], request.headers):
            return PlainTextResponse("This form is not the page's own; load the page again.\n", 403, HEADERS)
        studies, results = await run_in_threadpool(retry, self._parts.ledger, self._parts.clock())
        self._parts.counted("retried", studies=studies, results=results)
        return RedirectResponse(f"./?studies={studies}&results={results}", 303, HEADERS)


async def _body(request: Request) -> bytes:
    found = b""
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            async for piece in request.stream():
                found += piece
                if len(found) > _FORM_BYTES:
                    raise HTTPException(413)
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408) from None
    return found


async def _plain(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"{error.detail}\n", error.status_code, {**HEADERS, **(error.headers or {})})


async def _failed(_: Request, error: Exception) -> Response:
    log.error("a web request failed: %s", type(error).__name__)
    return PlainTextResponse("This did not work; the log says more.\n", 500, HEADERS)
