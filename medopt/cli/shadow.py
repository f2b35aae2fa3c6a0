"""`medopt shadow report`: what a candidate release would have changed on the studies of a running node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import outputs, print_json
from medopt.cli.options import JsonOption, RegistryOption
from medopt.cli.pacs import NodeFile, open_ledger, with_release_folders

if TYPE_CHECKING:
    from medopt.evaluation.shadow_trial import ShadowReport


def report(
    node_file: NodeFile,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", help="File to write: .html (a page) or .json (what medopt promote takes). Repeatable."),
    ] = None,
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Compare the candidate in a node's section shadow with the present release on the same live studies.

    Agreement, declined scans, changed decisions, the shift of probabilities and the cost, with intervals over patients,
    by site and device; and paired true figures of the scans whose labels `medopt feedback` brought. All names are
    pseudonyms. The node may run meanwhile.

    Example: medopt shadow report node.yaml --out shadow.html --out shadow.json
    """
    files = outputs(out or (), {".html": "the page", ".json": "all figures"})
    from medopt.pacs.settings import load_node_settings
    from medopt.pacs.shadow_report import shadow_report

    settings = with_release_folders(load_node_settings(node_file), runs)
    ledger = open_ledger(node_file)
    try:
        result = shadow_report(ledger, settings)
    finally:
        ledger.close()
    print_shadow_report(result)
    for ending, path in files.items():
        if ending == ".json":
            result.write(path)
        else:
            from medopt.report.shadow_page import write_shadow_report

            write_shadow_report(path, result)
        typer.echo(f"written to {path}")
    print_json(as_json, result.json_values())


def print_shadow_report(report: ShadowReport) -> None:
    """Its tables, and what it cannot show."""
    from rich.table import Table

    from medopt.cli.console import plain_console
    from medopt.report.shadow_page import shadow_tables

    console = plain_console()
    for one in shadow_tables(report):
        table = Table(*one.columns, title=one.title, title_justify="left")
        for row in one.rows:
            table.add_row(*row)
        console.print(table)
    for doubt in report.doubts:
        typer.echo(f"mind: {doubt}")
