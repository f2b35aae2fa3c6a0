"""The node's page, health and metrics: over HTTP, and looked at by a real browser."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from browser import CHROMIUM, browser
from peers import radiograph, send
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread
from web_side import WebSide

from medopt.core.errors import ConfigError
from medopt.core.privacy import pseudonym
from medopt.pacs.queue_status import counts

KEY = "0123456789abcdef-key"


def metrics(node: WebSide) -> dict[tuple[str, ...], float]:
    text = requests.get(f"{node.url}/metrics", timeout=5).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_says_what_does_not_work(side: Callable[..., WebSide]) -> None:
    node = side()
    answer = requests.get(f"{node.url}/health", timeout=5)
    assert (answer.status_code, answer.json()["healthy"]) == (200, True)
    node.worker = False
    node.receiver.stop()
    answer = requests.get(f"{node.url}/health", timeout=5)
    wrong = {part for part, why in answer.json()["parts"].items() if why != "ok"}
    assert (answer.status_code, wrong) == (503, {"receiver", "worker"})


def test_health_knows_a_full_disk(side: Callable[..., WebSide]) -> None:
    answer = requests.get(f"{side(limits={'free_mb': 10**9}).url}/health", timeout=5)
    assert (answer.status_code, "nearly full" in answer.json()["parts"]["disk"]) == (503, True)


def test_metrics_count_what_happened(side: Callable[..., WebSide], tmp_path: Path) -> None:
    node = side()
    scan = dcmread(radiograph(tmp_path / "1.dcm"))
    changed = dcmread(radiograph(tmp_path / "1.dcm"))
    changed.SeriesDescription = "changed"
    assert send(node.node.port, [scan, changed]) == [0, 0x0111]
    before = metrics(node)
    node.busy()
    found = metrics(node)
    refused = ("medopt_pacs_refused_total", "another instance with this UID is here already")
    assert (before["medopt_pacs_received_total",], before[refused]) == (1, 1)
    assert before["medopt_pacs_studies", "receiving"] == 1
    for state in ("done", "declined", "parked"):
        assert found["medopt_pacs_studies", state] == 1
    assert (found["medopt_pacs_sends", "sent"], found["medopt_pacs_sends", "parked"]) == (1, 1)
    assert found["medopt_pacs_oldest_waiting_seconds", "study"] == 1000
    assert found["medopt_pacs_spool_bytes",] > 1000
    assert found["medopt_pacs_result_seconds_count",] == 0  # it was confirmed before this node began to count
    text = requests.get(f"{node.url}/metrics", timeout=5).text
    for word in (scan.PatientID, scan.StudyInstanceUID, scan.SOPInstanceUID, "1.2.3.0", pseudonym("1.2.3.0")):
        assert str(word) not in text


def test_the_wait_for_results_is_measured_once(side: Callable[..., WebSide], monkeypatch: Any) -> None:
    node = side()
    metrics(node)
    node.busy()
    (sent,) = node.ledger.rows("SELECT sop_uid FROM sends WHERE state = 'sent'")
    with node.ledger.change() as db:  # confirmed only now: the node's clock stands at 2000
        db.execute("UPDATE sends SET due = 2042 WHERE sop_uid = ?", (sent["sop_uid"],))
    for _ in range(2):
        found = metrics(node)
    assert (found["medopt_pacs_result_seconds_count",], found["medopt_pacs_result_seconds_sum",]) == (1, 1042)


def test_the_page_escapes_and_has_no_identifier(side: Callable[..., WebSide]) -> None:
    node = side()
    node.busy()
    text = requests.get(f"{node.url}/", timeout=5).text
    assert "&lt;b&gt;it&lt;/b&gt; ended" in text
    assert "1.2.3." not in text
    assert pseudonym("1.2.3.2") in text


def test_retry_wants_the_pages_own_form(side: Callable[..., WebSide]) -> None:
    node = side()
    node.busy()
    found = re.search(r'name="token" value="(\w+)"', requests.get(f"{node.url}/", timeout=5).text)
    assert found is not None
    token = found[1]

    def retry(word: str, **headers: str) -> int:
        return requests.post(
            f"{node.url}/retry", data={"token": word}, headers=headers, timeout=5, allow_redirects=False
        ).status_code

    assert requests.get(f"{node.url}/retry", timeout=5).status_code == 405
    assert (retry("x"), retry(token, Origin="http://elsewhere")) == (403, 403)
    assert retry(token, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert counts(node.ledger)["studies"]["parked"] == 1
    assert requests.post(f"{node.url}/retry", data=b"x" * 10_000, timeout=5).status_code == 413
    assert retry(token, Origin=node.url) == 303
    assert "parked" not in counts(node.ledger)["studies"]


def test_a_name_that_is_not_ours_is_not_answered(side: Callable[..., WebSide]) -> None:
    node = side(web={"names": ["pacs-ai.hospital"]})
    found = [
        requests.get(f"{node.url}/", headers={"Host": name}, timeout=5).status_code
        for name in ("evil.example:80", "pacs-ai.hospital", "localhost:8043")
    ]
    assert found == [421, 200, 200]


def test_a_key_is_asked_for(side: Callable[..., WebSide], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    node = side(web={"key_file": str(tmp_path / "key")})

    def asked(path: str = "/", **more: Any) -> int:
        return requests.get(node.url + path, timeout=5, **more).status_code

    assert [asked(path) for path in ("/", "/metrics", "/health")] == [401, 401, 200]
    assert requests.post(f"{node.url}/dicom-web/studies", data=b"x" * 1000, timeout=5).status_code == 401
    assert [asked(headers={"X-API-Key": KEY}), asked(headers={"Authorization": f"Bearer {KEY}"})] == [200, 200]
    assert [asked(auth=("anyone", KEY)), asked(auth=("anyone", "wrong")), asked(auth=(KEY, ""))] == [200, 401, 401]
    with pytest.raises(ConfigError, match="anybody in the network"):
        side(web={"host": "0.0.0.0"})


def test_idle_connections_end(side: Callable[..., WebSide], monkeypatch: pytest.MonkeyPatch) -> None:
    from medopt.pacs.http import http_server

    monkeypatch.setattr(http_server, "_GREETING_SECONDS", 0.5)
    monkeypatch.setattr(http_server, "CONNECTIONS", 5)
    node = side()
    idle = [socket.create_connection(("127.0.0.1", node.node.web.port)) for _ in range(10)]  # type: ignore[union-attr]
    idle[-1].sendall(b"GET / HT")
    assert requests.get(f"{node.url}/health", timeout=0.4).status_code == 200  # they keep nobody out
    time.sleep(1)
    for one in idle:
        one.settimeout(1)
        assert one.recv(10) == b""
        one.close()
    assert requests.get(f"{node.url}/health", timeout=5).status_code == 200


def test_a_port_that_is_taken(side: Callable[..., WebSide]) -> None:
    node = side()
    with pytest.raises(ConfigError, match="its section web"):
        side(web={"port": node.node.web.port})  # type: ignore[union-attr]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_in_a_real_browser(side: Callable[..., WebSide], tmp_path: Path) -> None:
    node = side()
    node.busy()
    with browser(tmp_path / "profile") as page:
        page.watch()
        page.size(400, 800)  # a telephone: nothing but the tables may be wider than it
        page.open(f"{node.url}/")
        page.shows("Try all parked again")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        # the style is let in
        assert page.run("getComputedStyle(document.querySelector('button')).minHeight") == "44px"
        assert {url for url in page.requests if not url.startswith("data:")} == {f"{node.url}/"}
        seen = page.tree()
        assert ("button", "Try all parked again") in seen
        assert {"heading", "table", "columnheader", "main"} <= {role for role, _ in seen}
        page.click("document.querySelector('button')")
        page.shows("1 studies and 1 results are tried again")
        assert counts(node.ledger)["studies"] == {"declined": 1, "done": 1, "ready": 1}
        assert page.said == []
