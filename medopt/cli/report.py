"""`medopt report`: the page by which a run is judged."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, RunArgument
from medopt.cli.places import run_folder


def report(
    run: RunArgument,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report anew from its own records, and open it: one HTML file that needs no network.

    Its first page answers: does it work, for whom not, how sure is that, and what did int8 change.

    Example: medopt report runs/phantom
    """
    folder = run_folder(run)
    from medopt.report import write_report

    path = write_report(folder)
    typer.echo(path)
    if show:
        webbrowser.open(path.resolve().as_uri())
    print_json(as_json, {"run": str(folder), "report": str(path)})
