"""`medopt performance`: how well a release does in service, without labels and as they arrive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, ReleaseArgument
from medopt.cli.places import release_folder
from medopt.core.errors import ConfigError
from medopt.core.format import count_text, format_estimate

if TYPE_CHECKING:
    from medopt.serving.service_performance import FindingPerformance, ServicePerformance


def performance(
    release: ReleaseArgument,
    answers: Annotated[
        Path,
        typer.Argument(
            metavar="ANSWERS",
            help="What `medopt predict --out` wrote; or the NODE.yaml of a node that runs the release.",
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV with the columns path and label, of the scans whose truth is known by now."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate AUC, sensitivity, specificity and predictive values in service from the answers alone.

    The expected figures follow from the calibrated probabilities: of cases called positive at 80 %, four of five are
    expected to be. They hold for other patients and another prevalence, and not where a finding looks otherwise than in
    training; what speaks against them is said. With --labels, or after medopt feedback, the true figures stand beside
    the expected ones, and the labels that arrived replace what was expected of their scans.

    Of a node the answers are those in its ledger, and intervals know which studies are of one patient. Of a CSV each
    scan counts as a patient, unless it has a column patient.

    Example: medopt performance runs/phantom march.csv --labels biopsies.csv

    Or of a node: medopt performance runs/phantom node.yaml
    """
    folder = release_folder(release)
    from medopt.release.drift_reference import Reference
    from medopt.release.layout import check_sums, read_info
    from medopt.serving.service_performance import service_performance

    check_sums(folder)
    if answers.suffix in (".yaml", ".yml"):
        if labels is not None:
            raise ConfigError("Labels of a node's studies come by medopt feedback LABELS.csv --node NODE.yaml.")
        figures = _of_node(folder, answers)
    else:
        figures = service_performance(read_info(folder), Reference.read(folder), answers, labels)
    for name, finding in figures.findings.items():
        _print(figures, name, finding)
    for doubt in figures.doubts:
        typer.echo(f"do not rely on the expected figures: {doubt}")
    if not figures.doubts:
        typer.echo("nothing speaks against the expected figures; labels alone can show that a finding looks otherwise")
    print_json(as_json, figures.json_values())


def _of_node(folder: Path, node: Path) -> ServicePerformance:
    """Of what a node's ledger says that the release answered."""
    from medopt.cli.pacs import open_ledger
    from medopt.core.files import file_digest
    from medopt.pacs.answer_rows import answer_rows
    from medopt.release.drift_reference import Reference
    from medopt.release.layout import SUMS, read_info
    from medopt.serving.prediction_table import observed_of
    from medopt.serving.service_performance import performance_of

    info, ledger = read_info(folder), open_ledger(node)
    has_number = info.number is not None
    try:
        rows, truth = answer_rows(ledger, file_digest(folder / SUMS), info.labels, has_number=has_number)
    finally:
        ledger.close()
    observed = observed_of(rows, info.labels, has_number=has_number)
    return performance_of(info, Reference.read(folder), rows, observed, truth, str(node))


def _print(figures: ServicePerformance, name: str, finding: FindingPerformance) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console

    undecided = f", {figures.undecided} undecided" if figures.undecided else ""
    patients = "" if figures.patients is None else f" of {count_text(figures.patients, 'patient')}"
    scans = f"{count_text(figures.scans, 'scan')}{patients}"
    title = f"{figures.study}, {name}: {figures.answered} of {scans} answered{undecided}"
    table = Table("", "expected in service", title=title, title_justify="left")
    if finding.true is not None:
        table.add_column(f"with {count_text(finding.labelled, 'label')}")
        table.add_column(f"expected of {finding.labelled} with a label")
        table.add_column("true of these")
    if finding.validation:
        table.add_column("test split of the run")
    for figure, estimate in finding.expected.items():
        cells = [format_estimate(estimate)]
        if finding.true is not None and finding.expected_of_these is not None:
            with_labels = {} if finding.in_service is None else finding.in_service
            cells += [format_estimate(with_labels.get(figure))]
            cells += [format_estimate(finding.expected_of_these[figure]), format_estimate(finding.true[figure])]
        if finding.validation:
            cells.append(format_estimate(finding.validation[figure]) if figure in finding.validation else "")
        table.add_row(figure.upper() if figure in ("auc", "ppv", "npv") else figure, *cells)
    plain_console().print(table)
