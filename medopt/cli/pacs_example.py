"""`medopt pacs demo` and `medopt pacs example`: the node beside an Orthanc, to look at and to copy."""

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
    from medopt.pacs.demo import DemoResult


def demo(
    release: Annotated[
        Path | None,
        typer.Argument(metavar="[RELEASE]", help="Of the study phantom, as elsewhere; without one its newest run's."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Where runs are.")] = Path("runs"),
    studies: Annotated[int, typer.Option("--studies", min=1, max=500, help="How many studies to draw and send.")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Keep both running until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start Orthanc and a node, send drawn studies to Orthanc, and show the results that come back there.

    Needs Orthanc on this machine. All files are in a temporary folder and are removed afterwards. Exit code 3 if
    a result is missing.

    Example: medopt pacs demo
    """
    from medopt.cli.console import print_rows
    from medopt.core import signals
    from medopt.core.errors import DataError
    from medopt.pacs.demo import newest_release, send_studies, summary_line
    from medopt.pacs.example_site import running_site

    signals.install_handlers()  # SIGTERM ends Orthanc and the node, too
    results: list[DemoResult] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medopt-pacs-") as folder:
        with running_site(release_folder(release, runs) if release else newest_release(runs), Path(folder)) as site:
            note(f"Orthanc runs ({site.orthanc_url}), the node too")
            for results in send_studies(site, studies, note):
                complete = sum(result.seconds is not None for result in results)
                note(f"{complete} of {studies} studies have their results in Orthanc")
            print_rows(
                "Drawn studies, and their results in Orthanc", [_row(result) | _figures(result) for result in results]
            )
            typer.echo(summary_line(results))
            missing = [result.study for result in results if result.seconds is None]
            if keep:
                typer.echo(f"Orthanc: {site.orthanc_url}/app/explorer.html")
                typer.echo(f"The node: http://127.0.0.1:{site.node_http_port}/")
                typer.echo("Ctrl-C ends both.")
                with suppress(KeyboardInterrupt):
                    while True:
                        time.sleep(3600)
        seconds = time.monotonic() - started
    if not keep:
        typer.echo(f"All stopped after {seconds:.0f} s. To look at the reports in Orthanc's page: --keep")
    print_json(as_json, {"studies": [_row(result) for result in results], "seconds": round(seconds, 1)})
    if missing:
        raise DataError(f"No result came back for {len(missing)} of {studies} studies: number {missing}.")


def _row(result: DemoResult) -> dict[str, object]:
    from dataclasses import asdict

    return {name: "" if value is None else value for name, value in asdict(result).items()}


def _figures(result: DemoResult) -> dict[str, str]:
    probability, seconds = result.probability, result.seconds
    return {
        "probability": "" if probability is None else f"{probability:.3f}",
        "seconds": "" if seconds is None else f"{seconds:.1f}",
    }


def example(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder for the files; it is created.")],
    as_json: JsonOption = False,
) -> None:
    """Write the files that a site starts from: node.yaml, orthanc.json with route.lua, and a systemd unit.

    Example: medopt pacs example site
    """
    from medopt.pacs.example_site import write_example

    files = [str(path) for path in write_example(folder)]
    typer.echo("\n".join(files))
    print_json(as_json, {"files": files})
