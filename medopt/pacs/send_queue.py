"""What each destination still has to get, as the ledger knows it: each result to each of them by itself."""

from __future__ import annotations

from dataclasses import dataclass

from medopt.pacs.ledger import Ledger, Result, as_result


@dataclass(frozen=True, slots=True)
class Send:
    """A result that a destination has not confirmed."""

    result: Result
    destination: str
    attempts: int


class SendQueue:
    """A ledger's sends. One object may be used by several threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def due(self, now: float, most: int = 100) -> list[Send]:
        """What is to be sent now, the oldest first."""
        rows = self._ledger.rows(
            "SELECT results.*, destination, attempts FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state = 'waiting' AND due <= ? ORDER BY due, made, results.rowid LIMIT ?",
            now,
            most,
        )
        return [Send(as_result(row), row["destination"], row["attempts"]) for row in rows]

    def owed(self, sop_uid: str, destination: str) -> Send | None:
        """What a destination has not confirmed of one result, parked or not; None where it has, or never should."""
        rows = self._ledger.rows(
            "SELECT results.*, destination, attempts FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state != 'sent' AND sop_uid = ? AND destination = ?",
            sop_uid,
            destination,
        )
        return Send(as_result(rows[0]), destination, rows[0]["attempts"]) if rows else None

    def unkept(self, send: Send, reason: str) -> None:
        """A destination says that it does not keep a result: why, until it is tried again as was foreseen."""
        with self._ledger.change() as db:
            db.execute(
                "UPDATE sends SET reason = ? WHERE sop_uid = ? AND destination = ? AND state != 'sent'",
                (reason, send.result.sop_uid, send.destination),
            )

    def confirmed(self, send: Send, now: float) -> None:
        """A destination has a result: it is never sent there again."""
        with self._ledger.change() as db:
            db.execute(
                "UPDATE sends SET state = 'sent', attempts = attempts + 1, reason = '', due = ? "
                "WHERE sop_uid = ? AND destination = ?",
                (now, send.result.sop_uid, send.destination),
            )

    def unsent(self, send: Send, reason: str, again: float | None) -> None:
        """An attempt failed: once more at `again`, or parked where that is None."""
        with self._ledger.change() as db:
            db.execute(
                "UPDATE sends SET attempts = attempts + 1, reason = ?, state = ?, due = coalesce(?, due) "
                "WHERE sop_uid = ? AND destination = ? AND state = 'waiting'",
                (reason, "parked" if again is None else "waiting", again, send.result.sop_uid, send.destination),
            )
