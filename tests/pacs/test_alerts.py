"""Alerts: once when they begin and once when they end, by a real webhook and a real mail server."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import make_certificates
from node_process import NodeProcess, node_file_values, wait_for
from peers import Archive
from pydantic import ValidationError
from served import DAY, NOW, PLANTED, fill, uid
from sinks import MailSink, WebhookSink

from medopt.core.errors import ConfigError
from medopt.core.privacy import pseudonym
from medopt.pacs.alert_queue import active_alerts
from medopt.pacs.alert_settings import AlertSettings, Webhook
from medopt.pacs.audit import AuditFile, verify
from medopt.pacs.ledger import Ledger
from medopt.pacs.service_monitor import ServiceMonitor
from medopt.pacs.service_view import service_view
from medopt.pacs.settings import NodeSettings, load_node_settings
from medopt.pacs.spool import AUDIT, LEDGER
from medopt.pacs.status import LedgerReader

SECRET = "Bearer c29tZXRoaW5n-secret"


@pytest.fixture
def webhook() -> Iterator[WebhookSink]:
    sink = WebhookSink()
    yield sink
    sink.close()


@pytest.fixture
def mail() -> Iterator[MailSink]:
    sink = MailSink()
    yield sink
    sink.close()


class Watched:
    """A monitor without its thread, whose clock a test sets."""

    def __init__(self, folder: Path, release: Path, **alerts: Any) -> None:
        self.folder, self.now = folder, NOW
        self.settings = NodeSettings.model_validate(
            {
                "aet": "MEDOPT", "release": release, "spool": folder / "spool",
                "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
                "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": 104}],
                "alerts": {"drift": None, "waiting_minutes": None, "parked": None} | alerts,
            }
        )  # fmt: skip
        self.ledger = Ledger(folder / "spool" / LEDGER)
        self.audit = AuditFile(folder / "spool" / AUDIT, lambda: self.now)
        self.restart()

    def restart(self) -> None:
        view = service_view(self.settings, LedgerReader(self.folder / "spool" / LEDGER))
        stop = threading.Event()
        self.monitor = ServiceMonitor(self.settings, view, self.ledger, self.audit, stop, lambda: self.now)

    def look(self, later: float = 0) -> None:
        self.now += later
        self.monitor.look()
        self.monitor.send_due()

    def close(self) -> None:
        self.audit.close()
        self.ledger.close()

    def audited(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "spool" / AUDIT).read_text().splitlines()]


@pytest.fixture
def watch(tmp_path: Path, release: Path) -> Iterator[Callable[..., Watched]]:
    opened: list[Watched] = []

    def create(**alerts: Any) -> Watched:
        opened.append(Watched(tmp_path, release, **alerts))
        return opened[-1]

    yield create
    for one in opened:
        one.close()


def test_an_alert_is_sent_once_when_it_begins_and_once_when_it_ends(
    watch: Callable[..., Watched], webhook: WebhookSink, mail: MailSink, tmp_path: Path, release: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    fill(tmp_path, release, 60, 6, declined=0.5)
    (tmp_path / "secret").write_text(SECRET)
    node = watch(
        webhook={"url": webhook.url, "headers": {"Authorization": {"file": tmp_path / "secret"}}},
        email={
            "host": "127.0.0.1", "port": mail.port, "starttls": False, "sender": "node@clinic.example",
            "to": ["a@clinic.example", "b@clinic.example"],
        },
    )  # fmt: skip
    node.look()
    node.look(300)
    node.restart()
    node.look(300)
    (begun,) = webhook.bodies()
    assert (begun["alert"], begun["state"], begun["node"]) == ("declined", "begins", "MEDOPT")
    assert "declined 50% of 60 scans in the last 7 days (limit 20%)" in begun["text"]
    assert webhook.requests[0][0]["authorization"] == SECRET
    (letter,) = map(message_from_string, mail.letters)
    assert letter["Subject"] == "MEDOPT: declined begins" and letter["To"] == "a@clinic.example, b@clinic.example"
    assert begun["text"] in str(letter.get_payload()).replace("=\n", "").replace("=\r\n", "")
    fill(tmp_path, release, 300, 1, declined=0.0, first=1000, until=NOW + 500)
    node.look(300)
    node.look(300)
    assert [(body["alert"], body["state"]) for body in webhook.bodies()] == [
        ("declined", "begins"),
        ("declined", "ends"),
    ]
    assert len(mail.letters) == 2 and "over:" in mail.letters[1]
    assert active_alerts(node.ledger) == {}
    events = [(line["event"], line.get("state", line.get("to"))) for line in node.audited()]
    assert events == [
        ("alert", "begins"), ("alert sent", "webhook"), ("alert sent", "email"),
        ("alert", "ends"), ("alert sent", "webhook"), ("alert sent", "email"),
    ]  # fmt: skip
    assert verify(tmp_path / "spool" / AUDIT)[0] == 6
    kept = caplog.text + json.dumps(node.audited())
    planted = {pseudonym(uid(number)) for number in range(60)} | {pseudonym("PLANTED-ACC"), pseudonym("PLANTED-MRN1")}
    told = kept + json.dumps(webhook.bodies()) + "".join(mail.letters)
    assert not [word for word in (*planted, PLANTED, "PLANTED", SECRET) if word in told]
    assert webhook.url not in kept and "clinic.example" not in kept


def test_a_share_near_the_limit_gives_no_row_of_alerts(
    watch: Callable[..., Watched], webhook: WebhookSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 100, 6, declined=0.21)
    node = watch(webhook={"url": webhook.url})
    node.look()
    fill(tmp_path, release, 10, 0.1, declined=0, first=1000)  # 21 of 110: below the limit, not clearly
    node.look(60)
    assert [body["state"] for body in webhook.bodies()] == ["begins"]


def test_too_few_scans_begin_and_end_nothing(
    watch: Callable[..., Watched], webhook: WebhookSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 20, 6, declined=1.0)
    node = watch(webhook={"url": webhook.url}, drift=0.25)
    node.look()
    assert webhook.bodies() == []
    fill(tmp_path, release, 20, 6, declined=1.0, first=1000)
    node.look()
    begun = {body["alert"] for body in webhook.bodies()}
    assert {"declined", "drift: outcome"} <= begun
    node.look(30 * DAY)  # no scan any more
    assert set(active_alerts(node.ledger)) == begun


def test_drift_alerts_are_those_of_the_change_plan(
    watch: Callable[..., Watched], webhook: WebhookSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 60, 6, declined=0.0)
    plan = {"model": "clinic", "triggers": {"content distance": "review 50 scans", "number": "nothing"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    node = watch(webhook={"url": webhook.url}, drift=0.25, plan=tmp_path / "plan.yaml")
    node.look()
    (body,) = webhook.bodies()
    assert body["alert"] == "drift: content distance" and "the change plan starts: review 50 scans" in body["text"]
    (tmp_path / "plan.yaml").write_text("triggers: [content distance]")
    with pytest.raises(ConfigError, match=r"plan.yaml of alerts.plan has no triggers"):
        node.restart()


def test_what_waits_and_what_is_parked(
    watch: Callable[..., Watched], webhook: WebhookSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 3, 0.001, declined=0.0)
    node = watch(webhook={"url": webhook.url}, waiting_minutes=30, parked=2)
    with node.ledger.transaction() as db:
        db.execute("UPDATE studies SET state = 'ready' WHERE uid = ?", (uid(0),))
        db.execute("UPDATE studies SET state = 'parked' WHERE uid = ?", (uid(1),))
    node.look(25 * 60)
    assert webhook.bodies() == []
    with node.ledger.transaction() as db:
        db.execute("UPDATE studies SET state = 'parked' WHERE uid = ?", (uid(2),))
    node.look(10 * 60)
    assert [body["alert"] for body in webhook.bodies()] == ["waiting", "parked"]
    assert "has waited for 3" in webhook.bodies()[0]["text"]
    with node.ledger.transaction() as db:
        db.execute("UPDATE studies SET state = 'done'")
    node.look(60)
    assert [body["state"] for body in webhook.bodies()] == ["begins", "begins", "ends", "ends"]


def test_a_message_that_is_not_taken_is_tried_again_after_growing_waits(
    watch: Callable[..., Watched], webhook: WebhookSink, mail: MailSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 60, 6, declined=0.5)
    email = {"host": "127.0.0.1", "port": mail.port, "starttls": False, "sender": "n@c.example", "to": ["a@c.example"]}
    node = watch(webhook={"url": webhook.url}, email=email, first_seconds=30, tries=4)
    webhook.status, mail.refuse = 503, True
    node.look()
    node.look(29)
    assert len(webhook.requests) == 1
    node.look(2)
    node.look(59)
    assert len(webhook.requests) == 2
    mail.refuse = False
    node.look(2)
    assert len(webhook.requests) == 3 and len(mail.letters) == 1
    node.restart()
    node.look(121)
    node.look(4000)
    assert len(webhook.requests) == 4, "given up"
    failed = [line for line in node.audited() if line["event"] == "alert not sent"]
    assert {line["reason"] for line in failed} == {"the webhook answered 503", "the mail server answered 451"}
    assert [line["given_up"] for line in failed if line["to"] == "webhook"] == [False, False, False, True]


@pytest.mark.parametrize("kind", ["closed", "silent", "redirect"])
def test_a_webhook_that_fails_keeps_the_message(
    watch: Callable[..., Watched], webhook: WebhookSink, tmp_path: Path, release: Path, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("medopt.pacs.alert_channels._TIMEOUT_SECONDS", 0.3)
    fill(tmp_path, release, 60, 6, declined=0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/planted-path"
        if kind == "closed":
            server.close()
        webhook.status = 302
        node = watch(webhook={"url": webhook.url if kind == "redirect" else address})
        node.look()
    (line,) = [line for line in node.audited() if line["event"] == "alert not sent"]
    assert line["reason"].startswith("the webhook answered 302" if kind == "redirect" else "the webhook is not reached")
    assert "planted-path" not in json.dumps(node.audited())
    assert len(node.ledger.rows("SELECT * FROM alert_sends")) == 1 and len(webhook.requests) == (kind == "redirect")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
def test_mail_is_encrypted_and_its_server_is_checked(
    watch: Callable[..., Watched], tmp_path: Path, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_certificates(tmp_path, {"ca": {"here": "IP:127.0.0.1"}, "other": {}})
    monkeypatch.setenv("MAIL_PASSWORD_OF_A_TEST", "hunter2")
    fill(tmp_path, release, 60, 6, declined=0.5)
    with closing(MailSink(folder / "here.pem", folder / "here.key")) as server:
        email = {
            "host": "127.0.0.1", "port": server.port, "sender": "n@c.example", "to": ["a@c.example"], "user": "node",
            "password": {"variable": "MAIL_PASSWORD_OF_A_TEST"}, "authority": folder / "other.pem",
        }  # fmt: skip
        node = watch(email=email)
        node.look()
        assert (server.logins, server.letters) == ([], []), "another authority's certificate"
        trusted = AlertSettings.model_validate({"email": email | {"authority": folder / "ca.pem"}}).email
        assert node.settings.alerts is not None
        alerts = node.settings.alerts.model_copy(update={"email": trusted})
        node.settings = node.settings.model_copy(update={"alerts": alerts})
        node.restart()
        node.look(60)
        assert server.logins == [["", "node", "hunter2"]] and "declined begins" in server.letters[0]
    assert "hunter2" not in json.dumps(node.audited())


def test_a_mail_server_without_encryption_gets_nothing(
    watch: Callable[..., Watched], mail: MailSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 60, 6, declined=0.5)
    node = watch(email={"host": "127.0.0.1", "port": mail.port, "sender": "n@c.example", "to": ["a@c.example"]})
    node.look()
    assert mail.letters == [] and node.audited()[-1]["event"] == "alert not sent"


def test_quiet_hours_put_off_what_is_sent(
    watch: Callable[..., Watched], webhook: WebhookSink, tmp_path: Path, release: Path
) -> None:
    hour = datetime.fromtimestamp(NOW).hour
    fill(tmp_path, release, 60, 6, declined=0.5)
    node = watch(webhook={"url": webhook.url}, quiet_hours=[hour, (hour + 2) % 24])
    node.look()
    assert webhook.bodies() == [] and "declined" in active_alerts(node.ledger)
    node.look(2 * 3600)
    assert len(webhook.bodies()) == 1


@pytest.mark.parametrize(
    ("quiet", "hour", "due"), [((22, 6), 23, 6), ((22, 6), 3, 6), ((22, 6), 6, 6), ((22, 6), 12, 12), ((1, 5), 4, 5)]
)
def test_when_quiet_hours_end(quiet: tuple[int, int], hour: int, due: int) -> None:
    settings = AlertSettings.model_validate({"webhook": {"url": "https://a.example"}, "quiet_hours": quiet})
    moment = datetime(2024, 3, 1, hour, 0).timestamp()
    found = datetime.fromtimestamp(settings.due(moment))
    assert (found.hour, found.day) == (due, 2 if hour == 23 else 1)


@pytest.mark.parametrize(
    ("alerts", "words"),
    [
        ({"webhook": {"url": "https://user:hunter2@a.example/x"}}, "no user, password or query"),
        ({"webhook": {"url": "https://hunter2@a.example/x"}}, "no user, password or query"),
        ({"webhook": {"url": "https://a.example/x?token=hunter2"}}, "no user, password or query"),
        (
            {"webhook": {"url": "http://a.example/x", "headers": {"Authorization": {"file": "hunter2"}}}},
            "cross the network in clear",
        ),
        ({"webhook": {"url": "ftp://hunter2.example"}}, "it takes a URL"),
        ({"email": {"host": "hunter2@m.x", "sender": "n@c.example", "to": ["a@c.example"]}}, "a name or an address"),
        ({"email": {"host": "m", "sender": "n@c.example", "to": ["a@c.example\nBcc: hunter2@x.example"]}}, "pattern"),
        ({"email": {"host": "m", "sender": "n@c.example", "to": ["a@c.example"], "password": "hunter2"}}, "password"),
        (
            {
                "email": {
                    "host": "m", "sender": "n@c.example", "to": ["a@c.example"], "user": "u",
                    "password": {"variable": "X"}, "starttls": False,
                }
            },
            "starttls: true only",
        ),
        ({}, "name a webhook or an email"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be_used_is_refused_without_its_secret(
    tmp_path: Path, archive: Archive, alerts: dict[str, Any], words: str
) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(node_file_values(tmp_path, 11112, tmp_path, archive, alerts=alerts)))
    with pytest.raises(ConfigError) as refused:
        load_node_settings(file)
    assert words in str(refused.value) and "hunter2" not in str(refused.value)


def test_paths_of_secrets_start_at_the_file(tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    file, variable = tmp_path / "node.yaml", "HOOK_OF_A_TEST"
    alerts = {"webhook": {"url": {"file": "hook.secret"}, "headers": {"X-Key": {"variable": variable}}}}
    file.write_text(yaml.safe_dump(node_file_values(tmp_path, 11112, tmp_path, archive, alerts=alerts)))
    (tmp_path / "hook.secret").write_text("https://a.example/services/T0/B0\n")
    monkeypatch.setenv(variable, "value")
    settings = load_node_settings(file).alerts
    assert settings is not None and settings.webhook is not None
    assert settings.webhook.address() == "https://a.example/services/T0/B0"
    assert settings.webhook.headers["X-Key"].read() == "value"
    settings.require_readable()
    (tmp_path / "hook.secret").write_text("hunter2\n")
    with pytest.raises(ConfigError, match="holds no URL") as refused:
        settings.require_readable()
    assert "hunter2" not in str(refused.value)


def test_a_running_node_sends_alerts_and_goes_on_while_nobody_takes_them(
    start_node_process: Callable[..., NodeProcess], webhook: WebhookSink, tmp_path: Path, release: Path
) -> None:
    fill(tmp_path, release, 60, 6, declined=0.5, until=time.time())
    webhook.status = 500
    alerts = {"webhook": {"url": webhook.url}, "drift": None, "every_minutes": 0.01, "first_seconds": 0.5}
    node = start_node_process(alerts=alerts)
    wait_for(lambda: len(webhook.requests) >= 3, node)
    webhook.status = 200
    wait_for(lambda: "alert sent" in (tmp_path / "spool" / AUDIT).read_text(), node)
    assert {body["id"] for body in webhook.bodies()} == {webhook.bodies()[0]["id"]}
    assert node.kill(15) == 0
    log = node.log_text()
    assert "alert begins: declined" in log and "the webhook answered 500" in log
    assert PLANTED not in log and webhook.url not in log and "Traceback" not in log
    with closing(sqlite3.connect(tmp_path / "spool" / LEDGER)) as db:
        assert db.execute("SELECT count(*) FROM alert_sends").fetchone() == (0,)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValidationError):
        AlertSettings.model_validate({"webhook": {"url": "https://a.example"}, "drfit": 0.2})


def test_a_url_that_is_a_secret_is_not_called_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    webhook = Webhook.model_validate({"url": {"variable": "HOOK_OF_A_TEST"}})
    monkeypatch.setenv("HOOK_OF_A_TEST", "http://a.example/planted-path")
    with pytest.raises(ConfigError, match="would be sent in clear") as refused:
        webhook.address()
    assert "planted-path" not in str(refused.value)
    for allowed in ("https://a.example/x", "http://127.0.0.1:80/x"):
        monkeypatch.setenv("HOOK_OF_A_TEST", allowed)
        assert webhook.address() == allowed
