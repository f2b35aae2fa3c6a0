"""`medopt promote`, `rollback` and `pull`: which version serves, and its release on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from medopt.cli.options import RunsOption
from medopt.core.errors import ConfigError

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model: the study's name.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in words; the registry keeps them.")]


def promote(
    model: ModelName,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="The version; without it all are listed.")] = "",
    reason: ReasonOption = "",
    uncompared: Annotated[
        bool, typer.Option("--uncompared", help="Also where the two share no test cases; the registry then says so.")
    ] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Make a version of a model the champion, the one that serves: models:/MODEL@champion.

    Only what passed the gate (exit code 5 else). It is compared with the champion until now on the test cases of both;
    that, who, when and why stand with the version. The champion until now becomes `previous`.

    Example: medopt promote lesions 4 --reason "trained with the new scanner's images, AUC there +.03"
    """
    from medopt.tracking.registry import Registry

    registry = Registry(runs)
    if version:
        from medopt.experiments.promote import promote as make_champion

        done = make_champion(registry, model, version, reason, uncompared=uncompared)
        if done.compared is not None:
            from medopt.cli.compare import print_comparison

            print_comparison(done.compared)
        until = f"; until now version {done.before}, which `medopt rollback {model}` brings back" if done.before else ""
        typer.echo(f"{model}: version {done.version} is the champion{until}")
        return
    from medopt.cli.console import print_rows

    print_rows(model, [_row(one) for one in registry.versions(model)])
    if reason or uncompared:
        raise ConfigError(f"Nothing was promoted: name the version, `medopt promote {model} VERSION --reason TEXT`.")


def _row(one: Any) -> dict[str, str]:
    return {
        "version": one.version,
        "alias": ", ".join(one.aliases),
        "registered": f"{one.created:%Y-%m-%d %H:%M} UTC",
        "gate": one.gate or "not known",
        "promoted": one.promoted,
    }


def rollback(model: ModelName, reason: ReasonOption = "", runs: RunsOption = Path("runs")) -> None:
    """Go back to the champion before this one; the two change places.

    Example: medopt rollback lesions --reason "declines half of the north site's scans"
    """
    from medopt.tracking.registry import Registry

    if not reason.strip():
        raise ConfigError("A rollback takes a reason: --reason TEXT.")
    now, before = Registry(runs).roll_back(model, reason)
    typer.echo(f"{model}: version {now} is the champion again, in place of version {before}")


def pull(
    uri: Annotated[str, typer.Argument(metavar="models:/NAME@ALIAS", help="Or models:/NAME/VERSION.")],
) -> None:
    """Fetch a registered release to this machine, check it, and print where it is.

    That place is a link (in MEDOPT_RELEASES, else ~/.cache/medopt/releases) that turns when the alias moves: a server
    that was started with it takes the new release by POST /v2/repository/models/NAME/load.

    Example: medopt pull models:/lesions@champion
    """
    typer.echo(release_folder(Path(uri)))


def release_folder(given: Path) -> Path:
    """A release folder as it is; for models:/NAME@ALIAS the release that MLflow's registry means, kept here.

    Where the registry does not answer, the one that was fetched last serves, and stderr says so.
    """
    if not str(given).startswith("models:"):
        return given
    from medopt.tracking.fetch import fetch_release

    store = os.environ.get("MLFLOW_TRACKING_URI")
    if not store:
        from medopt.tracking.store import tracking_uri

        store = tracking_uri(Path("runs"))
    kept = os.environ.get("MEDOPT_RELEASES")
    folder = Path(kept) if kept else Path.home() / ".cache" / "medopt" / "releases"
    found = fetch_release(str(given), store, folder)
    if found.note:
        typer.echo(f"{given}: {found.note}", err=True)
    return found.place
