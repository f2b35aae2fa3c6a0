"""What a person looks at and begins anew: studies and results by state, and those that are parked."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping

from medopt.pacs.ledger import Ledger


def counts(ledger: Ledger) -> Mapping[str, Mapping[str, int]]:
    """How many studies and sends are in each state."""
    return {table: counted(ledger.rows, table) for table in ("studies", "sends")}


def counted(read: Callable[[str], Iterable[sqlite3.Row]], table: str) -> dict[str, int]:
    """How many rows of a table are in each state."""
    rows = read(f"SELECT state, count(*) AS many FROM {table} GROUP BY state ORDER BY state")
    return {str(row["state"]): int(row["many"]) for row in rows}


def parked(ledger: Ledger) -> list[tuple[str, str, str]]:
    """What waits for a person: the study's UID, what is parked (study, or the destination), and why."""
    rows = ledger.rows(
        "SELECT uid, 'study' AS what, reason FROM studies WHERE state = 'parked' UNION ALL "
        "SELECT study_uid, destination, sends.reason FROM sends JOIN results USING (sop_uid) "
        "WHERE sends.state = 'parked' ORDER BY 1, 2"
    )
    return [(row["uid"], row["what"], row["reason"]) for row in rows]


def retry(ledger: Ledger, now: float) -> tuple[int, int]:
    """Begin anew with all that is parked; returns how many studies and sends."""
    with ledger.change() as db:
        studies = db.execute(
            "UPDATE studies SET state = 'ready', tries = 0, changed = ? WHERE state = 'parked'", (now,)
        ).rowcount
        sends = db.execute(
            "UPDATE sends SET state = 'waiting', attempts = 0, due = ? WHERE state = 'parked'", (now,)
        ).rowcount
    return studies, sends
