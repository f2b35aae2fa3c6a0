"""The node's page, health and metrics: over HTTP, and in a real browser."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from browser import CHROMIUM, browser
from http_node import HttpNode
from peers import radiograph, send
from prometheus_client.parser import text_string_to_metric_families
from pydicom import dcmread

from medopt.core.errors import ConfigError
from medopt.core.privacy import pseudonym
from medopt.pacs.status import state_counts

KEY = "0123456789abcdef-key"


def metrics(node: HttpNode) -> dict[tuple[str, ...], float]:
    text = requests.get(f"{node.url}/metrics", timeout=60).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_health_names_what_does_not_work(start_http_node: Callable[..., HttpNode]) -> None:
    node = start_http_node()
    answer = requests.get(f"{node.url}/health", timeout=60)
    assert (answer.status_code, answer.json()["healthy"]) == (200, True)
    node.worker_is_up = False
    node.receiver.stop()
    answer = requests.get(f"{node.url}/health", timeout=60)
    wrong = {part for part, why in answer.json()["parts"].items() if why != "ok"}
    assert (answer.status_code, wrong) == (503, {"receiver", "worker"})


def test_health_knows_a_full_disk(start_http_node: Callable[..., HttpNode]) -> None:
    answer = requests.get(f"{start_http_node(limits={'free_mb': 10**9}).url}/health", timeout=60)
    assert (answer.status_code, "nearly full" in answer.json()["parts"]["disk"]) == (503, True)


def test_a_candidate_that_does_not_answer_is_said_and_leaves_the_node_healthy(
    start_http_node: Callable[..., HttpNode],
) -> None:
    node = start_http_node()
    assert "shadow" not in requests.get(f"{node.url}/health", timeout=60).json()
    node.candidate = "/srv/candidate is not a release: <there> is no release.json in it."
    answer = requests.get(f"{node.url}/health", timeout=60)
    assert (answer.status_code, answer.json()["healthy"]) == (200, True)
    assert "does not answer" in answer.json()["shadow"]["candidate"] and "/srv" not in answer.text
    page = requests.get(f"{node.url}/", timeout=60).text
    assert "/srv/candidate is not a release: &lt;there&gt;" in page and "The node itself is not affected" in page
    assert metrics(node)["medopt_pacs_shadow_up",] == 0
    node.candidate = "ok"
    assert metrics(node)["medopt_pacs_shadow_up",] == 1


def test_how_far_a_candidate_is_behind_is_shown(start_http_node: Callable[..., HttpNode]) -> None:
    node = start_http_node()
    node.candidate = "ok"
    assert not any("trial" in key for key in metrics(node))
    assert "has waited longest for the candidate" not in requests.get(f"{node.url}/", timeout=60).text
    with node.ledger.transaction() as db:  # the node's clock stands at 2000
        for number, (state, at) in enumerate([("waiting", 800), ("waiting", 500), ("skipped", 100)]):
            db.execute("INSERT INTO studies (uid, state, reason, changed) VALUES (?, 'done', '', 1)", (f"1.{number}",))
            db.execute(
                "INSERT INTO answers (id, study_uid, release, patient, accession, images, record, at) "
                "VALUES (?, ?, 'r', 'p', 'a', 1, '{}', 1)",
                (number, f"1.{number}"),
            )
            db.execute(
                "INSERT INTO trials (answer, candidate, state, reason, at) VALUES (?, 'c', ?, '', ?)",
                (number, state, at),
            )
    assert metrics(node)["medopt_pacs_oldest_waiting_seconds", "trial"] == 1500
    assert metrics(node)["medopt_pacs_shadow_studies", "waiting"] == 2
    assert "waited longest for the candidate has waited for 25 min" in requests.get(f"{node.url}/", timeout=60).text


def test_metrics_count_what_happened(start_http_node: Callable[..., HttpNode], tmp_path: Path) -> None:
    node = start_http_node()
    scan = dcmread(radiograph(tmp_path / "1.dcm"))
    changed = dcmread(radiograph(tmp_path / "1.dcm"))
    changed.SeriesDescription = "changed"
    assert send(node.settings.port, [scan, changed]) == [0, 0x0111]
    before = metrics(node)
    node.add_studies()
    after = metrics(node)
    refused = ("medopt_pacs_refused_total", "another instance with this UID is here already")
    assert (before["medopt_pacs_received_total",], before[refused]) == (1, 1)
    assert before["medopt_pacs_studies", "receiving"] == 1
    for state in ("done", "declined", "parked"):
        assert after["medopt_pacs_studies", state] == 1
    assert (after["medopt_pacs_sends", "sent"], after["medopt_pacs_sends", "parked"]) == (1, 1)
    assert after["medopt_pacs_oldest_waiting_seconds", "study"] == 1000
    assert after["medopt_pacs_spool_bytes",] > 1000
    assert after["medopt_pacs_result_seconds_count",] == 0  # it was confirmed before this node began to count
    text = requests.get(f"{node.url}/metrics", timeout=60).text
    for word in (scan.PatientID, scan.StudyInstanceUID, scan.SOPInstanceUID, "1.2.3.0", pseudonym("1.2.3.0")):
        assert str(word) not in text


def test_the_wait_for_results_is_measured_once(start_http_node: Callable[..., HttpNode], monkeypatch: Any) -> None:
    node = start_http_node()
    metrics(node)
    node.add_studies()
    (sent,) = node.ledger.rows("SELECT sop_uid FROM sends WHERE state = 'sent'")
    with node.ledger.transaction() as db:  # confirmed only now: the node's clock stands at 2000
        db.execute("UPDATE sends SET due = 2042 WHERE sop_uid = ?", (sent["sop_uid"],))
    for _ in range(2):
        after = metrics(node)
    assert (after["medopt_pacs_result_seconds_count",], after["medopt_pacs_result_seconds_sum",]) == (1, 1042)


def test_the_page_escapes_and_has_no_identifier(start_http_node: Callable[..., HttpNode]) -> None:
    node = start_http_node()
    node.add_studies()
    text = requests.get(f"{node.url}/", timeout=60).text
    assert "&lt;b&gt;it&lt;/b&gt; ended" in text
    assert "1.2.3." not in text
    assert pseudonym("1.2.3.2") in text


def test_retry_requires_the_pages_own_form(start_http_node: Callable[..., HttpNode]) -> None:
    node = start_http_node()
    node.add_studies()
    match = re.search(r'name="token" value="(\w+)"', requests.get(f"{node.url}/", timeout=60).text)
    assert match is not None
    token = match[1]

    def retry(token: str, **headers: str) -> int:
        return requests.post(
            f"{node.url}/retry", data={"token": token}, headers=headers, timeout=60, allow_redirects=False
        ).status_code

    assert requests.get(f"{node.url}/retry", timeout=60).status_code == 405
    assert (retry("x"), retry(token, Origin="http://elsewhere")) == (403, 403)
    assert retry(token, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert state_counts(node.ledger)["studies"]["parked"] == 1
    assert requests.post(f"{node.url}/retry", data=b"x" * 10_000, timeout=60).status_code == 413
    assert retry(token, Origin=node.url) == 303
    assert "parked" not in state_counts(node.ledger)["studies"]


def test_a_request_for_another_host_name_is_refused(start_http_node: Callable[..., HttpNode]) -> None:
    node = start_http_node(web={"names": ["pacs-ai.hospital"]})
    statuses = [
        requests.get(f"{node.url}/", headers={"Host": name}, timeout=60).status_code
        for name in ("evil.example:80", "pacs-ai.hospital", "localhost:8043")
    ]
    assert statuses == [421, 200, 200]


def test_a_key_is_required(start_http_node: Callable[..., HttpNode], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    node = start_http_node(web={"key_file": str(tmp_path / "key")})

    def status(path: str = "/", **options: Any) -> int:
        return requests.get(node.url + path, timeout=60, **options).status_code

    assert [status(path) for path in ("/", "/metrics", "/health")] == [401, 401, 200]
    assert requests.post(f"{node.url}/dicom-web/studies", data=b"x" * 1000, timeout=60).status_code == 401
    assert [status(headers={"X-API-Key": KEY}), status(headers={"Authorization": f"Bearer {KEY}"})] == [200, 200]
    assert [status(auth=("anyone", KEY)), status(auth=("anyone", "wrong")), status(auth=(KEY, ""))] == [200, 401, 401]
    with pytest.raises(ConfigError, match="anyone on the network"):
        start_http_node(web={"host": "0.0.0.0"})


@pytest.mark.parametrize("ends", [False, True])
def test_idle_connections_block_nobody_and_end(
    start_http_node: Callable[..., HttpNode], monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    from medopt.pacs.http import http_server

    monkeypatch.setattr(http_server, "_REQUEST_SECONDS", 0.5 if ends else 10**6)
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 5)
    node = start_http_node()
    idle = [socket.create_connection(("127.0.0.1", node.settings.web.port)) for _ in range(10)]  # type: ignore[union-attr]
    idle[-1].sendall(b"GET / HT")
    assert requests.get(f"{node.url}/health", timeout=60).status_code == 200
    for connection in idle if ends else ():
        connection.settimeout(60)
        assert connection.recv(10) == b""
    for connection in idle:
        connection.close()
    assert requests.get(f"{node.url}/health", timeout=60).status_code == 200


def test_a_port_that_is_taken(start_http_node: Callable[..., HttpNode]) -> None:
    node = start_http_node()
    with pytest.raises(ConfigError, match="its section web"):
        start_http_node(web={"port": node.settings.web.port})  # type: ignore[union-attr]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_in_a_real_browser(start_http_node: Callable[..., HttpNode], tmp_path: Path) -> None:
    node = start_http_node()
    node.add_studies()
    with browser(tmp_path / "profile") as page:
        page.watch()
        page.size(400, 800)  # a telephone: only the tables may be wider
        page.open(f"{node.url}/")
        page.shows("Try all parked again")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.barriers() == []
        # the policy allows the style
        assert page.run("getComputedStyle(document.querySelector('button')).minHeight") == "44px"
        assert {url for url in page.requests if not url.startswith("data:")} == {f"{node.url}/"}
        roles = page.tree()
        assert ("button", "Try all parked again") in roles
        assert {"heading", "table", "columnheader", "main"} <= {role for role, _ in roles}
        page.click("document.querySelector('button')")
        page.shows("1 studies and 1 results are tried again")
        assert state_counts(node.ledger)["studies"] == {"declined": 1, "done": 1, "ready": 1}
        assert page.said == []
