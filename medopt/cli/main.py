"""The command line: one thin command a stage. Errors are one paragraph on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from medopt import __version__
from medopt.cli import config, pacs, shadow, tune, weights
from medopt.cli.bench import bench
from medopt.cli.command import (
    CONTEXT,
    Group,
    QuietOption,
    VerboseOption,
    add,
    debugging,
    reset_verbosity,
    set_verbosity,
)
from medopt.cli.compare import compare
from medopt.cli.compress import compress
from medopt.cli.dossier import dossier
from medopt.cli.drift import drift
from medopt.cli.evaluate import evaluate
from medopt.cli.export import export
from medopt.cli.feedback import feedback
from medopt.cli.manifest_build import build
from medopt.cli.manifest_check import check
from medopt.cli.performance import performance
from medopt.cli.plan import plan
from medopt.cli.power import power
from medopt.cli.predict import predict, verify
from medopt.cli.prepare import prepare
from medopt.cli.pretrain import pretrain
from medopt.cli.probe import probe
from medopt.cli.report import report
from medopt.cli.run import run
from medopt.cli.series import series
from medopt.cli.serve import serve
from medopt.cli.sign import sign
from medopt.cli.start import fetch, init, phantom
from medopt.cli.suspects import relabel, suspects
from medopt.cli.sweep import sweep
from medopt.cli.team import migrate, promote, pull, rollback, ui
from medopt.cli.tune_runtime import tune_runtime
from medopt.core import fast_monai_import, signals
from medopt.core.errors import ConfigError, MedoptError
from medopt.core.extras import missing_package
from medopt.core.files import local_disk
from medopt.core.privacy import without_credentials
from medopt.core.provenance import limit_threads

app = typer.Typer(
    cls=Group,
    context_settings=CONTEXT,
    help="From a study's scans to a checked int8 release for the PACS, every step measured.",
    epilog="Exit codes: 0 done, 2 usage or configuration, 3 data refused, 4 training failed, 5 no release, "
    "6 release refused, 130 interrupted (the same command goes on).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _group(name: str, panel: str, text: str, above: typer.Typer = app) -> typer.Typer:
    group = typer.Typer(help=text, no_args_is_help=True)
    above.add_typer(group, name=name, rich_help_panel=panel)
    return group


ON = {"--engine": "--on"}  # where jobs run, until version 0.1
MANIFEST = _group(
    "manifest", "Data", "Build a manifest from a folder of scans, check it, find wrong labels, and plan its size."
)
CONFIG = _group("config", "Start", "What the keys of a study file and of a node file take.")
WEIGHTS = _group(
    "weights", "Start", "Pretrained weights that a study can begin with: list, get, import and convert them."
)
TUNE = _group(
    "tune",
    "Train",
    "Learning rate, batch size and initialization, measured on the study's training images; and a release's fastest "
    "engine, measured on this machine.",
)
PACS = _group("pacs", "Ship", "A PACS node: studies in by DICOM, the release's answers back as structured reports.")
SHADOW = _group("shadow", "Judge", "A candidate release beside the present one, on the live studies of a node.")
AUDIT = _group("audit", "Ship", "The node's record of what happened.", PACS)
MLFLOW = _group("mlflow", "Team", "Move runs to a team's MLflow server.")

add(app, init, "init", "Start")
add(app, phantom, "phantom", "Start")
add(app, fetch, "fetch", "Start")
add(app, plan, "plan", "Start")
add(app, probe, "probe", "Train")
add(app, bench, "bench", "Train")
add(app, run, "run", "Train", {**ON, "--override-gate": "--override"})
add(app, sweep, "sweep", "Train", {**ON, "--prune": "--give-up", "--no-prune": "--no-give-up"})
add(app, pretrain, "pretrain", "Train")
add(app, compress, "compress", "Train")
add(CONFIG, config.explain, "explain")
add(CONFIG, config.schema, "schema")
add(app, series, "series", "Data")
add(app, prepare, "prepare", "Data", ON)
add(MANIFEST, build, "build", old={"--datalist": "--out"})
add(MANIFEST, check, "check", old={"--fix": "--out", "--sheet": "--out"})
add(MANIFEST, suspects, "suspects")
add(MANIFEST, relabel, "relabel")
add(MANIFEST, power, "power")
add(TUNE, tune.learning_rate, "lr")
add(TUNE, tune.batch, "batch", old={"--most": "--max"})
add(TUNE, tune.initialization, "init")
add(TUNE, tune_runtime, "runtime")
add(app, report, "report", "Judge")
add(app, evaluate, "evaluate", "Judge", {"--json FILE": "--out"})
add(app, compare, "compare", "Judge", {"--json FILE": "--out", "--html": "--out", "--figure": "--out"})
add(app, dossier, "dossier", "Judge")
add(app, drift, "drift", "Judge")
add(app, performance, "performance", "Judge")
add(app, feedback, "feedback", "Judge")
add(app, sign, "sign", "Ship")
add(app, verify, "verify", "Ship")
add(app, predict, "predict", "Ship", {"--fleet": "--on"})
add(app, serve, "serve", "Ship")
add(app, export, "export", "Ship")
add(app, ui, "ui", "Team")
add(app, promote, "promote", "Team")
add(app, rollback, "rollback", "Team")
add(app, pull, "pull", "Team")
add(MLFLOW, migrate, "migrate")
for name, function in weights.COMMANDS.items():
    add(WEIGHTS, function, name)
for name, function in pacs.COMMANDS.items():
    add(PACS, function, name)
add(AUDIT, pacs.verify, "verify")
add(SHADOW, shadow.report, "report")


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print medopt's version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of every command."""
    set_verbosity(verbose, quiet)
    if debug:
        os.environ["MEDOPT_DEBUG"] = "1"


def _version() -> None:
    """Print medopt's version, as `medopt --version` does."""
    typer.echo("medopt version is now medopt --version; the old spelling works for one more version.", err=True)
    typer.echo(__version__)


add(app, _version, "version", hidden=True)


GOES_ON = "A run goes on where it was when the same command is given again."


def main() -> NoReturn:
    """Run the command line; a refusal becomes one paragraph on stderr and its exit code."""
    reset_verbosity()
    signals.install_handlers()
    limit_threads()
    fast_monai_import.install()
    try:
        with local_disk():
            ended = app(standalone_mode=False)
        if ended == 130:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except MedoptError as error:
        _leave(error, type(error).__name__, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "medopt").startswith("medopt"):  # not a package that could be installed
            raise
        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        text = missing_package(error.name or "", command)
        _leave(error, "ConfigError", text, ConfigError.exit_code)
    except KeyboardInterrupt as error:
        _leave(error, "Interrupted", GOES_ON, 130)
    except Exception as error:
        if signals.was_interrupted():
            _leave(error, "Interrupted", GOES_ON, 130)
        usage: Any = getattr(error, "format_message", None)
        if usage is None:
            raise
        text = usage()
        if not text:  # no arguments at all: the help was shown
            sys.exit(ConfigError.exit_code)
        stop = "" if text.endswith((".", "?")) else "."
        _leave(error, "UsageError", f"{without_credentials(text)}{stop} See medopt --help.", ConfigError.exit_code)
    sys.exit(0)


def _leave(error: BaseException, kind: str, text: str, code: int) -> NoReturn:
    if debugging():
        raise error
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]{kind}[/]:", end=" ")
    sys.stderr.write(f"{text}\n")
    sys.exit(code)
