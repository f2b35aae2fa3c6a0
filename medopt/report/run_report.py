"""`report.html` of a run: does it work, for whom not, how sure, what int8 changed; and what stands behind each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medopt.evaluation.verdict_lines import verdict_lines
from medopt.release.reporting_guidelines import COVERED, LEFT
from medopt.report import tables
from medopt.report.html import picture, write_page
from medopt.report.key_questions import key_answers
from medopt.report.run_records import RunRecords, read_run
from medopt.report.tables import ReportTable

REPORT = "report.html"
ALT = {
    "roc": "ROC curves of both models on the test split with their bands",
    "subgroups": "AUC, sensitivity and specificity of each site and subgroup with intervals",
    "precision_recall": "Precision against recall of both models on the test split",
    "confusion": "Decisions against truth on the test split, both models",
    "reliability": "Observed frequency against predicted probability, before and after calibration",
    "decision_curve": "Net benefit against the threshold, beside treating all and none",
    "coverage_risk": "Share of wrong decisions against the share of cases decided",
    "robustness": "AUC against the level of each corruption, both models",
    "explain/cases": "Scans beside maps of where the network found its evidence",
    "explain/nearest": "Errors beside the training images nearest to them",
    "front": "AUC on validation with its interval against time and size of every width and precision",
    "learning_curves": "Loss, validation AUC, learning rate and speed by epoch",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what it shows, for those who cannot see it; `source` is its data address."""

    source: str
    alt: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A part of the report below the first page."""

    title: str
    text: str
    tables: tuple[ReportTable, ...]
    pictures: tuple[Picture, ...]

    @property
    def anchor(self) -> str:
        """Where a link finds it."""
        return self.title.lower().replace(" ", "-")


def write_report(folder: Path) -> Path:
    """Write `report.html` of a run folder and return its path.

    Raises DataError where the folder holds no evaluated run, StorageError where the page cannot be written.
    """
    run = read_run(folder)
    target = folder / REPORT
    write_page(
        target,
        "run.html",
        run=run,
        verdicts=verdict_lines(run.metrics, run.metrics.gate),
        answers=key_answers(run),
        front=_pictures(run, "roc", "subgroups"),
        sections=_sections(run),
        settings=tables.settings(run.study),
        covered=COVERED,
        left=LEFT,
    )
    return target


def _pictures(run: RunRecords, *names: str) -> tuple[Picture, ...]:
    """Those of the named pictures that the run has."""
    names = tuple(name for name in names if name != "subgroups" or tables.subgroups(run) is not None)
    found = [(picture(run.figures / f"{name}.png"), ALT.get(name, "")) for name in names]
    return tuple(Picture(source, alt) for source, alt in found if source)


def _legend(run: RunRecords) -> str:
    """What numbers stand for in the pictures, where no font has the characters of labels."""
    if all(label.isascii() for label in run.study.data.labels):
        return ""  # the fonts take half a second
    from medopt.figures.fonts import label_legend

    return label_legend(run.study.data.labels)


def _wide(run: RunRecords, *names: str) -> tuple[Picture, ...]:
    """The same, over the whole width of the page."""
    return tuple(replace(one, wide=True) for one in _pictures(run, *names))


def _tables(*tables: ReportTable | None) -> tuple[ReportTable, ...]:
    return tuple(table for table in tables if table is not None)


def _sections(run: RunRecords) -> list[ReportSection]:
    point, explanations = run.metrics.operating_point[run.served], run.metrics.explanations
    calibration = run.metrics.calibration[run.served].calibration
    decided = " ".join(
        f"{text}{f' ({note})' if note else ''}."
        for text, note in (
            (f"Calibration, fitted on validation: {calibration}", calibration.note),
            (f"Operating point: {point.rule}, chosen on validation", point.note),
        )
    )
    sanity = explanations.sanity.said if explanations else ""
    found = [
        ReportSection(
            "Performance",
            f"The test split, scored once, after everything was chosen on validation. {_legend(run)}".rstrip(),
            _tables(tables.baselines(run), tables.performance(run), tables.patients(run)),
            _pictures(run, "precision_recall", "confusion"),
        ),
        ReportSection(
            "Calibration and decisions",
            decided,
            (),
            _pictures(run, "reliability", "decision_curve", "coverage_risk"),
        ),
        ReportSection("Sites and subgroups", "", _tables(tables.subgroups(run)), ()),
        ReportSection(
            "Shift and noise",
            "Test images degraded as by other devices, motion and transmission, from just visible (1) to severe (5).",
            _tables(tables.robustness(run)),
            _wide(run, "robustness"),
        ),
        ReportSection(
            "Compression",
            f"Chosen of these options: {run.front.rule if run.front else ''}.",
            _tables(tables.front(run)),
            _wide(run, "front"),
        ),
        ReportSection(
            "Explanation",
            "Where the float network found the evidence for the answer it gave, in its most confident errors and in a "
            f"random sample. {sanity} Scans are shown as they are: text burned into the pixels can be read here.",
            (),
            _wide(run, "explain/cases", "explain/nearest"),
        ),
        ReportSection(
            "Scans unlike those of training",
            "The release declines to answer where a scan's header, content or sharpness is unlike those it was trained "
            "on.",
            _tables(tables.domain(run)),
            (),
        ),
        ReportSection("Data", "", _tables(tables.data(run), tables.shortcuts(run)), ()),
        ReportSection(
            "Training",
            run.metrics.kept.sentence if run.metrics.kept else "",
            (),
            _wide(run, "learning_curves"),
        ),
        ReportSection("Provenance", "", _tables(tables.speed(run), tables.provenance(run)), ()),
    ]
    return [section for section in found if section.tables or section.pictures]
