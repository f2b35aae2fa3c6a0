"""`medopt sweep`: try settings of a study, and write the best of them as a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import (
    CpusOption,
    DataOption,
    GpusOption,
    JsonOption,
    RunsOption,
    SetOption,
    StudyFile,
    WhereOption,
)
from medopt.cli.places import study_data
from medopt.core.errors import TrainingError


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
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many in all; more continue a sweep.")] = 20,
    give_up: Annotated[
        bool, typer.Option("--give-up/--no-give-up", help="Give a trial up where the median of the others is better.")
    ] = True,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    where: WhereOption = "local",
    job_cpus: CpusOption = 1,
    job_gpus: GpusOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for better settings of a study with Optuna: each trial trains, and validation compares them.

    The test split is not looked at, and nothing is compressed. Interrupted or killed, the same command goes on:
    finished trials are not repeated, and one that was cut off goes on from its last epoch.

    Example: medopt sweep busi --param training.optimizer.lr=1e-4..1e-2:log --param model.depth=26,50
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study

    path, given = study_path(study_file), tuple(overrides or ())
    study = load_study(path, list(given))
    folder = study_data(study, path, data)
    from medopt.cli.group_tables import print_sweep
    from medopt.core.jobs import Fleet
    from medopt.experiments.search_space import Sweep, parse_space
    from medopt.experiments.sweep import run_sweep

    sweep = Sweep(study, path, given, parse_space(param, path, given), trials, give_up)
    fleet = Fleet(where, job_cpus, job_gpus)
    with reporting() as reporter:
        finished = run_sweep(sweep, folder, runs, fleet, reporter)
    print_sweep(finished)
    print_json(as_json, finished.summary())
    if finished.sweep.best is None:
        reasons = sorted({trial.reason for trial in finished.sweep.trials if trial.reason})
        raise TrainingError(f"No trial of {study.name} came to its end: {' '.join(reasons[:3])} Try another space.")
