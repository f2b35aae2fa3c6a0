"""`medopt pacs reconcile`: fetch what a PACS has and the node never received."""

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
    from medopt.pacs.settings import NodeSettings

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(min|h|d)")
_SECONDS = {"min": 60.0, "h": 3600.0, "d": 86400.0}


def reconcile(
    node_file: Annotated[Path, typer.Argument(metavar="NODE.yaml", help="A node file with a section pull.")],
    since: Annotated[str, typer.Option("--since", help="As in 2d or 12h; else pull.days. Counts in days.")] = "",
    every: Annotated[str, typer.Option("--every", help="Again and again, as in 30min, until Ctrl-C.")] = "",
    look: Annotated[bool, typer.Option("--look", help="Only say what is missing; fetch nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask the PACS of the section pull which studies it has, and fetch the instances that never reached this node.

    The node must run: it receives what is fetched. Exit code 3 if instances are still missing then, or if
    something could not be compared.

    Example: medopt pacs reconcile node.yaml --since 2d
    """
    from medopt.cli.console import print_rows
    from medopt.core.errors import ConfigError, DataError
    from medopt.pacs.peers import WebPeer
    from medopt.pacs.query_retrieve.periodic import open_source
    from medopt.pacs.query_retrieve.reconcile import Reconciler
    from medopt.pacs.query_retrieve.web_source import deliver_to_running_node
    from medopt.pacs.settings import load_node_settings
    from medopt.pacs.spool import LEDGER

    settings = load_node_settings(node_file)
    if settings.pull is None:
        raise ConfigError(f"{node_file} has no section pull, which names the PACS (source) and the modalities.")
    if not (settings.spool / LEDGER).is_file():
        raise ConfigError(f"The node of {node_file} has not run yet: there is no {settings.spool / LEDGER}.")
    deliver: Deliver | None = None
    if not look:
        _require_running(settings)
        deliver = deliver_to_running_node(settings) if isinstance(settings.pull.source, WebPeer) else None
    days = _seconds(since, "--since") / 86400 if since else settings.pull.days
    pause = _seconds(every, "--every") if every else None
    reconciler = Reconciler(settings.spool / LEDGER, settings.pull.modalities)
    with suppress(KeyboardInterrupt):
        while True:
            first = (datetime.now() - timedelta(days=days)).date()
            with open_source(settings, deliver or _no_delivery, lambda: False) as source:
                outcome = reconciler.reconcile(source, first, lambda: False, fetch=not look)
            rows = [
                {"what": "studies", "number": outcome.studies},
                {"what": "instances known here", "number": outcome.present},
                {"what": "instances missing", "number": outcome.missing + outcome.put_off},
                {"what": "fetched", "number": outcome.fetched},
                *({"what": f"not compared: {why}", "number": count} for why, count in outcome.not_compared.items()),
            ]
            print_rows(f"{settings.pull.source.name} since {first}", rows)
            not_compared = {"not_compared": dict(outcome.not_compared)} if outcome.not_compared else {}
            counts = {"studies": outcome.studies, "known": outcome.present, "missing": outcome.missing}
            print_json(as_json, counts | {"fetched": outcome.fetched} | not_compared)
            if pause is None:
                break
            time.sleep(pause)
    if outcome.still_missing and not look:
        reason = f" ({outcome.reason})" if outcome.reason else ""
        raise DataError(
            f"{outcome.still_missing} instances did not arrive{reason}. See the node's log for those that it refused, "
            "and the PACS's for those that it could not send: it needs the node's AE title, address and port."
        )
    if outcome.not_compared:
        reasons = "; ".join(f"{count} x {why}" for why, count in outcome.not_compared.items())
        raise DataError(f"Not all of the source could be compared: {reasons}.")


def _no_delivery(*_: object) -> None:
    raise AssertionError("nothing is fetched")


def _require_running(settings: NodeSettings) -> None:
    """Raises ConfigError if no node works in the spool."""
    from medopt.core.errors import BusyError, ConfigError
    from medopt.pacs.spool import Spool

    try:
        with Spool(settings.spool).locked():
            raise ConfigError("The node does not run, so nothing can be fetched: start it first, or use --look.")
    except BusyError:
        return


def _seconds(text: str, option: str) -> float:
    from medopt.core.errors import ConfigError

    span = _SPAN.fullmatch(text.strip())
    if span is None or float(span[1]) <= 0:
        raise ConfigError(f"{option} takes a time as in 30min, 12h or 2d; got {text!r}.")
    return float(span[1]) * _SECONDS[span[2]]
