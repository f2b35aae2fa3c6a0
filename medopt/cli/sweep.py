"""`medopt sweep`: try settings of a study, and write the best of them as a study file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.options import (
    CpusOption,
    DataOption,
    EngineOption,
    GpusOption,
    JsonOption,
    RunsOption,
    SetOption,
    StudyFile,
)
from medopt.core.errors import ConfigError, TrainingError


def sweep(
    study_file: StudyFile,
    param: Annotated[
        list[str],
        typer.Option(
            "--param",
            metavar="PATH=VALUES",
            help="What to try: PATH=LOW..HIGH, PATH=LOW..HIGH:log or PATH=A,B,C, for any path of a study file. "
            "Repeatable.",
        ),
    ],
    trials: Annotated[int, typer.Option("--trials", help="How many in all; given more, the sweep goes on.")] = 20,
    prune: Annotated[
        bool, typer.Option("--prune/--no-prune", help="Give a trial up where the median of the others is better.")
    ] = True,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    engine: EngineOption = "local",
    job_cpus: CpusOption = 1,
    job_gpus: GpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for better settings of a study with Optuna: each trial trains, and validation compares them.

    The test split is not looked at, and nothing is compressed. Interrupted or killed, the same command goes on:
    finished trials are not repeated, and one that was cut off goes on from its last epoch.

    Example: medopt sweep pipelines/busi.yaml --param training.optimizer.lr=1e-4..1e-2:log --param model.depth=26,50
    """
    from medopt.config.study_file import data_folder, load_study

    given = tuple(overrides or ())
    study = load_study(study_file, list(given))
    if trials < 1:
        raise ConfigError(f"--trials takes 1 or more; got {trials}.")
    from medopt.cli.console import ConsoleReporter
    from medopt.cli.group_tables import print_sweep
    from medopt.core.jobs import Fleet
    from medopt.experiments.search_space import Sweep, parse_space
    from medopt.experiments.sweep import run_sweep

    space = parse_space(param, study_file, given)
    fleet, reporter = Fleet(engine, job_cpus, job_gpus), ConsoleReporter()  # type: ignore[arg-type]  # it checks the name
    try:
        summary = run_sweep(
            Sweep(study, study_file, given, space, trials, prune), data_folder(data), runs, fleet, reporter
        )
    finally:
        reporter.close()
    print_sweep(summary)
    if as_json:
        typer.echo(json.dumps(summary, allow_nan=False))
    if summary["best"] is None:
        reasons = sorted({row["reason"] for row in summary["trials"] if row["reason"]})
        raise TrainingError(f"No trial of {study.name} came to its end: {' '.join(reasons[:3])} Try another space.")
