"""`medopt compare`: runs on the cases that they share, as paired differences."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import outputs, print_json
from medopt.cli.options import JsonOption, Split
from medopt.cli.places import run_folder
from medopt.core.format import format_difference

if TYPE_CHECKING:
    from medopt.evaluation.comparison import Comparison, PairedFigures


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folders, studies' folders (of each its newest run), or prediction tables."
        ),
    ],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="As the tables name it; else int8. Repeatable.")
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="Which cases.")] = "test",
    shared: Annotated[bool, typer.Option("--shared", help="Take the cases that all runs have.")] = False,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", help="File to write: .html (a page), .png (the forest plot) or .json (all of it). Repeatable."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs with the first one: differences of AUC, sensitivity, specificity and Brier score on the same cases.

    Each with its interval and p, over all cases and at each site. Of a single run its models are compared.

    Example: medopt compare runs/busi/20261122-* runs/busi/20261123-* --out compared.html
    """
    files = outputs(out or (), {".html": "the page", ".png": "the forest plot", ".json": "all figures"})
    folders = [run_folder(run) for run in runs]
    from medopt.experiments.compare import compare_runs

    compared = compare_runs(folders, model, split, shared=shared)
    print_comparison(compared)
    for ending, path in files.items():
        _write(path, ending, compared)
        typer.echo(f"written to {path}")
    print_json(as_json, compared.json_values())


def _write(path: Path, ending: str, compared: Comparison) -> None:
    """One of the files of --out: the page holds the forest plot, too."""
    if ending == ".json":
        compared.write(path)
        return
    from medopt.figures.comparison import comparison_figure

    if ending == ".png":
        comparison_figure(compared, path)
        return
    from medopt.report.comparison_pages import write_comparison

    with TemporaryDirectory() as folder:
        comparison_figure(compared, Path(folder) / "compared.png")
        write_comparison(path, compared, Path(folder) / "compared.png")


def print_comparison(compared: Comparison) -> None:
    """The table of `compare_runs`."""
    from rich.table import Table
    from rich.text import Text

    from medopt.cli.console import TONES, plain_console
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
    for line in compared.verdicts:
        console.print(Text(line, TONES["bad"]), soft_wrap=True)
    console.print(table)
    console.print(compared.note, soft_wrap=True)


def _cells(figures: PairedFigures) -> list[str]:
    cells = []
    for one in figures.by_name().values():
        p = "" if one.p is None else f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"
        cells += [format_difference(one.difference), p]
    return cells
