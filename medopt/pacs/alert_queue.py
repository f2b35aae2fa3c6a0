"""Which alerts are on, and which messages wait to be sent: in the ledger, so that a restart repeats and loses none."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from medopt.pacs.alert_channels import Message
from medopt.pacs.alert_rules import Finding
from medopt.pacs.alert_settings import AlertSettings
from medopt.pacs.ledger import Ledger, RowSource

_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message to send by a channel, and how often that failed."""

    number: int
    channel: str
    message: Message
    attempts: int


def active_alerts(source: RowSource) -> dict[str, float]:
    """The alerts that are on, and since when."""
    return {row["name"]: row["since"] for row in source.rows("SELECT name, since FROM alerts ORDER BY since, name")}


class AlertQueue:
    """The alerts of one node."""

    def __init__(self, settings: AlertSettings, ledger: Ledger, node: str, channels: Sequence[str]) -> None:
        self._settings, self._ledger, self._node, self._channels = settings, ledger, node, channels

    def update(self, findings: Iterable[Finding], now: float) -> list[Message]:
        """Begin and end alerts by what the rules say, each with one message for each channel; returns the messages.

        An alert whose rule is gone ends. One whose rule cannot be judged stays.
        """
        rules = {finding.name: finding for finding in findings}
        messages = []
        with self._ledger.transaction() as db:
            active = active_alerts(self._ledger)
            for name, finding in rules.items():
                if finding.begins and name not in active:
                    db.execute("INSERT INTO alerts (name, since) VALUES (?, ?)", (name, now))
                    messages.append(self._message(name, "begins", finding.text, now))
            for name in active:
                rule = rules.get(name) or rules.get(f"{name.partition(':')[0]}: *")
                if rule is None or rule.ends:
                    db.execute("DELETE FROM alerts WHERE name = ?", (name,))
                    text = "this is not watched any longer" if rule is None else f"over: {rule.text}"
                    messages.append(self._message(name, "ends", text, now))
            db.executemany(
                "INSERT INTO alert_sends (channel, message, due) VALUES (?, ?, ?)",
                [
                    (channel, json.dumps(dict(message)), self._settings.due(now))
                    for message in messages
                    for channel in self._channels
                ],
            )
        return messages

    def _message(self, name: str, state: str, text: str, now: float) -> Message:
        at = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        return {"id": uuid.uuid4().hex, "node": self._node, "alert": name, "state": state, "text": text, "at": at}

    def due(self, now: float) -> list[Waiting]:
        """The messages to send now, of each channel in their order: behind one that waits, later ones wait, too."""
        rows = self._ledger.rows(
            "SELECT * FROM alert_sends AS one WHERE NOT EXISTS (SELECT 1 FROM alert_sends AS earlier WHERE "
            "earlier.channel = one.channel AND earlier.id <= one.id AND earlier.due > ?) ORDER BY id",
            now,
        )
        return [Waiting(row["id"], row["channel"], json.loads(row["message"]), row["attempts"]) for row in rows]

    def done(self, waiting: Waiting) -> None:
        """A message was taken, or is given up."""
        with self._ledger.transaction() as db:
            db.execute("DELETE FROM alert_sends WHERE id = ?", (waiting.number,))

    def postpone(self, waiting: Waiting, now: float) -> bool:
        """A message was not taken: try it again later, after growing waits; False where it is given up."""
        if waiting.attempts + 1 >= self._settings.tries:
            self.done(waiting)
            return False
        wait = min(self._settings.first_seconds * 2 ** min(waiting.attempts, 20), _LONGEST_SECONDS)
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE alert_sends SET attempts = attempts + 1, due = ? WHERE id = ?",
                (self._settings.due(now + wait), waiting.number),
            )
        return True
