"""`medopt mlflow`: from a laptop's store to a team's server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.options import JsonOption, RunsOption

mlflow_app = typer.Typer(help="Move runs to a team's MLflow server.", no_args_is_help=True)


@mlflow_app.command()
def migrate(
    runs: RunsOption = Path("runs"),
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="The server's address; else MLFLOW_TRACKING_URI.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the runs folder's store to a server: runs with their history and files, models, versions, aliases.

    Interrupted or killed, the same command goes on where it was; nothing is copied twice. Every copy is read back and
    compared. The store of the runs folder stays as it is, and a run that is gone on with goes on in its copy.

    Example: medopt mlflow migrate --to https://mlflow.example.org
    """
    from medopt.cli.console import ConsoleReporter, print_rows
    from medopt.tracking.migrate import migrate as move

    reporter = ConsoleReporter()
    try:
        done = move(runs, to, reporter)
    finally:
        reporter.close()
    print_rows("moved to the server", done.table())
    for note in done.notes:
        typer.echo(note)
    typer.echo(f"runs on the server: {len(done.runs)}; each was read back when it was copied, and is as it is here")
    typer.echo(
        "Track there from now on: export MLFLOW_TRACKING_URI (and ..._USERNAME, ..._PASSWORD); see mlflow/README.md."
    )
    if as_json:
        typer.echo(json.dumps({"rows": done.table(), "checked": len(done.runs), "notes": done.notes}))
