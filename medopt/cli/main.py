"""The command line: one thin command a stage. Errors are one paragraph on stderr and an exit code."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from medopt import __version__
from medopt.cli.compare import compare
from medopt.cli.compress import compress
from medopt.cli.drift import drift
from medopt.cli.evaluate import evaluate
from medopt.cli.export import export
from medopt.cli.manifest_build import build
from medopt.cli.manifest_check import check
from medopt.cli.mlflow_migrate import mlflow_app
from medopt.cli.options import CpusOption, DataOption, FleetOption, JsonOption, RunsOption
from medopt.cli.pacs import pacs_app
from medopt.cli.plan import plan
from medopt.cli.prepare import prepare
from medopt.cli.registry import promote, pull, release_folder, rollback
from medopt.cli.report import report
from medopt.cli.run import run
from medopt.cli.series import series
from medopt.cli.serve import serve
from medopt.cli.sweep import sweep
from medopt.cli.tune import tune_app
from medopt.cli.tune_runtime import tune_runtime
from medopt.core import fast_monai_import, signals
from medopt.core.errors import ConfigError, DataError, MedoptError, listed
from medopt.core.extras import missing_package

app = typer.Typer(
    help="From a study's scans to a checked int8 release for the PACS, every step measured.",
    epilog="Exit codes: 0 done, 2 usage or configuration, 3 data refused, 4 training failed, 5 gate refused, "
    "6 release refused, 130 interrupted (the same command goes on).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

manifest_app = typer.Typer(help="Build a manifest from a folder of scans, and check one.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")
app.add_typer(tune_app, name="tune")
app.add_typer(pacs_app, name="pacs")
app.add_typer(mlflow_app, name="mlflow")
tune_app.command("runtime")(tune_runtime)
manifest_app.command("check")(check)
app.command()(run)
app.command()(prepare)
app.command()(sweep)
app.command()(evaluate)
app.command()(compare)
app.command()(compress)
app.command()(series)
app.command()(plan)
app.command()(report)
app.command()(drift)
app.command()(export)
app.command()(serve)
app.command()(promote)
app.command()(rollback)
app.command()(pull)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every command."""
    if debug:
        os.environ["MEDOPT_DEBUG"] = "1"


@app.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="Where to write it: images/ and manifest.csv.")],
    patients: Annotated[int, typer.Option(help="Number of patients.")] = 600,
    seed: Annotated[int, typer.Option(help="The same seed draws the same study, to the byte.")] = 7,
) -> None:
    """Draw the embedded study: chest-radiograph-like DICOM of three sites, with and without a nodule.

    No labelled set may be shipped with medopt, so it draws one. Nothing in it is a patient.
    """
    from medopt.cli.console import ConsoleReporter
    from medopt.phantom import draw_study

    reporter = ConsoleReporter()
    try:
        typer.echo(draw_study(folder, patients=patients, seed=seed, reporter=reporter))
    finally:
        reporter.close()


@app.command()
def fetch(
    study_file: Annotated[Path, typer.Argument(help="A study file, or the name of one in pipelines/.")],
    data: DataOption = None,
) -> None:
    """Download a study's public data from their official address, and check them against the published checksum.

    Example: medopt fetch breastmnist --data data
    """
    from medopt.config.study_file import data_folder, load_study

    study_file = study_file if study_file.suffix else Path("pipelines") / f"{study_file}.yaml"
    study = load_study(study_file)
    from medopt.cli.console import ConsoleReporter
    from medopt.manifest.card import load_card
    from medopt.manifest.fetch import fetch as fetch_files

    card = load_card(study_file.parent / study.data.manifest)
    if card is None:
        raise ConfigError(f"The study {study.name} has no card that names an address; see its manifest's README.")
    reporter = ConsoleReporter()
    try:
        for path in fetch_files(card, data_folder(data), reporter):
            typer.echo(path)
    finally:
        reporter.close()


@app.command()
def verify(
    release: Annotated[Path, typer.Argument(help="A release folder, or models:/NAME@champion.")],
    as_json: JsonOption = False,
) -> None:
    """Check a release: every file unchanged, the chain the same, every golden case answered as when it was built."""
    from medopt.cli.console import print_rows
    from medopt.release.golden import verify_release

    cases = verify_release(release_folder(release))
    rows = [{"case": one.case, "model": one.model, "difference": one.difference} for one in cases]
    print_rows(f"{release}: unchanged; golden cases replayed", rows)
    if as_json:
        typer.echo(json.dumps({"release": str(release), "golden": [asdict(case) for case in cases]}))


