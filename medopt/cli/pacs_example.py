"""`medopt pacs demo` and `medopt pacs example`: the node beside an Orthanc, to be looked at and to be copied."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import note, print_json
from medopt.cli.options import JsonOption
from medopt.cli.places import release_folder

if TYPE_CHECKING:
    from medopt.pacs.demo import Shown


def demo(
    release: Annotated[
        Path | None,
        typer.Argument(metavar="[RELEASE]", help="Of the study phantom, as elsewhere; without one its newest run's."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where runs are.")] = Path("runs"),
    studies: Annotated[int, typer.Option("--studies", min=1, max=500, help="How many to draw and send.")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Leave both running, to look around, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start Orthanc and a node, send drawn studies to Orthanc, and show the results that come back there.

    Needs Orthanc on this machine. Everything lies in a temporary folder and is gone afterwards. Exit code 3 where a
    result is missing.

    Example: medopt pacs demo
    """
    from medopt.cli.console import print_rows
    from medopt.core import signals
    from medopt.core.errors import DataError
    from medopt.pacs.demo import newest_release, send_studies, started

    signals.listen()  # SIGTERM, too, ends Orthanc and the node
    found: list[Shown] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medopt-pacs-") as folder:
        with started(release_folder(release) if release else newest_release(runs), Path(folder)) as places:
            note(f"Orthanc runs ({places.orthanc}), the node too")
            for found in send_studies(places, studies, note):
                back = sum(one.seconds is not None for one in found)
                note(f"{back} of {studies} studies have their results in Orthanc")
            print_rows("Drawn studies, and what came back to Orthanc", [_row(one) | _figures(one) for one in found])
            missing = [one.study for one in found if one.seconds is None]
            if keep:
                typer.echo(f"Orthanc: {places.orthanc}/app/explorer.html")
                typer.echo(f"The node: http://127.0.0.1:{places.page}/")
                typer.echo("Ctrl-C ends both.")
                with suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(3600)
        seconds = time.monotonic() - begun
    if not keep:
        typer.echo(f"All stopped after {seconds:.0f} s. To look at the reports in Orthanc's page: --keep")
    print_json(as_json, {"studies": [_row(one) for one in found], "seconds": round(seconds, 1)})
    if missing:
        raise DataError(f"No result came back for {len(missing)} of {studies} studies: number {missing}.")


def _row(one: Shown) -> dict[str, object]:
    from dataclasses import asdict

    return {name: "" if value is None else value for name, value in asdict(one).items()}


def _figures(one: Shown) -> dict[str, str]:
    probability, seconds = one.probability, one.seconds
    return {
        "probability": "" if probability is None else f"{probability:.3f}",
        "seconds": "" if seconds is None else f"{seconds:.1f}",
    }


def example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the files; it is made.")],
    as_json: JsonOption = False,
) -> None:
    """Write what a site starts from: node.yaml, orthanc.json with route.lua, and a systemd unit.

    Example: medopt pacs example site
    """
    from medopt.pacs.demo import write_example

    files = [str(path) for path in write_example(folder)]
    typer.echo("\n".join(files))
    print_json(as_json, {"files": files})
