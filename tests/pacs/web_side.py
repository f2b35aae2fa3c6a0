"""A node's receiver and HTTP side, without its worker: what comes in can be looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ports import free_port

from medopt.pacs.audit import Audit, CountingAudit
from medopt.pacs.commitment import CommitmentReceiver
from medopt.pacs.http.health import NodeHealth
from medopt.pacs.http.http_server import Door
from medopt.pacs.http.routes import NodeParts
from medopt.pacs.intake import Intake
from medopt.pacs.ledger import Instance, Ledger, Result
from medopt.pacs.receiver import Receiver
from medopt.pacs.send_queue import SendQueue
from medopt.pacs.settings import Node
from medopt.pacs.spool import AUDIT, LEDGER, Spool

SR = "1.2.840.10008.5.1.4.1.1.88.34"


class WebSide:
    def __init__(self, folder: Path, *, web: dict[str, Any] | None = None, **changes: Any) -> None:
        values: dict[str, Any] = {
            "aet": "MEDOPT",
            "host": "127.0.0.1",
            "port": free_port(),
            "release": folder / "release",
            "spool": folder / "spool",
            "accept": [{"aet": "SENDER", "addresses": ["127.0.0.1"]}],
            "destinations": [{"aet": "PACS", "host": "127.0.0.1", "port": 104}],
            "limits": {"free_mb": 0, "instance_mb": 20, "idle_seconds": 1},
            "web": {"port": free_port(), "stow": True} | (web or {}),
        }
        self.node = Node.model_validate(values | changes)
        self.spool = Spool(self.node.spool)
        self.ledger = Ledger(self.node.spool / LEDGER)
        self.told = CountingAudit(Audit(self.node.spool / AUDIT, lambda: 1000.0))
        self.heard: list[tuple[str, Callable[[], bool]]] = []
        self.intake = Intake(
            self.node, self.spool, self.ledger, lambda *words: self.heard.append(words), self.told, lambda: 1000.0
        )
        reports = CommitmentReceiver(self.node, self.ledger, self.told, lambda: 1000.0)
        self.receiver = Receiver(self.node, self.spool, self.intake, reports, self.told)
        self.receiver.start()
        self.worker = True
        vital = NodeHealth(lambda: self.receiver.listening, lambda: self.worker, lambda: False)
        self.door = Door(NodeParts(self.node, self.spool, self.ledger, self.intake, self.told, vital, lambda: 2000.0))
        self.url = self.door.start()

    def close(self) -> None:
        self.door.stop()
        self.receiver.stop()
        self.ledger.close()
        self.told.close()

    def files(self) -> list[Path]:
        return sorted(path for path in (self.node.spool / "studies").rglob("*") if path.is_file())

    def left_over(self) -> list[Path]:
        return [path for path in self.node.spool.rglob("*") if ".part" in path.name]

    def busy(self) -> None:
        """One answered study with a sent result, one parked result, one declined study, one parked."""
        ledger, (place,) = self.ledger, (one.name for one in self.node.destinations)
        for number, (ending, reason) in enumerate(
            [("done", ""), ("declined", "its noise is unlike"), ("parked", "given up after 3 tries: <b>it</b> ended")]
        ):
            study = f"1.2.3.{number}"
            ledger.record(Instance(f"{study}.1", study, "c", "t", "d", 1, f"f{number}", True), 1000 + number, late=True)
            ledger.complete(study, 1100)
            work = ledger.take(1110)
            assert work is not None
            made = [Result(f"2.25.{number}", study, SR, "report", f"r{number}", "d")] if number < 2 else []
            ledger.finish(work, ending, reason, made, [place], 1120)  # type: ignore[arg-type]
        first, second = SendQueue(ledger).due(1200)
        SendQueue(ledger).confirmed(first, 1207.5)
        SendQueue(ledger).unsent(second, "the destination is not reached", None)
