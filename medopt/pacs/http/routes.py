"""The routes of the HTTP port: status page, retry, health, metrics and STOW-RS."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from medopt.pacs.alert_queue import active_alerts
from medopt.pacs.alert_rules import queue_of
from medopt.pacs.audit import CountingAudit, Rejections
from medopt.pacs.http.middleware import Channel, FormToken, HttpGuard
from medopt.pacs.http.monitoring import OK, Metrics, NodeHealth, SpoolSize, check_parts
from medopt.pacs.http.page import REFRESH_SECONDS, PageContent, render
from medopt.pacs.http.service_page import ServiceContent, render_service
from medopt.pacs.http.stow import StowService
from medopt.pacs.intake import Intake
from medopt.pacs.ledger import Ledger
from medopt.pacs.service_counts import DAY, WEEK
from medopt.pacs.service_view import FRESH_SECONDS, KEPT_SECONDS, ServiceView, service_view
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import LEDGER, Spool
from medopt.pacs.status import LedgerReader, retry_parked
from medopt.serving.server.auth import Key
from medopt.serving.server.html_page import HEADERS, PAGE_HEADERS

log = logging.getLogger("medopt.pacs")
_MAX_FORM_BYTES, _FORM_SECONDS = 4096, 10.0
_LEDGER_UNREADABLE = "The ledger cannot be read now.\n"


@dataclass(frozen=True, slots=True)
class NodeParts:
    """The parts of a running node that its HTTP side uses."""

    settings: NodeSettings
    spool: Spool
    ledger: Ledger
    intake: Intake
    audit: CountingAudit
    health: NodeHealth
    clock: Callable[[], float] = time.time
    view: ServiceView | None = None
    """The figures of the monitoring page, where a running node keeps them ready."""


def application(parts: NodeParts, key: Key) -> Channel:
    """The HTTP side as an ASGI application."""
    web = parts.settings.web
    assert web is not None
    pages, rejected = _Pages(parts), Rejections(parts.audit).record

    async def plain_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code not in (404, 405):
            rejected(f"an HTTP request was answered {error.status_code}: {error.detail}")
        return PlainTextResponse(f"{error.detail}\n", error.status_code, {**HEADERS, **(error.headers or {})})

    routes = [
        Route("/", pages.page, methods=["GET"]),
        Route("/monitoring", pages.monitoring, methods=["GET"]),
        Route("/retry", pages.retry, methods=["POST"]),
        Route("/health", pages.health, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
    ]
    if web.stow:
        stow = StowService(parts.settings, parts.spool, parts.intake, rejected)
        routes += [
            Route(path, stow.store, methods=["POST"]) for path in ("/dicom-web/studies", "/dicom-web/studies/{study}")
        ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: plain_error, Exception: _unexpected_error})
    return HttpGuard(app, key, [web.host, *web.names], rejected)


class _Pages:
    def __init__(self, parts: NodeParts) -> None:
        self._parts, self._form_token = parts, FormToken()
        self._ledger_reader = LedgerReader(parts.spool.root / LEDGER)
        self._view = parts.view or service_view(parts.settings, self._ledger_reader)
        self._spool_size = SpoolSize(parts.spool.root)
        self._check_parts = partial(check_parts, parts.health, parts.intake, parts.clock)
        self._metrics = Metrics(
            parts.audit, self._ledger_reader, self._check_parts, self._spool_size, parts.spool.free_bytes, parts.clock,
            parts.health.comparison, parts.health.candidate,
        )  # fmt: skip

    async def health(self, _: Request) -> Response:
        """200 if all parts work, else 503; each part with its reason."""
        checks = await run_in_threadpool(self._check_parts)
        healthy = all(state == OK for state in checks.values())
        content: dict[str, object] = {"healthy": healthy, "parts": checks}
        comparison = self._parts.health.comparison()
        if comparison is not None:
            now, succeeded = self._parts.clock(), comparison.succeeded
            content["last_comparison"] = {
                "seconds_ago": None if succeeded is None else round(now - succeeded, 1), "failure": comparison.reason
            }  # fmt: skip
        candidate = self._parts.health.candidate()
        if candidate is not None:
            state = OK if candidate == OK else "it does not answer: see the page or the log"  # here without a key
            content["shadow"] = {"candidate": state, **await run_in_threadpool(self._trials)}
        return JSONResponse(content, 200 if healthy else 503, HEADERS)

    def _trials(self) -> Mapping[str, int]:
        try:
            return self._ledger_reader.overview([], limit=0).trials
        except sqlite3.Error:
            return {}

    async def metrics(self, _: Request) -> Response:
        """The metrics in Prometheus' text format."""
        try:
            text = await run_in_threadpool(self._metrics.text)
        except sqlite3.Error:
            return PlainTextResponse(_LEDGER_UNREADABLE, 503, HEADERS)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8", headers=HEADERS)

    async def page(self, request: Request) -> Response:
        """The status page."""
        return await _html(self._render, request.query_params)

    async def monitoring(self, request: Request) -> Response:
        """The release in service over time."""
        return await _html(self._render_monitoring, request.query_params)

    def _render_monitoring(self, query: Mapping[str, str]) -> str:
        now, length = self._parts.clock(), DAY if query.get("by") == "day" else WEEK
        fresh = FRESH_SECONDS if self._parts.view is None else KEPT_SECONDS
        summary, reader = self._view.summary(now, length, fresh), self._ledger_reader
        settings = self._parts.settings
        return render_service(
            ServiceContent(
                settings.aet, length == DAY, summary, queue_of(reader), now, settings.alerts, active_alerts(reader)
            )
        )

    def _render(self, query: Mapping[str, str]) -> str:
        parts, refresh = self._parts, query.get("every", "")
        studies, results = query.get("studies", ""), query.get("results", "")
        message = ""
        if studies.isdecimal() and results.isdecimal():
            message = f"{int(studies[:9])} studies and {int(results[:9])} results are tried again."
        return render(
            PageContent(
                parts.settings.aet,
                self._check_parts(),
                self._ledger_reader.overview([peer.name for peer in parts.settings.destinations]),
                self._spool_size(),
                parts.spool.free_bytes(),
                parts.clock(),
                self._form_token.value,
                message,
                int(refresh) if refresh in map(str, REFRESH_SECONDS) else 0,
                parts.health.candidate(),
            )
        )

    async def retry(self, request: Request) -> Response:
        """Try everything that is parked again; only the page's own form may request it."""
        try:
            form = parse_qs((await _form_body(request)).decode("ascii", "replace"), max_num_fields=10)
        except ValueError:  # more fields than the page's own form has
            form = {}
        if not self._form_token.is_valid(form.get("token", [""])[0], request.headers):
            raise HTTPException(403, "This form is not the page's own; load the page again.")
        studies, results = await run_in_threadpool(retry_parked, self._parts.ledger, self._parts.clock())
        self._parts.audit("retried", studies=studies, results=results)
        return RedirectResponse(f"./?studies={studies}&results={results}", 303, HEADERS)


async def _html(render: Callable[[Mapping[str, str]], str], query: Mapping[str, str]) -> Response:
    try:
        text = await run_in_threadpool(render, query)
    except sqlite3.Error:
        return PlainTextResponse(_LEDGER_UNREADABLE, 503, HEADERS)
    return HTMLResponse(text, headers=PAGE_HEADERS)


async def _form_body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(_FORM_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_FORM_BYTES:
                    raise HTTPException(413)
    except (TimeoutError, ClientDisconnect):
        raise HTTPException(408) from None
    return body


async def _unexpected_error(_: Request, error: Exception) -> Response:
    log.error("a web request failed: %s", type(error).__name__)
    return PlainTextResponse("The request failed; the log says more.\n", 500, HEADERS)
