"""The page of a drift check: what moved between validation and service, as bars side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medopt.release.drift_reference import DRIFTED, WATCH, Shift
from medopt.report.page import write_page


def write_drift(path: Path, study: str, table: str, scans: tuple[int, int], shifts: Sequence[Shift]) -> None:
    """Write the page. `scans` are how many there were on validation and in service.

    Raises StorageError where it cannot be written.
    """
    write_page(
        path,
        "drift.html",
        study=study,
        table=table,
        before=scans[0],
        now=scans[1],
        shifts=[_shown(one) for one in shifts],
        moved=[one.name for one in shifts if one.verdict == "drifted"],
        watch=WATCH,
        drifted=DRIFTED,
    )


def _shown(shift: Shift) -> dict[str, Any]:
    most = max((*shift.before, *shift.now, 0.01))
    bars = [
        {"name": name, "before": before, "now": now, "wide": (100 * before / most, 100 * now / most)}
        for name, before, now in zip(shift.bins, shift.before, shift.now, strict=True)
    ]
    return asdict(shift) | {"bars": bars}
