"""Comparing with a source that cuts its lists, has odd UIDs, or never ends: what is not compared is said."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from http_node import HttpNode
from ports import free_port
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind as Find,
)
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelMove as Move,
)

from medopt.pacs.http.http_server import HttpServer
from medopt.pacs.http.monitoring import NodeHealth
from medopt.pacs.http.routes import NodeParts
from medopt.pacs.query_retrieve.periodic import PeriodicPull, open_source
from medopt.pacs.query_retrieve.reconcile import Reconciler, Reconciliation
from medopt.pacs.spool import LEDGER

SINCE = date(2026, 1, 1)


@dataclass
class Qido:
    """A service with `count` studies of one instance, which gives `most` entries of a list at a time."""

    count: int
    most: int
    warn: bool = True
    offset: bool = True
    odd: tuple[int, ...] = ()
    """Studies whose UID is not valid."""
    port: int = 0
    broken: str = ""
    """A study whose series are answered with 500."""

    def rows(self, path: str) -> list[dict[str, Any]]:
        def row(tag: str, uid: str) -> dict[str, Any]:
            return {tag: {"vr": "UI", "Value": [uid]}, "00080060": {"vr": "CS", "Value": ["DX"]}}

        if match := re.search(r"/studies/([\d.]+)/series/([\d.]+)/instances$", path):
            return [row("00080018", f"{match[2]}.1")]
        if match := re.search(r"/studies/([\d.]+)/series$", path):
            return [row("0020000E", f"{match[1]}.1")]
        return [row("0020000D", f"1.2.{'0' if n in self.odd else ''}{n + 1}") for n in range(self.count)]


@contextmanager
def running(service: Qido) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            if service.broken and f"/{service.broken}/" in parts.path:
                self.send_response(500)
                self.end_headers()
                return
            first = int(query["offset"][0]) if service.offset else 0
            rows = service.rows(parts.path)[first:]
            page = rows[: min(service.most, int(query["limit"][0]))]
            self.send_response(200 if page else 204)
            if service.warn and len(page) < len(rows):
                self.send_header("Warning", '299 fake "There are more results"')
            self.end_headers()
            self.wfile.write(json.dumps(page).encode() if page else b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def look(start_http_node: Callable[..., HttpNode], service: Qido) -> Reconciliation:
    with running(service) as url:
        node = start_http_node(pull={"source": {"url": url}, "modalities": ["DX"]})
        with open_source(node.settings, lambda *_: None, lambda: False) as source:
            reconciler = Reconciler(node.settings.spool / LEDGER, ["DX"])
            return reconciler.reconcile(source, SINCE, lambda: False, fetch=False)


@pytest.mark.parametrize("warn", [True, False])
def test_pages_shorter_than_asked_for_are_not_the_end(start_http_node: Callable[..., HttpNode], warn: bool) -> None:
    outcome = look(start_http_node, Qido(250, most=100, warn=warn))
    assert (outcome.studies, outcome.missing, outcome.not_compared) == (250, 250, {})


def test_a_list_that_is_cut_off_is_said(start_http_node: Callable[..., HttpNode]) -> None:
    outcome = look(start_http_node, Qido(250, most=100, offset=False))
    assert outcome.studies == 100
    (reason,) = outcome.not_compared
    assert "cuts its list off" in reason
    whole = look(start_http_node, Qido(90, most=100, offset=False))
    assert (whole.studies, whole.not_compared) == (90, {})


def test_a_uid_that_is_not_taken_is_said(start_http_node: Callable[..., HttpNode]) -> None:
    outcome = look(start_http_node, Qido(5, most=2, odd=(1, 3)))
    assert outcome.studies == 3
    assert outcome.not_compared == {"a study without a valid UID (PS3.5 9.1)": 2}


def test_one_study_that_fails_does_not_end_the_comparison(start_http_node: Callable[..., HttpNode]) -> None:
    outcome = look(start_http_node, Qido(3, most=100, broken="1.2.2"))
    assert (outcome.studies, outcome.missing) == (3, 2)
    assert outcome.not_compared == {"a study of which the service answered HTTP 500": 1}


class Endless:
    """A PACS with one missing instance that answers pending for ever: at the move, or at once."""

    def __init__(self, at: str) -> None:
        self.port, self.at, self.moves = free_port(), at, 0
        ae = AE("ENDLESS")
        ae.add_supported_context(Find)
        ae.add_supported_context(Move)
        handlers: list[Any] = [(evt.EVT_C_FIND, self._find), (evt.EVT_C_MOVE, self._move)]
        self._server: Any = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset]]:
        answer = Dataset()
        answer.QueryRetrieveLevel = level = event.identifier.QueryRetrieveLevel
        answer.Modality = "DX"
        keyword = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        setattr(answer, keyword, f"1.2.3.{len(level)}")
        yield 0xFF00, answer
        while self.at == "find" and event.assoc.is_established:
            time.sleep(0.05)
            yield 0xFF00, answer

    def _move(self, event: Any) -> Iterator[Any]:
        self.moves += 1
        yield "127.0.0.1", 1
        yield 1
        while event.assoc.is_established:
            time.sleep(0.05)
            yield 0xFF00, None

    def close(self) -> None:
        self._server.shutdown()


class EndlessMove(Endless):
    """Pynetdicom's C-MOVE provider wants a peer to send to, so that its pending responses are written here."""

    def _move(self, event: Any) -> Iterator[Any]:
        from pynetdicom.dimse_primitives import C_MOVE

        self.moves += 1
        while event.assoc.is_established:
            pending = C_MOVE()
            pending.MessageIDBeingRespondedTo = event.request.MessageID
            pending.AffectedSOPClassUID = event.request.AffectedSOPClassUID
            pending.Status = 0xFF00
            pending.NumberOfRemainingSuboperations = 1
            event.assoc.dimse.send_msg(pending, event.context.context_id)
            time.sleep(0.05)
        yield None


