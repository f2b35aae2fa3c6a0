"""`medopt ui`, `promote`, `rollback`, `pull` and `mlflow migrate`: the team's store, and which version serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption, RegistryOption, RunsOption
from medopt.cli.places import release_folder
from medopt.core.errors import ConfigError
from medopt.core.run_paths import is_registered

if TYPE_CHECKING:
    from medopt.tracking.registry import Registry

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model: the study's name.")]
ModelOrVersion = Annotated[
    str, typer.Argument(metavar="MODEL", help="A registered model, the study's name; or models:/MODEL@ALIAS.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in words; the registry keeps them.")]


def promote(
    model: ModelOrVersion,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="The version; without it all are listed.")] = "",
    reason: ReasonOption = "",
    uncompared: Annotated[
        bool, typer.Option("--uncompared", help="Also where the two share no test cases; the registry then says so.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PLAN.yaml", help="Change control plan that the version has to keep."),
    ] = None,
    shadow: Annotated[
        Path | None,
        typer.Option(
            "--shadow",
            metavar="FILE.json",
            help="Report of a shadow trial of this version beside the champion (medopt shadow report --out FILE.json).",
        ),
    ] = None,
    new_plan: Annotated[bool, typer.Option("--new-plan", help="The plan is another than the champion's.")] = False,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Make a version of a model the champion, the one that serves: models:/MODEL@champion.

    Only what both verdicts passed (exit code 5 else). It is compared with the champion until now on the test cases of
    both; that, who, when and why stand with the version. The champion until now becomes `previous`.

    With --plan a version that lies outside the change control plan is refused (exit code 5): settings that may not
    change, margins that the comparison does not rule out, too few shared patients. Decisions by a plan are added to
    changes.jsonl in the runs folder, a chain of SHA-256, and the next promotion needs the plan again.

    --shadow adds what the version answered in service, beside the champion; a plan may demand that.

    Example: medopt promote lesions 4 --reason "trained with the new scanner's images, AUC there +.03"

    Or by its alias: medopt promote models:/lesions@candidate --reason TEXT
    """
    from medopt.tracking.registry import Registry

    registry = Registry(runs)
    if is_registered(model):
        model, version = _version_of(registry, model, version)
    if version:
        from medopt.experiments.promote import promote as make_champion

        done = make_champion(
            registry, model, version, reason,
            uncompared=uncompared, plan=plan, new_plan=new_plan, record=runs, shadow=shadow,
        )  # fmt: skip
        if done.compared is not None:
            from medopt.cli.compare import print_comparison

            print_comparison(done.compared)
        if done.trial is not None:
            from medopt.cli.shadow import print_shadow_report

            print_shadow_report(done.trial)
        until = f"; until now version {done.before}, which `medopt rollback {model}` brings back" if done.before else ""
        typer.echo(f"{model}: version {done.version} is the champion{until}")
        print_json(as_json, {"model": model, "version": done.version, "before": done.before})
        return
    from medopt.cli.console import print_rows

    versions = [_row(version) for version in registry.versions(model)]
    print_rows(model, versions)
    print_json(as_json, {"model": model, "versions": versions})
    if reason or uncompared:
        raise ConfigError(f"Nothing was promoted: name the version, `medopt promote {model} VERSION --reason TEXT`.")


def _version_of(registry: Registry, uri: str, version: str) -> tuple[str, str]:
    from medopt.tracking.fetch import parse_uri

    name, alias, number = parse_uri(uri)
    if version:
        raise ConfigError(f"{uri} names a version already; {version!r} is one too many.")
    return name, registry.version_of(name, alias) if alias else str(number)


def _row(version: Any) -> dict[str, str]:
    return {
        "version": version.version,
        "alias": ", ".join(version.aliases),
        "registered": f"{version.created:%Y-%m-%d %H:%M} UTC",
        "model": version.model or "not known",
        "gate": version.gate or "not known",
        "promoted": version.promoted,
    }


def rollback(
    model: ModelName, reason: ReasonOption = "", runs: RunsOption = Path("runs"), as_json: JsonOption = False
) -> None:
    """Go back to the champion before this one; the two change places.

    Example: medopt rollback lesions --reason "declines half of the north site's scans"
    """
    from medopt.tracking.registry import Registry

    if not reason.strip():
        raise ConfigError("A rollback takes a reason: --reason TEXT.")
    from medopt.experiments.change_plan import RECORD, record_decision

    now, before = Registry(runs).roll_back(model, reason)
    if (runs / RECORD).exists():
        record_decision(runs, "rolled back", model=model, version=now, before=before, reason=reason)
    typer.echo(f"{model}: version {now} is the champion again, in place of version {before}")
    print_json(as_json, {"model": model, "version": now, "before": before})


def pull(
    uri: Annotated[str, typer.Argument(metavar="models:/NAME@ALIAS", help="Or models:/NAME/VERSION.")],
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Fetch a registered release to this machine, check it, and print where it is.

    That place is a link (in MEDOPT_RELEASES, else ~/.cache/medopt/releases) that turns when the alias moves: a server
    that was started with it takes the new release by POST /v2/repository/models/NAME/load.

    Example: medopt pull models:/lesions@champion
    """
    if not is_registered(uri):
        raise ConfigError(f"medopt pull takes models:/NAME@ALIAS or models:/NAME/VERSION; got {uri!r}.")
    folder = release_folder(Path(uri), runs)
    typer.echo(folder)
    print_json(as_json, {"uri": uri, "release": str(folder)})


def ui(
    runs: RunsOption = Path("runs"),
    port: Annotated[int, typer.Option("--port", help="Port on this machine.", min=1, max=65535)] = 5000,
    open_page: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser, where there is a display.")
    ] = True,
) -> None:
    """Show the runs in MLflow's pages (Ctrl-C ends it): prints the address of the newest study's runs, and opens it.

    The list has the headline figures as columns: of the network as trained, and of the int8 model.

    Example: medopt ui --runs runs
    """
    from medopt.tracking.pages import serve_ui
    from medopt.tracking.store import tracking_uri

    serve_ui(runs, tracking_uri(runs), port, typer.echo, open_page=open_page)


def migrate(
    runs: RunsOption = Path("runs"),
    to: Annotated[
        str | None, typer.Option("--to", metavar="URI", help="The server's address; else MLFLOW_TRACKING_URI.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the runs folder's store to a server: runs with their history and files, models, versions, aliases.

    Interrupted or killed, the same command goes on where it was; nothing is copied twice. Every copy is read back and
    compared. The store of the runs folder stays as it is, and a run that is gone on with goes on in its copy.

    Example: medopt mlflow migrate --to https://mlflow.example.org
    """
    from medopt.cli.console import print_rows
    from medopt.tracking.migrate import migrate as move

    with reporting() as reporter:
        done = move(runs, to, reporter)
    print_rows("moved to the server", done.table())
    for note in done.notes:
        typer.echo(note)
    typer.echo(f"runs on the server: {len(done.runs)}; each was read back when it was copied, and is as it is here")
    typer.echo(
        "Track there from now on: export MLFLOW_TRACKING_URI (and ..._USERNAME, ..._PASSWORD); see mlflow/README.md."
    )
    print_json(as_json, {"rows": done.table(), "checked": len(done.runs), "notes": done.notes})