@app.command()
def predict(
    release: Annotated[Path, typer.Argument(help="A release folder, or models:/NAME@champion.")],
    paths: Annotated[list[Path], typer.Argument(help="DICOM, NIfTI or image files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="CSV to write.")] = Path("predictions.csv"),
    model: Annotated[str, typer.Option(help="int8 or float.")] = "int8",
    engine: Annotated[
        str | None, typer.Option(help="onnxruntime or openvino; else what `medopt tune runtime` found to be fastest.")
    ] = None,
    fleet: FleetOption = "local",
    job_cpus: CpusOption = 1,
) -> None:
    """Predict scans with a release: a table, and a CSV with the reason of every refusal.

    Scans are decoded while the model works on those before, in batches; medopt tune runtime RELEASE finds the engine,
    threads and batch that are fastest here, and answers stay the same.

    A scan unlike those of the release's training is declined: it has a reason instead of a decision. Exit code 3
    where a scan was refused, since it cannot be read; the others are predicted all the same. An archive may be spread
    over a Ray cluster: --fleet ray (what is --engine ray elsewhere; here the engine is what runs the network).
    """
    if model not in ("int8", "float"):
        raise ConfigError(f"--model takes int8 or float; got {model!r}.")
    from medopt.cli.console import ConsoleReporter, print_predictions
    from medopt.core.jobs import Fleet
    from medopt.release.predictor import Release
    from medopt.serving.batch import find_scans, predict_archive, predict_scans
    from medopt.serving.prediction_table import write_answers

    spread = Fleet(fleet, job_cpus)  # type: ignore[arg-type]  # it checks the name
    release = release_folder(release)
    predictor = Release.open(release, "float" if model == "float" else "int8", engine, mode="throughput")
    scans = find_scans(paths, len(predictor.info.prepare.size))
    reporter = ConsoleReporter()
    if predictor.note:
        reporter.message(predictor.note)
    try:
        if spread.engine == "local":
            found = predict_scans(predictor, scans, reporter)
        else:
            found = predict_archive(release, predictor.kind, engine, scans, spread, reporter)
        rows = write_answers(out, found, predictor.info.labels)
    finally:
        reporter.close()
    print_predictions(rows, predictor)
    declined = sum(row.answer is not None and bool(row.answer.declined) for row in rows)
    typer.echo(f"{len(rows)} scans{f', {declined} of them declined' if declined else ''}, written to {out}")
    refused = [row.refused for row in rows if row.answer is None]
    if refused:
        raise DataError(f"{len(refused)} of {len(rows)} scans were refused: {listed(refused)}")


@app.command()
def ui(
    runs: RunsOption = Path("runs"),
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
) -> None:
    """Open MLflow's pages on the runs' store (Ctrl-C ends it)."""
    from medopt.tracking.tracker import serve_ui

    serve_ui(runs, port)


@app.command()
def version() -> None:
    """Print medopt's version."""
    typer.echo(__version__)


manifest_app.command("build")(build)


def main() -> NoReturn:
    """Run the command line; a refusal becomes one paragraph on stderr and its exit code."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    signals.listen()
    fast_monai_import.install()
    try:
        if app(standalone_mode=False) == 130:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
    except MedoptError as error:
        _leave(error, type(error).__name__, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if (error.name or "medopt").startswith("medopt"):  # not a package that could be installed
            raise
        text = missing_package(error.name or "", (sys.argv[1:] or [""])[0])
        _leave(error, "ConfigError", text, ConfigError.exit_code)
    except KeyboardInterrupt as error:
        _leave(error, "Interrupted", "A run goes on where it was when the same command is given again.", 130)
    except Exception as error:
        usage: Any = getattr(error, "format_message", None)
        if usage is None:
            raise
        text = usage()
        if not text:  # no arguments at all: the help was shown
            sys.exit(ConfigError.exit_code)
        stop = "" if text.endswith((".", "?")) else "."
        _leave(error, "UsageError", f"{text}{stop} See medopt --help.", ConfigError.exit_code)
    sys.exit(0)


def _leave(error: BaseException, kind: str, text: str, code: int) -> NoReturn:
    if os.environ.get("MEDOPT_DEBUG"):
        raise error
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]{kind}[/]:", end=" ")
    sys.stderr.write(f"{text}\n")
    sys.exit(code)
