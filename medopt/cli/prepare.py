"""`medopt prepare`: fill the cache of prepared images, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import typer

from medopt.cli.options import (
    CpusOption,
    DataOption,
    EngineOption,
    JsonOption,
    RunsOption,
    SetOption,
    StudyFiles,
)


def prepare(
    study_files: StudyFiles,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    engine: EngineOption = "local",
    job_cpus: CpusOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Read and prepare all images of studies, so that runs find them in the cache; what is there is not made again.

    Example: medopt prepare pipelines/busi.yaml --engine ray
    """
    from medopt.config.study_file import data_folder, load_study

    studies = [(load_study(path, overrides), path) for path in study_files]
    from medopt.cli.console import ConsoleReporter
    from medopt.core.jobs import Fleet, connected
    from medopt.pipeline.fill_cache import fill_cache
    from medopt.pipeline.study_cases import read_source

    fleet, reporter, told = Fleet(engine, job_cpus), ConsoleReporter(), []  # type: ignore[arg-type]  # it checks the name
    try:
        with connected(fleet):
            for study, path in studies:
                source = read_source(study, path, data_folder(data))
                started = time.perf_counter()
                count = fill_cache(source, runs, fleet, reporter)
                told.append({"study": study.name, "images": count, "seconds": round(time.perf_counter() - started, 1)})
    finally:
        reporter.close()
    for row in told:
        typer.echo(f"{row['study']}: {row['images']} images are prepared, in {row['seconds']} s")
    if as_json:
        typer.echo(json.dumps(told))
