"""`medopt dossier`: the facts of a run under the headings that a regulator asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption
from medopt.cli.places import run_folder


def dossier(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a study's: then its newest run.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("dossier.html"),
    as_json: JsonOption = False,
) -> None:
    """Write what a regulatory writer starts from: the run's facts under the headings of the AI Act's Annex IV.

    Each sentence is a recorded fact, or names what the manufacturer has to write. It does not state conformity.

    Example: medopt dossier runs/lesions --out dossier.html
    """
    from medopt.report.dossier import write_dossier

    folder = run_folder(run)
    sections = write_dossier(folder, out)
    facts, missing = sum(len(one.facts) for one in sections), sum(len(one.open) for one in sections)
    typer.echo(f"written to {out}: {facts} facts of the run, {missing} points to be written by the manufacturer")
    print_json(as_json, {"run": str(folder), "out": str(out), "facts": facts, "open": missing})
