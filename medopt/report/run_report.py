"""`report.html` of a run: does it work, for whom not, how sure, what int8 changed; and what stands behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from medopt.evaluation.verdict_lines import verdict_lines
from medopt.release.reporting_guidelines import AUTHOR_ITEMS, COVERED
from medopt.report import tables
from medopt.report.glossary import GLOSSARY
from medopt.report.html import chart, picture, write_page
from medopt.report.key_questions import key_answers
from medopt.report.run_records import RunRecords, read_run
from medopt.report.tables import ReportTable

REPORT = "report.html"
ALT = {
    "roc": "ROC curves of both models on the test split with their bands",
    "subgroups": "AUC, sensitivity and specificity of each site and subgroup with intervals",
    "agreement": "Predicted against true numbers, and their difference against their mean, both models",
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
READING = {
    "roc": "The nearer to the upper left corner, the better; the diagonal is chance.",
    "subgroups": "A group left of the dotted line does worse than all cases together. A wide bar means few patients, "
    "not a worse group.",
    "agreement": "Left: on the diagonal, the number is right. Right: a slope means that large numbers are predicted "
    "too small, or too large.",
    "precision_recall": "How many of the cases called positive are positive, for each share of positives found.",
    "confusion": "Correct decisions are on the diagonal from the upper left to the lower right.",
    "reliability": "On the diagonal, a probability of 30 % means that 30 of 100 such cases are positive. Below it, "
    "probabilities are too high.",
    "decision_curve": "The model is of use at thresholds where its line is above both others.",
    "coverage_risk": "The further a line falls to the left, the better the model knows which cases it is unsure of.",
    "robustness": "A line that falls steeply marks a change of image quality that the model does not tolerate.",
    "explain/cases": "Warm colours mark the places that spoke for the answer. A radiologist may look at others.",
    "explain/nearest": "If the nearest training images look alike but have another label, check the labels.",
    "front": "The best options are in the upper left: accurate, fast, small.",
    "learning_curves": "Overfitting shows where the validation loss rises while the training loss still falls.",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what it shows, for those who cannot see it, and how it is read.

    `drawing` is an SVG element; `source` the data address of a picture that has none.
    """

    drawing: Markup
    source: str
    alt: str
    reading: str


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
    target, sections = folder / REPORT, _sections(run)
    write_page(
        target,
        "run.html",
        run=run,
        verdicts=verdict_lines(run.metrics, run.metrics.gate),
        answers=key_answers(run),
        front=_pictures(run, "roc", "subgroups"),
        sections=sections,
        settings=tables.settings(run.study),
        covered=_covered(run, sections),
        glossary=GLOSSARY,
        author_items=AUTHOR_ITEMS,
    )
    return target


def _covered(run: RunRecords, sections: Sequence[ReportSection]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Item of a guideline, what it asks for, and the parts of this report that have it, with their anchors."""
    known = {one.title: one.anchor for one in sections} | {"Settings": "settings"}
    if run.metrics.data_notes:
        known["Known of the data"] = "known-of-the-data"
    return [
        (
            item,
            what,
            [(name, known[title]) for name in where.split(", ") if (title := name.partition(" (")[0]) in known],
        )
        for item, what, where in COVERED
    ]


def _pictures(run: RunRecords, *names: str) -> tuple[Picture, ...]:
    """Those of the named pictures that the run has; one of an older version as it was drawn then."""
    names = tuple(name for name in names if name != "subgroups" or tables.subgroups(run) is not None)
    found = []
    for name in names:
        alt, drawn = ALT[name], run.figures / f"{name}.svg"
        drawing = chart(drawn, alt) if drawn.is_file() else Markup()
        source = "" if drawing else picture(run.figures / f"{name}.png")
        if drawing or source:
            found.append(Picture(drawing, source, alt, READING[name]))
    return tuple(found)


def _legend(run: RunRecords) -> str:
    """What numbers stand for in the pictures, where no font has the characters of labels."""
    if all(label.isascii() for label in run.study.data.labels):
        return ""  # the fonts take half a second
    from medopt.figures.fonts import label_legend

    return label_legend(run.study.data.labels)


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
            _tables(
                *(tables.number(run), tables.grades(run)),
                *(tables.baselines(run), tables.covariates(run), tables.performance(run), tables.patients(run)),
            ),
            _pictures(run, "agreement", "precision_recall", "confusion"),
        ),
        ReportSection(
            "Calibration and decisions",
            decided,
            _tables(tables.guarantee(run)),
            _pictures(run, "reliability", "decision_curve", "coverage_risk"),
        ),
        ReportSection("Sites and subgroups", "", _tables(tables.subgroups(run)), ()),
        ReportSection(
            "Shift and noise",
            "Test images degraded as by other devices, motion and transmission, from just visible (1) to severe (5).",
            _tables(tables.robustness(run)),
            _pictures(run, "robustness"),
        ),
        ReportSection(
            "Compression",
            f"Chosen of these options: {run.front.rule if run.front else ''}.",
            _tables(tables.front(run)),
            _pictures(run, "front"),
        ),
        ReportSection(
            "Explanation",
            "Where the float network found the evidence for the answer it gave, in its most confident errors and in a "
            f"random sample. {sanity} Scans are shown as they are: text burned into the pixels can be read here. A "
            "case's file stands in the run folder's manifest.csv, in the row of its case_id.",
            (),
            _pictures(run, "explain/cases", "explain/nearest"),
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
            _pictures(run, "learning_curves"),
        ),
        ReportSection("Provenance", "", _tables(tables.speed(run), tables.provenance(run)), ()),
    ]
    return [section for section in found if section.tables or section.pictures]
