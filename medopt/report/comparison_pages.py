"""The page of a comparison: paired differences of runs on the cases that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medopt.core.format import UNDEFINED, format_difference
from medopt.evaluation.comparison import COMPARED, Comparison, PairedFigures
from medopt.release.drift_reference import DRIFTED, WATCH, Shift
from medopt.report.format import plain
from medopt.report.html import chart, write_page
from medopt.report.tables import ReportTable


def write_comparison(path: Path, compared: Comparison, drawn: Path) -> None:
    """Write the page of a comparison; `drawn` is its picture, with an SVG beside it.

    Raises StorageError where it cannot be written.
    """
    columns = ["run", *(heading for name in COMPARED for heading in (plain(name), "difference", "p"))]
    rows = [[run.name, *_cells(run.figures)] for run in compared.runs]
    rows += [
        [f"{run.name} at {site} ({figures.cases} images)", *_cells(figures)]
        for run in compared.runs
        for site, figures in run.sites.items()
    ]
    table = ReportTable(f"Against {compared.reference}", columns, rows, [compared.note])
    alt = "Differences with intervals, over all cases and at each site"
    write_page(path, "compare.html", compared=compared, table=table, drawing=chart(drawn.with_suffix(".svg"), alt))


def _cells(figures: PairedFigures) -> list[str]:
    cells: list[str] = []
    for one in figures.by_name().values():
        value = UNDEFINED if one.value is None else f"{one.value:.3f}"
        p = "" if one.p is None else f"{one.p:.3f}" if one.p >= 0.001 else "below 0.001"
        cells += [value, format_difference(one.difference), p]
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
        shifts=shifts,
        bars={shift.name: _bars(shift) for shift in shifts},
        moved=[one.name for one in shifts if one.verdict == "drifted"],
        watch=WATCH,
        drifted=DRIFTED,
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """A bin of a distribution: its shares before and now, and how wide (per cent) both are drawn."""

    name: str
    before: float
    now: float
    wide: tuple[float, float]


def _bars(shift: Shift) -> list[Bar]:
    """A bar for each bin, the longest over the whole width."""
    longest = max((*shift.before, *shift.now, 0.01))
    return [
        Bar(name, before, now, (100 * before / longest, 100 * now / longest))
        for name, before, now in zip(shift.bins, shift.before, shift.now, strict=True)
    ]
