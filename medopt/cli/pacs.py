"""`medopt pacs`: run a PACS node, check it, show its state, try what is parked again."""

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
from medopt.cli.options import JsonOption, RegistryOption
from medopt.cli.places import release_folder
from medopt.core.signals import ending_signals

if TYPE_CHECKING:
    from medopt.pacs.ledger import Ledger
    from medopt.pacs.settings import NodeSettings, ShadowSettings

NodeFile = Annotated[Path, typer.Argument(metavar="NODE.yaml", help="A node file.")]


def run(node_file: NodeFile, runs: RegistryOption = Path("runs")) -> None:
    """Run the node until Ctrl-C or SIGTERM; the study that is being answered then gets 20 seconds, or is answered after
    the next start.

    A node that was killed continues where it was: what was acknowledged is answered and sent exactly once.

    Example: medopt pacs run node.yaml
    """
    from medopt.pacs.node import PacsNode
    from medopt.pacs.settings import load_node_settings

    warnings.simplefilter("ignore")  # pydicom's warnings quote headers
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("medopt.pacs").setLevel(logging.INFO)
    settings = load_node_settings(node_file)
    node = PacsNode(with_release_folders(settings, runs))
    for number in ending_signals():
        signal.signal(number, lambda *_: node.stop())
    node.run(typer.echo)


def with_release_folders(settings: NodeSettings, runs: Path) -> NodeSettings:
    """The settings with the folders that the release and the candidate are in."""
    changes: dict[str, object] = {"release": release_folder(settings.release, runs)}
    if settings.shadow is not None:
        changes["shadow"] = _with_candidate(settings.shadow, runs)
    return settings.model_copy(update=changes)


def _with_candidate(shadow: ShadowSettings, runs: Path) -> ShadowSettings:
    """The section with the candidate's folder. One that is not there stops no node: its health says so."""
    from medopt.core.errors import MedoptError

    try:
        return shadow.model_copy(update={"release": release_folder(shadow.release, runs)})
    except MedoptError as error:
        typer.echo(f"the candidate of shadow.release cannot be used: {error}", err=True)
        return shadow


def check(node_file: NodeFile, runs: RegistryOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check the node file, the release (and a candidate) with its golden cases, and each destination by C-ECHO or a
    query that matches nothing; sends nothing else.

    If the node runs, it is called by C-ECHO, too. Exit code 2 if a destination does not answer.

    Example: medopt pacs check node.yaml
    """
    from medopt.cli.console import print_rows
    from medopt.core.errors import ConfigError
    from medopt.pacs.association import server_context
    from medopt.pacs.peers import DimsePeer
    from medopt.pacs.sender import echo
    from medopt.pacs.settings import load_node_settings
    from medopt.release.golden import verify_release
    from medopt.release.sbom import runtime_differences

    settings = load_node_settings(node_file)
    server_context(settings.tls)
    release = release_folder(settings.release, runs)
    verify_release(release)
    if settings.alerts is not None:
        settings.alerts.require_readable()
    peers = [*settings.destinations, *([] if settings.pull is None else [settings.pull.source])]
    failures = {peer.name: echo(settings, peer) for peer in peers}
    rows = [{"check": "release", "result": "unchanged; golden cases replayed"}]
    differences = runtime_differences(release)
    packages = "those of its list" if differences == [] else "it has no list" if differences is None else ""
    rows.append({"check": "packages of the release", "result": packages or "; ".join(differences or ())})
    if settings.shadow is not None:
        verify_release(release_folder(settings.shadow.release, runs))
        rows.append({"check": "candidate (shadow.release)", "result": "unchanged; golden cases replayed"})
    if settings.alerts is not None:
        rows.append({"check": "alerts", "result": "plan and secrets can be read; nothing was sent"})
    rows += [
        {"check": f"{'QIDO-RS' if '://' in name else 'C-ECHO'} to {name}", "result": failure or "answered"}
        for name, failure in failures.items()
    ]
    itself = DimsePeer(aet=settings.aet, host="127.0.0.1", port=settings.port, tls=settings.tls is not None)
    accepts_itself = any(sender.aet == settings.aet and sender.has_address("127.0.0.1") for sender in settings.accept)
    own_result = (
        (echo(settings, itself) or "answered") if accepts_itself else "not tried: it is not in its own `accept`"
    )
    rows.append({"check": "C-ECHO to the node itself", "result": own_result})
    print_rows(f"{node_file}", rows)
    print_json(as_json, {"node": str(node_file), "checks": rows})
    if no_answer := [f"{name}: {failure}" for name, failure in failures.items() if failure]:
        raise ConfigError(
            f"No answer from {'; '.join(no_answer)}. Check title, host and port, and that {settings.aet} is known "
            "there."
        )


def status(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Show how many studies and results are in each state, and what is parked; studies appear as pseudonyms.

    Example: medopt pacs status node.yaml
    """
    from medopt.cli.console import print_rows
    from medopt.core.privacy import pseudonym
    from medopt.pacs.status import parked_items, state_counts

    ledger = open_ledger(node_file)
    counts = state_counts(ledger)
    parked = [
        {"study": pseudonym(parked.study_uid), "parked": parked.item, "reason": parked.reason}
        for parked in parked_items(ledger)
    ]
    ledger.close()
    rows = [
        {"queue": queue, "state": state, "number": number}
        for queue, by_state in counts.items()
        for state, number in by_state.items()
    ]
    print_rows(f"{node_file}: studies, results to send, and what a candidate did", rows)
    if parked:
        print_rows("parked; try again with `medopt pacs retry`", parked)
    print_json(as_json, {**{queue: dict(by_state) for queue, by_state in counts.items()}, "parked": parked})


def retry(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Try all parked studies and results again; a running node takes them up by itself.

    Example: medopt pacs retry node.yaml
    """
    import time

    from medopt.pacs.status import retry_parked

    ledger = open_ledger(node_file)
    studies, sends = retry_parked(ledger, time.time())
    ledger.close()
    typer.echo(f"{studies} studies and {sends} results are tried again")
    print_json(as_json, {"studies": studies, "results": sends})


def verify(node_file: NodeFile, as_json: JsonOption = False) -> None:
    """Check that no line of the audit was changed, added or removed; prints the last line's hash to keep.

    Exit code 3 if one was.

    Example: medopt pacs audit verify node.yaml
    """
    from medopt.pacs.audit import verify as verify_chain
    from medopt.pacs.settings import load_node_settings
    from medopt.pacs.spool import AUDIT

    lines, last_hash = verify_chain(load_node_settings(node_file).spool / AUDIT)
    typer.echo(f"{lines} lines, unchanged; the last line's SHA-256 is {last_hash}")
    print_json(as_json, {"lines": lines, "last": last_hash})


def open_ledger(node_file: Path) -> Ledger:
    """The ledger of a node; raises ConfigError where the node has not run yet."""
    from medopt.core.errors import ConfigError
    from medopt.pacs.ledger import Ledger
    from medopt.pacs.settings import load_node_settings
    from medopt.pacs.spool import LEDGER

    path = load_node_settings(node_file).spool / LEDGER
    if not path.is_file():
        raise ConfigError(f"The node of {node_file} has not run yet: there is no {path}.")
    return Ledger(path)


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "check": check,
    "status": status,
    "retry": retry,
    "reconcile": pacs_reconcile.reconcile,
    "demo": pacs_example.demo,
    "example": pacs_example.example,
}
