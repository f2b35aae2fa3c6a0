"""`medopt pacs reconcile`: what a PACS has and the node never got."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json
from medopt.cli.options import JsonOption

if TYPE_CHECKING:
    from medopt.pacs.query_retrieve.web_source import Deliver
    from medopt.pacs.settings import Node

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(min|h|d)")
_SECONDS = {"min": 60.0, "h": 3600.0, "d": 86400.0}


def reconcile(
    node_file: Annotated[Path, typer.Argument(metavar="NODE.yaml", help="A node file with a section pull.")],
    since: Annotated[str, typer.Option("--since", help="As in 2d or 12h; else pull.days. Counts in days.")] = "",
    every: Annotated[str, typer.Option("--every", help="Again and again, as in 30min, until Ctrl-C.")] = "",
    look: Annotated[bool, typer.Option("--look", help="Only say what is missing; fetch nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the PACS of the section pull which studies it has, and fetch the instances that never came here.

    The node must run: what is fetched comes in by its doors. Exit code 3 where instances are still missing then.

    Example: medopt pacs reconcile node.yaml --since 2d
    """
    from medopt.cli.console import print_rows
    from medopt.core.errors import ConfigError, DataError
    from medopt.pacs.destinations import WebDestination
    from medopt.pacs.query_retrieve.periodic import opened
    from medopt.pacs.query_retrieve.reconcile import Reconciler
    from medopt.pacs.query_retrieve.web_source import over
    from medopt.pacs.settings import load_node
    from medopt.pacs.spool import LEDGER

    node = load_node(node_file)
    if node.pull is None:
        raise ConfigError(f"{node_file} has no section pull: it names the PACS to ask, source, and modalities.")
    if not (node.spool / LEDGER).is_file():
        raise ConfigError(f"The node of {node_file} has not run yet: there is no {node.spool / LEDGER}.")
    deliver: Deliver | None = None
    if not look:
        _running(node)
        deliver = over(node) if isinstance(node.pull.source, WebDestination) else None
    days = _seconds(since, "--since") / 86400 if since else node.pull.days
    pause = _seconds(every, "--every") if every else None
    reconciler = Reconciler(node.spool / LEDGER, node.pull.modalities)
    with suppress(KeyboardInterrupt):
        while True:
            first = (datetime.now() - timedelta(days=days)).date()
            with opened(node, deliver or _nobody, lambda: False) as source:
                found = reconciler.reconcile(source, first, lambda: False, fetch=not look)
            rows = [
                {"what": "studies", "number": found.studies},
                {"what": "instances that are here", "number": found.known},
                {"what": "instances missing", "number": found.missing + found.put_off},
                {"what": "of these fetched", "number": found.fetched},
            ]
            print_rows(f"{node.pull.source.name} since {first}", rows)
            named = ("studies", "known", "missing", "fetched")
            print_json(as_json, {name: getattr(found, name) for name in named})
            if pause is None:
                break
            time.sleep(pause)
    if found.still_missing and not look:
        why = f" ({found.reason})" if found.reason else ""
        raise DataError(
            f"{found.still_missing} instances did not come{why}. See the node's log for those that it refused, and the "
            "PACS's for those that it could not send: it needs the node's AE title, address and port."
        )


def _nobody(*_: object) -> None:
    raise AssertionError("nothing is fetched")


def _running(node: Node) -> None:
    """Raises ConfigError where no node works in the spool."""
    from medopt.core.errors import BusyError, ConfigError
    from medopt.pacs.spool import Spool

    try:
        with Spool(node.spool).owned():
            raise ConfigError("The node does not run, so nothing can be fetched: start it first, or use --look.")
    except BusyError:
        return


def _seconds(text: str, option: str) -> float:
    from medopt.core.errors import ConfigError

    found = _SPAN.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"{option} takes a time as in 30min, 12h or 2d; got {text!r}.")
    return float(found[1]) * _SECONDS[found[2]]
