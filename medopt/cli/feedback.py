"""`medopt feedback`: true labels of studies that a node answered, as they arrive."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption, RegistryOption
from medopt.cli.pacs import open_ledger, with_release_folders
from medopt.core.format import count_text


def feedback(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS.csv",
            help="CSV with a column study (pseudonym), study_uid or accession; maybe scan (pseudonym) or image (UID); "
            "and label, or for several findings a column of each with 0 or 1.",
        ),
    ],
    node: Annotated[Path, typer.Option("--node", metavar="NODE.yaml", help="The node that answered the studies.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Also where the ledger has another label; it keeps the earlier one.")
    ] = False,
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Write true labels (biopsies, reads) into the ledger of a node, by study or scan; the node may run meanwhile.

    medopt performance RELEASE NODE.yaml then has true figures where labels are, and medopt shadow report compares both
    releases on them. All rows are taken or none. The ledger keeps pseudonyms and the SHA-256 of the file, no accession
    number.

    Example: medopt feedback biopsies.csv --node node.yaml
    """
    import time

    from medopt.pacs.labels import record_labels
    from medopt.pacs.settings import load_node_settings
    from medopt.release.layout import read_info

    settings = with_release_folders(load_node_settings(node), runs)
    ledger = open_ledger(node)
    try:
        done = record_labels(ledger, read_info(settings.release), labels, time.time(), replace=replace)
    finally:
        ledger.close()
    typer.echo(
        f"{count_text(done.new, 'new label')}, {done.known} known before, {done.replaced} replaced; "
        f"{count_text(done.elsewhere, 'row')} of no study that the node answered"
    )
    print_json(as_json, asdict(done))
