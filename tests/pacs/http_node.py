"""A node's receiver and HTTP side, without its worker: so that tests can inspect what it received."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ports import free_port

from medopt.pacs.audit import AuditFile, CountingAudit
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.http.http_server import HttpServer
from medopt.pacs.http.monitoring import NodeHealth
from medopt.pacs.http.routes import NodeParts
from medopt.pacs.intake import Intake
from medopt.pacs.ledger import Instance, Ledger, Result
from medopt.pacs.receiver import Receiver
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.settings import NodeSettings
from medopt.pacs.spool import AUDIT, LEDGER, Spool

SR = "1.2.840.10008.5.1.4.1.1.88.34"


class HttpNode:
    def __init__(
        self, folder: Path, *, web: dict[str, Any] | None = None, idle_seconds: float = 30, **changes: Any
    ) -> None:
        values: dict[str, Any] = {
            "aet": "MEDOPT",
            "host": "127.0.0.1",
            "port": free_port(),
            "release": folder / "release",
            "spool": folder / "spool",
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": 104}],
            "limits": {"free_mb": 0, "instance_mb": 20, "idle_seconds": idle_seconds},
            "web": {"port": free_port(), "stow": True} | (web or {}),
        }
        self.settings = NodeSettings.model_validate(values | changes)
        self.spool = Spool(self.settings.spool)
        self.ledger = Ledger(self.settings.spool / LEDGER)
        self.audit = CountingAudit(AuditFile(self.settings.spool / AUDIT, lambda: 1000.0))
        self.images_received: list[tuple[str, Callable[[], bool]]] = []
        self.intake = Intake(
            self.settings,
            self.spool,
            self.ledger,
            lambda *image: self.images_received.append(image),
            self.audit,
            lambda: 1000.0,
        )
        commitments = CommitmentReceiver(self.settings, self.ledger, self.audit, lambda: 1000.0)
        self.receiver = Receiver(self.settings, self.spool, self.intake, commitments, self.audit)
        self.receiver.start()
        self.worker_is_up = True
        self.candidate: str | None = None
        health = NodeHealth(
            lambda: self.receiver.listening,
            lambda: self.worker_is_up,
            lambda: False,
            candidate=lambda: self.candidate,
        )
        self.server = HttpServer(
            NodeParts(self.settings, self.spool, self.ledger, self.intake, self.audit, health, lambda: 2000.0)
        )
        self.url = self.server.start()

    def close(self) -> None:
        self.server.stop()
        self.receiver.stop()
        self.ledger.close()
        self.audit.close()

    def files(self) -> list[Path]:
        return sorted(path for path in (self.settings.spool / "studies").rglob("*") if path.is_file())

    def partial_files(self) -> list[Path]:
        return [path for path in self.settings.spool.rglob("*") if ".part" in path.name]

    def add_studies(self) -> None:
        """An answered study with a sent result, a declined study with a parked result, and a parked study."""
        ledger, destination = self.ledger, self.settings.destinations[0].name
        for number, (ending, reason) in enumerate(
            [("done", ""), ("declined", "its noise is unlike"), ("parked", "given up after 3 tries: <b>it</b> ended")]
        ):
            study = f"1.2.3.{number}"
            ledger.record(Instance(f"{study}.1", study, "c", "t", "d", 1, f"f{number}", True), 1000 + number, late=True)
            ledger.complete(study, 1100)
            due = ledger.take(1110)
            assert due is not None
            results = [Result(f"2.25.{number}", study, SR, "report", f"r{number}", "d")] if number < 2 else []
            ledger.finish(due, ending, reason, results, [destination], 1120)  # type: ignore[arg-type]
        first, second = SendQueue(ledger).due(1200)
        SendQueue(ledger).confirm(first, 1207.5)
        SendQueue(ledger).reschedule(second, "the destination is not reached", None)
