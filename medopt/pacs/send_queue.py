"""The sends that are pending in the ledger: each result to each destination by itself."""

from __future__ import annotations

from dataclasses import dataclass

from medopt.pacs.ledger import Ledger, Result, result_from


@dataclass(frozen=True, slots=True)
class PendingSend:
    """A result that a destination has not confirmed. `attempts` counts those that were made."""

    result: Result
    destination_name: str
    attempts: int


class SendQueue:
    """A ledger's sends. One object may be used by several threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def due(self, now: float, limit: int = 100) -> list[PendingSend]:
        """What is to be sent now, the oldest first."""
        rows = self._ledger.rows(
            "SELECT results.*, destination, attempts FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state = 'waiting' AND due <= ? ORDER BY due, made, results.rowid LIMIT ?",
            now,
            limit,
        )
        return [PendingSend(result_from(row), row["destination"], row["attempts"]) for row in rows]

    def pending(self, sop_uid: str, destination_name: str) -> PendingSend | None:
        """The send of one result to one destination, waiting or parked; None if it is confirmed or never existed."""
        rows = self._ledger.rows(
            "SELECT results.*, destination, attempts FROM sends JOIN results USING (sop_uid) "
            "WHERE sends.state != 'sent' AND sop_uid = ? AND destination = ?",
            sop_uid,
            destination_name,
        )
        return PendingSend(result_from(rows[0]), destination_name, rows[0]["attempts"]) if rows else None

    def confirm(self, send: PendingSend, now: float) -> None:
        """A destination has a result: it is never sent there again."""
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE sends SET state = 'sent', attempts = attempts + 1, reason = '', due = ? "
                "WHERE sop_uid = ? AND destination = ?",
                (now, send.result.sop_uid, send.destination_name),
            )

    def reschedule(self, send: PendingSend, reason: str, due: float | None) -> None:
        """An attempt was not confirmed: try again at `due`, or park the send if that is None."""
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE sends SET attempts = attempts + 1, reason = ?, state = ?, due = coalesce(?, due) "
                "WHERE sop_uid = ? AND destination = ? AND state = 'waiting'",
                (reason, "parked" if due is None else "waiting", due, send.result.sop_uid, send.destination_name),
            )

    def record_reason(self, send: PendingSend, reason: str) -> None:
        """A destination reported that it does not keep a result: say why. The next attempt stays as scheduled."""
        with self._ledger.transaction() as db:
            db.execute(
                "UPDATE sends SET reason = ? WHERE sop_uid = ? AND destination = ? AND state != 'sent'",
                (reason, send.result.sop_uid, send.destination_name),
            )
