"""`medopt report`: the page by which a run is judged."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or a study's folder: then its newest run.")],
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Write a run's report anew from its own records, and open it: one HTML file that needs no network.

    Its first page answers: does it work, for whom not, how sure is that, and what did int8 change.

    Example: medopt report runs/phantom
    """
    from medopt.report import newest_run, write_report

    path = write_report(newest_run(run))
    typer.echo(path)
    if show:
        webbrowser.open(path.resolve().as_uri())
