"""`medopt performance`: how well a release does in service, without labels and as they arrive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, ReleaseArgument
from medopt.cli.places import release_folder
from medopt.core.format import count_text, format_estimate

if TYPE_CHECKING:
    from medopt.serving.service_performance import FindingPerformance, ServicePerformance


def performance(
    release: ReleaseArgument,
    answers: Annotated[Path, typer.Argument(metavar="PREDICTIONS.csv", help="What `medopt predict --out` wrote.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV with the columns path and label, of the scans whose truth is known by now."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate AUC, sensitivity, specificity and predictive values in service from the answers alone.

    The expected figures follow from the calibrated probabilities: of cases called positive at 80 %, four of five are
    expected to be. They hold for other patients and another prevalence, and not where a finding looks otherwise than in
    training; what speaks against them is said. With --labels the true figures stand beside the expected ones.

    Example: medopt performance runs/phantom march.csv --labels biopsies.csv
    """
    folder = release_folder(release)
    from medopt.release.drift_reference import Reference
    from medopt.release.layout import check_sums, read_info
    from medopt.serving.service_performance import service_performance

    check_sums(folder)
    found = service_performance(read_info(folder), Reference.read(folder), answers, labels)
    for name, one in found.findings.items():
        _print(found, name, one)
    for doubt in found.doubts:
        typer.echo(f"do not rely on the expected figures: {doubt}")
    if not found.doubts:
        typer.echo("nothing speaks against the expected figures; labels alone can show that a finding looks otherwise")
    print_json(as_json, found.json_values())


def _print(found: ServicePerformance, name: str, one: FindingPerformance) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console

    undecided = f", {found.undecided} undecided" if found.undecided else ""
    title = f"{found.study}, {name}: {found.answered} of {count_text(found.scans, 'scan')} answered{undecided}"
    table = Table("", "expected in service", title=title, title_justify="left")
    if one.true is not None:
        table.add_column(f"expected of {one.labelled} with a label")
        table.add_column("true of these")
    if one.validation:
        table.add_column("test split of the run")
    for figure, estimate in one.expected.items():
        cells = [format_estimate(estimate)]
        if one.true is not None and one.expected_of_these is not None:
            cells += [format_estimate(one.expected_of_these[figure]), format_estimate(one.true[figure])]
        if one.validation:
            cells.append(format_estimate(one.validation[figure]) if figure in one.validation else "")
        table.add_row(figure.upper() if figure in ("auc", "ppv", "npv") else figure, *cells)
    plain_console().print(table)
