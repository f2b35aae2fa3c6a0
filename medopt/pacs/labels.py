"""True labels that arrive after the answers: kept in the ledger, the latest of each study or scan counts."""

from __future__ import annotations

import json
from collections.abc import Mapping

from medopt.pacs.ledger import Ledger


def known_labels(ledger: Ledger) -> Mapping[tuple[str, str], Mapping[str, int]]:
    """By (study UID, scan's pseudonym) which findings are there; a scan "" stands for all scans of its study."""
    rows = ledger.rows("SELECT study_uid, scan, truth FROM labels ORDER BY id")
    return {(row["study_uid"], row["scan"]): json.loads(row["truth"]) for row in rows}
