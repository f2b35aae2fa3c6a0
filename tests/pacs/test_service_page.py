"""The monitoring page: its figures, its speed, and what it looks like in a real browser."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import requests
from browser import CHROMIUM, browser
from http_node import HttpNode
from served import NOW, PLANTED, fill, uid

from medopt.core.files import file_digest
from medopt.core.privacy import pseudonym
from medopt.pacs.service_counts import WEEK, starts
from medopt.pacs.service_view import ServiceView
from medopt.pacs.spool import LEDGER
from medopt.pacs.status import LedgerReader
from medopt.release.layout import SUMS


def view_of(folder: Path, release: Path, days: float = 7) -> ServiceView:
    return ServiceView(LedgerReader(folder / "spool" / LEDGER), release, days)


def test_counts_are_those_of_the_period(release: Path, tmp_path: Path) -> None:
    fill(tmp_path, release, 140, 14, declined=0.1)
    summary = view_of(tmp_path, release).summary(NOW)
    assert len(summary.periods) == 12
    assert sum(period.counts.scans for period in summary.periods) == 140
    assert sum(period.counts.declined for period in summary.periods) == 14
    now = summary.now.counts
    assert (now.studies, now.scans, now.median_seconds, now.p95_seconds) == (70, 70, 30, 90)
    assert now.called["blob"] + now.declined < 70 and now.called["blob"] > 10
    assert starts(NOW, WEEK, 1)[0] <= NOW < starts(NOW, WEEK, 1)[0] + WEEK
    assert time.gmtime(starts(NOW, WEEK, 1)[0])[3:7] == (0, 0, 0, 0), "a week begins on Monday at midnight"


def test_the_last_answer_of_a_study_counts(release: Path, tmp_path: Path) -> None:
    fill(tmp_path, release, 20, 5, declined=0)
    with closing(sqlite3.connect(tmp_path / "spool" / LEDGER)) as db:
        db.execute(
            "INSERT INTO answers (study_uid, release, patient, accession, images, record, at) "
            'SELECT study_uid, release, patient, accession, 2, replace(record, \'"declined":""\', '
            '\'"declined":"x"\'), at + 1 FROM answers WHERE study_uid = ?',
            (uid(3),),
        )
        db.commit()
    counts = view_of(tmp_path, release).summary(NOW).now.counts
    assert (counts.studies, counts.scans, counts.declined) == (20, 20, 1)


def test_an_older_ledger_gets_the_table_from_its_answers(release: Path, tmp_path: Path) -> None:
    from medopt.pacs.ledger import Ledger

    fill(tmp_path, release, 30, 5)
    path = tmp_path / "spool" / LEDGER
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("SELECT * FROM served ORDER BY answer").fetchall()
        db.executescript(
            "DROP TRIGGER serve; DROP TABLE served; DROP TABLE alerts; DROP TABLE alert_sends; PRAGMA user_version = 4"
        )
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM served ORDER BY answer").fetchall() == before and len(before) == 30


def test_drift_and_performance_are_those_of_the_commands(release: Path, tmp_path: Path) -> None:
    from medopt.pacs.answer_rows import answer_rows
    from medopt.release.drift_reference import Reference, compare
    from medopt.release.layout import read_info
    from medopt.serving.prediction_table import observed_of
    from medopt.serving.service_performance import performance_of

    fill(tmp_path, release, 60, 6, scanner="Other maker")
    with closing(sqlite3.connect(tmp_path / "spool" / LEDGER)) as db:
        db.executemany(
            "INSERT INTO labels (study_uid, scan, truth, source, at) VALUES (?, '', ?, '', 1)",
            [(uid(number), json.dumps({"blob": number % 2})) for number in range(20)],
        )
        db.commit()
    summary = view_of(tmp_path, release).summary(NOW)
    info, reference = read_info(release), Reference.read(release)
    rows, truth = answer_rows(LedgerReader(tmp_path / "spool" / LEDGER), file_digest(release / SUMS), info.labels)
    observed = observed_of(rows, info.labels)
    assert list(summary.now.shifts.values()) == compare(reference, observed)
    assert summary.performance is not None
    assert summary.performance == performance_of(info, reference, rows, observed, truth, "")
    assert summary.performance.findings["blob"].labelled > 10
    (last,) = [period for period in summary.periods if period.counts.scans > 30]
    assert 0 < (last.expected["sensitivity"].low or 0) < (last.expected["sensitivity"].high or 0) <= 1


@pytest.mark.long
def test_hundred_thousand_answers_take_well_under_a_second(release: Path, tmp_path: Path) -> None:
    fill(tmp_path, release, 100_000, 84)
    view, took = view_of(tmp_path, release), []
    for later in (0.0, 61.0, 62.0):
        began = time.process_time()  # other work on the machine does not count
        summary = view.summary(NOW + later)
        took.append(time.process_time() - began)
    assert sum(period.counts.scans for period in summary.periods) > 90_000
    print("first, after a minute, kept:", [f"{seconds:.3f} s" for seconds in took])
    assert took[1] < 0.5 and took[2] < 0.01, took


def served_node(
    start: Callable[..., HttpNode], tmp_path: Path, release: Path, studies: int = 90, **changes: object
) -> HttpNode:
    """A node with answers until its clock's time, 2000 s after 1970."""
    fill(tmp_path, release, studies, 60, until=2000.0)
    return start(release=release, **changes)