@pytest.fixture(params=["find", "move"])
def endless(request: pytest.FixtureRequest) -> Iterator[Endless]:
    peer = EndlessMove(request.param)
    yield peer
    peer.close()


def test_a_source_that_is_pending_for_ever_is_ended_and_tried_anew(
    start_http_node: Callable[..., HttpNode], endless: Endless
) -> None:
    source = {"aet": "ENDLESS", "host": "127.0.0.1", "port": endless.port}
    pull = {"source": source, "modalities": ["DX"], "every_minutes": 0.005, "operation_minutes": 0.01}
    node, stop = start_http_node(pull=pull), threading.Event()
    periodic = PeriodicPull(node.settings, node.spool, node.intake, node.audit, stop)
    periodic.start()
    failed = ("not reconciled", "the source answered `pending` for too long (pull.operation_minutes)")
    until, reasons = time.monotonic() + 120, set()
    while time.monotonic() < until and (
        endless.moves < 2 if endless.at == "move" else node.audit.counts().get(failed, 0) < 2
    ):
        time.sleep(0.05)
        reasons.add(periodic.last.reason)  # what /health shows as the failure
    stop.set()
    periodic.join()
    if endless.at == "move":
        assert endless.moves >= 2
        assert sum(n for (event, _), n in node.audit.counts().items() if event == "reconciled") >= 1
    else:
        assert node.audit.counts()[failed] >= 2
    assert any("pending" in reason for reason in reasons)


def test_health_and_metrics_say_when_it_was_compared_last(start_http_node: Callable[..., HttpNode]) -> None:
    nowhere = {"aet": "NOBODY", "host": "127.0.0.1", "port": free_port()}
    pull = {"source": nowhere, "modalities": ["DX"], "every_minutes": 1, "operation_minutes": 1}
    node = start_http_node(pull=pull, web={"port": free_port()})
    now = [1000.0]
    periodic = PeriodicPull(node.settings, node.spool, node.intake, node.audit, threading.Event(), lambda: now[0])
    health = NodeHealth(lambda: True, lambda: True, lambda: False, lambda: periodic.last)
    node.server.stop()
    node.server = HttpServer(
        NodeParts(node.settings, node.spool, node.ledger, node.intake, node.audit, health, lambda: now[0])
    )
    url = node.server.start()
    periodic._reconcile()
    fresh = requests.get(f"{url}/health", timeout=60)
    assert fresh.json()["parts"]["source"] == "ok"  # there is time left to try again
    assert fresh.json()["last_comparison"] == {"seconds_ago": None, "failure": "the source is not reached"}
    now[0] += 600
    late = requests.get(f"{url}/health", timeout=60)
    assert late.status_code == 503
    assert late.json()["parts"]["source"] == "not compared with the source for 10 minutes: the source is not reached"
    assert 'medopt_pacs_comparison_age_seconds{what="success"} 600.0' in requests.get(f"{url}/metrics", timeout=60).text
