"""The page of a comparison: paired differences of runs on the cases that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medopt.release.drift_reference import DRIFTED, WATCH, Shift
from medopt.report.format import UNDEFINED, difference, plain
from medopt.report.html import picture, write_page
from medopt.report.tables import ReportTable


def write_comparison(path: Path, found: Mapping[str, Any], drawn: Path) -> None:
    """Write the page of what `compare_runs` found; `drawn` is the picture of it.

    Raises StorageError where it cannot be written.
    """
    names = list(found["runs"][0]["figures"])
    columns = ["run", *(heading for name in names for heading in (plain(name), "difference", "p"))]
    rows = [[run["name"], *_cells(run["figures"], names)] for run in found["runs"]]
    rows += [
        [f"{run['name']} at {site} ({figures['cases']} images)", *_cells(figures, names)]
        for run in found["runs"]
        for site, figures in run["sites"].items()
    ]
    table = ReportTable(f"Against {found['reference']}", columns, rows, [found["note"]])
    write_page(path, "compare.html", found=found, table=table, source=picture(drawn))


def _cells(figures: Mapping[str, Any], names: list[str]) -> list[str]:
    cells: list[str] = []
    for name in names:
        one, p = figures[name], figures[name]["p"]
        value = UNDEFINED if one["value"] is None else f"{one['value']:.3f}"
        cells += [
            value,
            difference(one["difference"]),
            "" if p is None else f"{p:.3f}" if p >= 0.001 else "below 0.001",
        ]
    return cells


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
