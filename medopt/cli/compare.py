"""`medopt compare`: runs on the cases that they share, as paired differences."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.core.errors import ConfigError
from medopt.core.format import format_difference

if TYPE_CHECKING:
    from medopt.evaluation.comparison import Comparison, PairedFigures


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or prediction tables.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="As the tables name it; else int8. Repeatable.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    shared: Annotated[bool, typer.Option("--shared", help="Take the cases that all runs have.")] = False,
    figure: Annotated[Path | None, typer.Option("--figure", help="PNG file for the forest plot.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Page to write: table and forest plot.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="File for all of it as JSON.")] = None,
) -> None:
    """Compare runs with the first one: differences of AUC, sensitivity, specificity and Brier score on the same cases.

    Each with its interval and p, over all cases and at each site. Of a single run its models are compared.

    Example: medopt compare runs/busi/20261122-* runs/busi/20261123-* --html compared.html
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split takes train, val or test; got {split!r}.")
    from medopt.experiments.compare import compare_runs

    compared = compare_runs(runs, model, split, shared=shared)  # type: ignore[arg-type]  # checked above
    print_comparison(compared)
    if figure is not None:
        from medopt.figures.comparison import comparison_figure

        comparison_figure(compared, figure)
        typer.echo(f"picture   {figure}")
    if page is not None:
        from medopt.figures.comparison import comparison_figure
        from medopt.report.comparison_pages import write_comparison

        with TemporaryDirectory() as folder:
            comparison_figure(compared, Path(folder) / "compared.png")
            write_comparison(page, compared, Path(folder) / "compared.png")
        typer.echo(f"page      {page}")
    if out is not None:
        compared.write(out)
        typer.echo(f"figures   {out}")


def print_comparison(compared: Comparison) -> None:
    """The table of `compare_runs`."""
    from rich.table import Table

    from medopt.cli.console import plain_console
    from medopt.evaluation.comparison import COMPARED

    title = (
        f"less {compared.reference}: {compared.cases} cases of {compared.patients} patients, {compared.split} split "
        f"({compared.confidence:.0%} interval)"
    )
    table = Table("", *(heading for name in COMPARED for heading in (name, "p")), title=title, title_justify="left")
    for run in compared.runs:
        table.add_row(run.name, *_cells(run.figures))
        for site, figures in run.sites.items():
            table.add_row(f"  at {site} ({figures.cases})", *_cells(figures))
    console = plain_console()
    console.print(table)
    console.print(compared.note, soft_wrap=True)


def _cells(figures: PairedFigures) -> list[str]:
    cells = []
    for one in figures.by_name().values():
        p = "" if one.p is None else f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"
        cells += [format_difference(one.difference), p]
    return cells
