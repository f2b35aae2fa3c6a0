"""ResultSettings by STOW-RS to a real Orthanc, to one with a password, and to services that answer otherwise."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from orthanc import Orthanc, needs_orthanc
from test_sender import Clock, node_with_results

from medopt.core.errors import ConfigError
from medopt.pacs.ledger import Ledger
from medopt.pacs.sender import Sender, echo
from medopt.pacs.settings import NodeSettings, load_node_settings
from medopt.pacs.status import parked_items, state_counts

PASSWORD = "Zaunkoenig-41"


def node_for(folder: Path, url: str, count: int = 1, tries: int = 4, **service: Any) -> tuple[NodeSettings, Ledger]:
    return node_with_results(folder, 0, count, {"url": url, **service}, tries=tries)


@needs_orthanc
def test_down_then_up_and_nothing_twice(tmp_path: Path) -> None:
    orthanc, clock = Orthanc(tmp_path / "orthanc"), Clock()
    settings, ledger = node_for(tmp_path, orthanc.web, count=3)
    sender = Sender(settings, ledger, clock=clock)
    assert (sender.send_due(), echo(settings, settings.destinations[0])) == (0, "the service is not reached")
    orthanc.start()
    try:
        clock.now += 10
        assert echo(settings, settings.destinations[0]) == ""
        assert [sender.send_due() for _ in range(3)] == [3, 0, 0]
        assert state_counts(ledger)["sends"] == {"sent": 3}
        stored = {orthanc.get(f"/instances/{uid}/simplified-tags")["SOPInstanceUID"] for uid in orthanc.instances()}
        assert stored == {"2.25.1", "2.25.2", "2.25.3"}
        with ledger.transaction() as db:  # as after a kill between Orthanc's response and the ledger
            db.execute("UPDATE sends SET state = 'waiting'")
        assert sender.send_due() == 3
        assert len(orthanc.instances()) == 3
    finally:
        orthanc.stop()


@needs_orthanc
def test_a_password_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orthanc, clock = Orthanc(tmp_path / "o", AuthenticationEnabled=True, RegisteredUsers={"node": "secret"}), Clock()
    (tmp_path / "wrong").write_text("Basic bm9ib2R5Om5vdGhpbmc=\n")
    monkeypatch.setenv("PACS_WORD", "Basic " + base64.b64encode(b"node:secret").decode())
    orthanc.start()
    try:
        settings, ledger = node_for(tmp_path, orthanc.web, headers={"Authorization": {"file": tmp_path / "wrong"}})
        assert Sender(settings, ledger, clock=clock).send_due() == 0
        assert state_counts(ledger)["sends"] == {"waiting": 1}
        changed = settings.model_copy(
            update={
                "destinations": [
                    type(settings.destinations[0]).model_validate(
                        {"url": orthanc.web, "headers": {"Authorization": {"variable": "PACS_WORD"}}}
                    )
                ]
            }
        )
        clock.now += 10
        assert Sender(changed, ledger, clock=clock).send_due() == 1
    finally:
        orthanc.stop()


class Service:
    """Answers every POST in one way."""

    def __init__(self, status: int, content: bytes, **headers: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def services() -> Iterator[list[Service]]:
    started: list[Service] = []
    yield started
    for service in started:
        service.stop()


FAILED = json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}]}}).encode()
OTHER = json.dumps({"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["2.25.77"]}}]}}).encode()


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (409, FAILED, "the destination answered HTTP 409, 0xA700"),
        (202, FAILED, "the destination answered HTTP 202, 0xA700"),
        (200, b"", "the destination did not confirm this instance"),
        (200, OTHER, "the destination did not confirm this instance"),
        (200, b"[" * 5000, "the destination did not confirm this instance"),
        (200, b'{"00081199": {"Value": [[]]}}', "the destination did not confirm this instance"),
        (302, b"", "the destination answered HTTP 302"),
        (500, b"<html>QUITTENBAUM", "the destination answered HTTP 500"),
    ],
)
def test_only_a_confirmed_instance_is_sent(
    tmp_path: Path, services: list[Service], status: int, content: bytes, reason: str
) -> None:
    services.append(Service(status, content, Location="http://elsewhere/"))
    settings, ledger = node_for(tmp_path, services[0].url, tries=1)
    assert Sender(settings, ledger, clock=Clock()).send_due() == 0
    assert parked_items(ledger) == [("1.2.3", settings.destinations[0].name, reason)]


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ({"url": f"http://user:{PASSWORD}@pacs/dicom-web"}, "no user and password"),
        ({"url": "ftp://pacs"}, "DICOMweb service"),
        ({"url": "http://pacs/dicom-web", "header": {}}, "did you mean headers?"),
        ({"url": "http://pacs", "headers": {"Authorization": {}}}, "either file or variable"),
        ({"url": "http://pacs", "headers": {"Authorization": f"Basic {PASSWORD}"}}, "Authorization: Input should be"),
        ({"url": "http://pacs", "headers": {"Authorization": {"file": "pacs.secret"}}}, "cross the network in clear"),
        ({"url": "http://10.0.0.7", "headers": {PASSWORD: {"variable": "V"}}}, "cross the network in clear"),
        ({"aet": "PACS", "hosst": "pacs", "port": 104}, "did you mean host?"),
        ({"aet": "PACS", "host": "pacs"}, "port is missing"),
    ],
)
def test_what_a_destination_may_not_be(tmp_path: Path, peer: dict[str, Any], message: str) -> None:
    file = tmp_path / "node.yaml"
    values = {"aet": "MEDOPT", "release": "r", "spool": "s", "accept": [{"aet": "A", "addresses": ["10.0.0.0/8"]}]}
    file.write_text(yaml.safe_dump(values | {"destinations": [peer]}))
    with pytest.raises(ConfigError) as error:
        load_node_settings(file)
    assert message in str(error.value)
    assert "destinations.0" in str(error.value)
    assert PASSWORD not in str(error.value)
