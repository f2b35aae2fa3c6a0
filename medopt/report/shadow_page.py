"""A shadow trial as tables and as a page: what a candidate would have changed, at whose site, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from medopt.core.format import count_text, format_difference, format_share
from medopt.evaluation.comparison import COMPARED, PairedFigures
from medopt.evaluation.shadow_trial import PairedShare, ShadowReport, TrialFigures
from medopt.report.format import plain
from medopt.report.html import write_page
from medopt.report.tables import ReportTable

_COST_NAMES = {
    "cpu_seconds": ("processor time a study, s", 2),
    "seconds": ("time a study, s", 2),
    "memory_mb": ("most memory so far, MB", 0),
}


def shadow_tables(report: ShadowReport) -> list[ReportTable]:
    """The tables in the order of the page; the list of changed decisions is the last."""
    figures = {f"all ({report.overall.scans} scans)": report.overall} if report.overall.scans else {}
    figures |= {f"site {name}": one for name, one in report.sites.items()}
    figures |= {f"device {name}": one for name, one in report.devices.items()}
    tables = [_outcomes(report), _agreement(figures), *_shifts(report, figures), _costs(report)]
    if report.truth is not None:
        tables.append(_truth(report))
    return [table for table in [*tables, _changed(report)] if table.rows]


def write_shadow_report(path: Path, report: ShadowReport) -> None:
    """Write the page. Raises StorageError where it cannot be written."""
    write_page(path, "shadow.html", report=report, tables=shadow_tables(report))


def _outcomes(report: ShadowReport) -> ReportTable:
    rows = [[state, str(count)] for state, count in report.studies.items()]
    rows += [[f"  {reason}", str(count)] for reason, count in report.reasons.items()]
    note = "Failed: the candidate could not answer. Skipped: it was not asked. The reasons are below the counts."
    return ReportTable("Studies", ["the candidate", "studies"], rows, [note])


def _agreement(figures: Mapping[str, TrialFigures]) -> ReportTable:
    rows = [
        [name, str(one.scans), str(one.patients), format_share(one.agreement), *_cells(one.declined)]
        for name, one in figures.items()
    ]
    columns = ["group", "scans", "patients", "same decision", "declined now", "by the candidate", "difference"]
    note = "Same decision: of the scans that both decided. Intervals count patients, not scans."
    return ReportTable("Decisions", columns, rows, [note])


def _shifts(report: ShadowReport, figures: Mapping[str, TrialFigures]) -> Iterator[ReportTable]:
    columns = ["group", "positive now", "by the candidate", "difference", "probability, mean change", "largest"]
    for finding in report.overall.findings:
        rows = [
            [name, *_cells(found.positive), format_difference(found.probability), f"{found.largest:.3f}"]
            for name, one in figures.items()
            if (found := one.findings[finding])
        ]
        yield ReportTable(finding, columns, rows)


def _costs(report: ShadowReport) -> ReportTable:
    rows = []
    for name, cost in report.cost.items():
        title, digits = _COST_NAMES[name]
        shown = [f"{value:.{digits}f}" for value in (cost.present, cost.candidate)]
        rows.append([title, *shown, format_difference(cost.difference, digits)])
    note = "The candidate takes only time that nothing else needs, so that its time says less than its processor time."
    return ReportTable("Cost", ["what", "now", "candidate", "difference"], rows, [note])


def _truth(report: ShadowReport) -> ReportTable:
    assert report.truth is not None
    (run,) = report.truth.runs
    rows = [["all", *_figure_cells(run.figures)]]
    rows += [[f"site {name or 'not known'}", *_figure_cells(one)] for name, one in run.sites.items()]
    columns = ["candidate less present", *(plain(name) for name in COMPARED)]
    known = f"{count_text(report.truth.cases, 'scan')} of {count_text(report.truth.patients, 'patient')}"
    return ReportTable(f"Truth known: {known}", columns, rows, [report.truth.note])


def _changed(report: ShadowReport) -> ReportTable:
    rows = [
        [one.study, one.scan, one.patient, one.site, one.present, one.candidate,
         "" if one.shift is None else f"{one.shift:.3f}"]
        for one in report.changed
    ]  # fmt: skip
    columns = ["study", "scan", "patient", "site", "decision now", "by the candidate", "change of probability"]
    note = "All names are pseudonyms: those of the node's log, audit and status page."
    return ReportTable("Changed decisions", columns, rows, [note], numbers=6)


def _cells(share: PairedShare) -> list[str]:
    return [format_share(share.present), format_share(share.candidate), format_difference(share.difference)]


def _figure_cells(figures: PairedFigures) -> list[str]:
    return [format_difference(one.difference) for one in figures.by_name().values()]
