"""`medopt dossier`: what a regulatory writer starts from, under the headings of the AI Act's technical documentation.

Headings: Regulation (EU) 2024/1689, Annex IV, points 1 to 9. Each sentence is a recorded fact of the run, or names what
the manufacturer has to write. Items of TRIPOD+AI (2024) and CLAIM (2024) as in the report. It is a start; it does not
state conformity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from medopt.core.format import count_text, format_difference, format_estimate, format_share
from medopt.core.records import SPLITS
from medopt.evaluation.guarantee import NOT_RECORDED, GuaranteeTable
from medopt.evaluation.verdict_lines import verdict_lines
from medopt.release.reporting_guidelines import AUTHOR_ITEMS, COVERED
from medopt.report.html import write_page
from medopt.report.key_questions import key_answers
from medopt.report.run_records import RunRecords, read_run

HEADINGS = (
    "General description",
    "Elements and development process",
    "Monitoring, functioning and control",
    "Appropriateness of the performance metrics",
    "Risk management system (Article 9)",
    "Changes through the lifecycle",
    "Harmonised standards",
    "EU declaration of conformity (Article 47)",
    "Performance after placing on the market (Article 72)",
)
METRICS = 4
OPEN = {
    1: ("the name of the provider", "how the system is placed on the market", "instructions for use"),
    2: (
        "why these design choices were made",
        "who labelled the images, by which standard of reference",
        "human oversight (Article 14)",
        "cybersecurity measures",
    ),
    3: ("foreseeable unintended outcomes and risks", "specifications of the input that the user must provide"),
    4: ("why these figures suit the intended use",),
    5: ("the risk management file (ISO 14971)",),
    6: ("changes made before this run",),
    7: ("the list of standards applied in full or in part",),
    8: ("a copy of the declaration",),
    9: ("the post-market monitoring plan",),
}
"""What no run records, by point."""


@dataclass(frozen=True, slots=True)
class DossierSection:
    """A heading of Annex IV: `facts` that the run recorded, and what is `open`: to be written by the manufacturer."""

    number: int
    title: str
    facts: tuple[str, ...]
    open: tuple[str, ...]
    table: GuaranteeTable | None = None


def write_dossier(folder: Path, out: Path) -> list[DossierSection]:
    """Write the page of a run folder; raises DataError where it holds no evaluated run, StorageError."""
    run = read_run(folder)
    sections = dossier_sections(run)
    write_page(
        out,
        "dossier.html",
        run=run,
        sections=sections,
        verdicts=verdict_lines(run.metrics, run.metrics.gate),
        covered=COVERED,
        author_items=AUTHOR_ITEMS,
    )
    return sections


def dossier_sections(run: RunRecords) -> list[DossierSection]:
    """All nine, in order."""
    facts = {1: _description, 2: _development, 3: _functioning, 4: _metrics, 6: _changes, 9: _monitoring}
    return [
        DossierSection(
            number,
            title,
            tuple(facts[number](run)) if number in facts else (),
            tuple(_open(run, number)),
            run.metrics.guarantee if number == METRICS else None,
        )
        for number, title in enumerate(HEADINGS, start=1)
    ]


def _open(run: RunRecords, number: int) -> list[str]:
    """What the manufacturer writes at a point."""
    unstated = (
        ["the intended purpose, the patients and the users"] if number == 1 and not run.study.intended_use else []
    )
    return [*unstated, *OPEN[number]]


def _description(run: RunRecords) -> Iterator[str]:
    study, metrics = run.study, run.metrics
    yield f"Name: {study.name}. Question: {study.question}"
    if study.intended_use:
        yield f"Intended use, as the study file states it: {study.intended_use}"
    size = " x ".join(map(str, study.prepare.size))
    yield f"Input: {study.prepare.input_channels} x {size} values, prepared by a chain that is part of the release."
    yield f"Answers: {', '.join(study.data.labels)} ({study.data.task})."
    versions = ", ".join(f"{name} {version}" for name, version in metrics.packages.items())
    yield f"Software: {versions}."
    times = metrics.served_ms
    yield f"An image takes {times.int8:.3g} ms in {metrics.engine.int8} ({metrics.size_bytes.int8 / 1e6:.2f} MB)."


def _development(run: RunRecords) -> Iterator[str]:
    study, metrics = run.study, run.metrics
    for split in SPLITS:
        counts = run.splits[split]
        labels = ", ".join(f"{name} {count}" for name, count in counts.labels.items())
        yield (
            f"Data, {split}: {count_text(counts.images, 'image')} of {count_text(counts.patients, 'patient')} at "
            f"{count_text(len(counts.sites), 'site')} ({labels})."
        )
    yield from (f"Known of the data: {note.rstrip('.')}." for note in metrics.data_notes)
    model = study.model
    yield f"Network: ResNet of {model.depth} layers, width {model.width}, start {model.start}, seed {study.seed}."
    if metrics.kept:
        yield metrics.kept.sentence
    if metrics.pruning:
        last = list(metrics.pruning.values())[-1]
        yield f"Pruned to {100 * last.multiply_adds.share:.0f} % of the multiply-adds, and fine-tuned."
    where = ", ".join(f"{key} {value}" for key, value in asdict(metrics.machine).items())
    yield f"Judged on: {where}."


def _functioning(run: RunRecords) -> Iterator[str]:
    for answer in key_answers(run):
        if answer.question in ("For whom not?", "How sure is that?"):
            yield from answer.sentences
    point = run.metrics.operating_point[run.served]
    yield f"Operating point: {point.rule}, chosen on validation{f' ({point.note})' if point.note else ''}."
    if run.metrics.robustness is None:
        yield "Robustness against degraded images was not measured."


def _metrics(run: RunRecords) -> Iterator[str]:
    test = run.metrics.test.int8
    yield (
        f"Test split, scored once: AUC {format_estimate(test.auc)}, sensitivity {format_share(test.sensitivity)}, "
        f"specificity {format_share(test.specificity)}, Brier score {format_estimate(test.brier)}."
    )
    yield from (f"{line.text}." for line in verdict_lines(run.metrics, run.metrics.gate))
    if baselines := run.metrics.baselines:
        for one in baselines.models.values():
            yield f"Against {one.title}: AUC {format_difference(one.gain)}."
    table = run.metrics.guarantee
    yield from (f"Promised: {one[0].lower()}{one[1:]}." for one in table.promises) if table else (f"{NOT_RECORDED}.",)


def _changes(run: RunRecords) -> Iterator[str]:
    yield f"This version is the run {run.folder.name}; MLflow run {run.metrics.mlflow_run_id}."
    yield "Its settings, its manifest with pseudonyms and the digests of all stages are in the run's folder."


def _monitoring(run: RunRecords) -> Iterator[str]:
    if domain := run.metrics.domain:
        declined = format_share(domain.declined.int8.test)
        yield f"The release declines scans unlike those of its training: {declined} of the test images."
    yield "Drift and performance in service can be followed with `medopt drift` and `medopt performance`."