def test_the_page_names_no_study_and_says_small_counts(
    start_http_node: Callable[..., HttpNode], tmp_path: Path, release: Path
) -> None:
    node = served_node(start_http_node, tmp_path, release)
    for query in ("", "?by=day", "?by=<script>"):
        answer = requests.get(f"{node.url}/monitoring{query}", timeout=60)
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
        text = answer.text
        assert PLANTED not in text and "PLANTED" not in text and "<script" not in text
        names = {pseudonym(f"{uid(number)}{more}") for number in range(90) for more in ("", ".1")}
        names |= {pseudonym(f"PLANTED-MRN{number}") for number in range(90)} | {pseudonym("PLANTED-ACC")}
        assert not [name for name in names if name in text]
    assert re.search("Only 1[01] scans", text) and re.search("[0-9] of 1[01]<", text)
    assert "no section alerts" in text


def test_a_node_without_answers_or_release_has_a_page(start_http_node: Callable[..., HttpNode]) -> None:
    text = requests.get(f"{start_http_node().url}/monitoring", timeout=60).text
    assert "is not a release" in text or "cannot be read" in text
    assert "The last 7 days" in text


def test_the_page_needs_the_key(start_http_node: Callable[..., HttpNode], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef-key")
    node = start_http_node(web={"key_file": tmp_path / "key"})
    assert requests.get(f"{node.url}/monitoring", timeout=60).status_code == 401


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_page_in_a_browser(start_http_node: Callable[..., HttpNode], tmp_path: Path, release: Path) -> None:
    node = served_node(start_http_node, tmp_path, release, 900, alerts={"webhook": {"url": "http://127.0.0.1:9/x"}})
    with closing(sqlite3.connect(tmp_path / "spool" / LEDGER)) as db:
        db.execute("INSERT INTO alerts VALUES ('declined', 1500.0)")
        db.commit()
    with browser(tmp_path / "profile", 1200, 2600) as page:
        page.watch()
        page.open(f"{node.url}/monitoring")
        page.shows("1 alert is on", "declined, since 1970-01-01", "Over time", "Drift from validation", "Performance")
        assert page.barriers() == []
        assert page.run("document.querySelectorAll('figure svg rect').length") > 50
        page.size(400, 900)
        assert page.run("document.documentElement.scrollWidth") <= 400
        assert page.said == []
        foreign = [one for one in page.requests if not re.match(f"data:|{re.escape(node.url)}/", one)]
        assert foreign == []
        page.click("document.querySelector('a[href=\"monitoring?by=day\"]')")
        page.shows("by day · by week")
        assert page.barriers() == []
