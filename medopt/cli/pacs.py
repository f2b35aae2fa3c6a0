"""`medopt pacs`: run a PACS node, check one, see what it does, begin anew with what is parked."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli import pacs_example, pacs_reconcile
from medopt.cli.command import print_json
from medopt.cli.options import JsonOption
from medopt.cli.places import release_folder

if TYPE_CHECKING:
    from medopt.pacs.ledger import Ledger
    from medopt.pacs.settings import Node

NodeFile = Annotated[Path, typer.Argument(metavar="NODE.yaml", help="A node file.")]


def run(node_file: NodeFile) -> None:
    """Run the node until Ctrl-C or SIGTERM; the study at work then gets 20 seconds, or is done at the next start.

    A node that was killed goes on where it was: what was acknowledged is answered and sent exactly once.

    Example: medopt pacs run node.yaml
    """
    from medopt.pacs.node import PacsNode
    from medopt.pacs.settings import load_node

    warnings.simplefilter("ignore")  # those of pydicom quote what stands in a header
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("medopt.pacs").setLevel(logging.INFO)
    settings = load_node(node_file)
    node = PacsNode(settings.model_copy(update={"release": release_folder(settings.release)}))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: node.stop())
    node.run(typer.echo)


def check(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Check the node file, the release with its golden cases, and each destination by C-ECHO or a query that nothing
    fits; sends nothing else.

    Where the node runs, it is called by C-ECHO, too. Exit code 2 where a destination does not answer.

    Example: medopt pacs check node.yaml
    """
    from medopt.cli.console import print_rows
    from medopt.core.errors import ConfigError
    from medopt.pacs.association import server_context
    from medopt.pacs.destinations import Destination
    from medopt.pacs.sender import echo
    from medopt.pacs.settings import load_node
    from medopt.release.golden import verify_release

    node = load_node(node_file)
    server_context(node.tls)
    verify_release(release_folder(node.release))
    itself = Destination(aet=node.aet, host="127.0.0.1", port=node.port, tls=node.tls is not None)
    others = [*node.destinations, *([] if node.pull is None else [node.pull.source])]
    found = {one.name: echo(node, one) for one in others}
    rows = [{"what": "release", "found": "unchanged; golden cases replayed"}]
    rows += [
        {"what": f"{'QIDO-RS' if '://' in name else 'C-ECHO'} to {name}", "found": why or "answered"}
        for name, why in found.items()
    ]
    listed_itself = any(peer.aet == node.aet and peer.comes_from("127.0.0.1") for peer in node.accept)
    if listed_itself:
        rows.append({"what": "C-ECHO to the node itself", "found": echo(node, itself) or "answered"})
    else:
        rows.append({"what": "C-ECHO to the node itself", "found": "not tried: it is not in its own `accept`"})
    print_rows(f"{node_file}", rows)
    print_json(as_json, {"node": str(node_file), "checks": rows})
    if silent := [f"{name}: {why}" for name, why in found.items() if why]:
        raise ConfigError(
            f"No answer from {'; '.join(silent)}. Check title, host and port, and that {node.aet} is known there."
        )


def status(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Show how many studies and results are in each state, and what waits for a person; studies as pseudonyms.

    Example: medopt pacs status node.yaml
    """
    from medopt.cli.console import print_rows
    from medopt.core.privacy import pseudonym
    from medopt.pacs.queue_status import counts, parked

    _, ledger = _ledger(node_file)
    numbers = counts(ledger)
    waiting = [{"study": pseudonym(study), "parked": what, "reason": why} for study, what, why in parked(ledger)]
    ledger.close()
    rows = [{"what": table, "state": state, "number": n} for table, by in numbers.items() for state, n in by.items()]
    print_rows(f"{node_file}: studies, and results to send", rows)
    if waiting:
        print_rows("parked; begin anew with `medopt pacs retry`", waiting)
    print_json(as_json, {**{table: dict(by) for table, by in numbers.items()}, "parked": waiting})


def retry(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Begin anew with all studies and results that are parked; a running node takes them up by itself.

    Example: medopt pacs retry node.yaml
    """
    import time

    from medopt.pacs import queue_status

    _, ledger = _ledger(node_file)
    studies, sends = queue_status.retry(ledger, time.time())
    ledger.close()
    typer.echo(f"{studies} studies and {sends} results are tried again")
    print_json(as_json, {"studies": studies, "results": sends})


def verify(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Check that no line of the record was changed, added or taken away; prints the last line's hash to keep.

    Exit code 3 where one was.

    Example: medopt pacs audit verify node.yaml
    """
    from medopt.pacs.audit import verify as verify_chain
    from medopt.pacs.settings import load_node
    from medopt.pacs.spool import AUDIT

    lines, last = verify_chain(load_node(node_file).spool / AUDIT)
    typer.echo(f"{lines} lines, unchanged; the last one's SHA-256 is {last}")
    print_json(as_json, {"lines": lines, "last": last})


def _ledger(node_file: Path) -> tuple[Node, Ledger]:
    from medopt.core.errors import ConfigError
    from medopt.pacs.ledger import Ledger
    from medopt.pacs.settings import load_node
    from medopt.pacs.spool import LEDGER

    node = load_node(node_file)
    path = node.spool / LEDGER
    if not path.is_file():
        raise ConfigError(f"The node of {node_file} has not run yet: there is no {path}.")
    return node, Ledger(path)


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "check": check,
    "status": status,
    "retry": retry,
    "reconcile": pacs_reconcile.reconcile,
    "demo": pacs_example.demo,
    "example": pacs_example.example,
}
