"""`medopt prepare`: fill the cache of prepared images, and nothing else."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import (
    CpusOption,
    DataOption,
    JsonOption,
    RunsOption,
    SetOption,
    StudyFiles,
    WhereOption,
)
from medopt.cli.places import study_data


def prepare(
    study_files: StudyFiles,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    where: WhereOption = "local",
    job_cpus: CpusOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Read and prepare all images of studies, so that runs find them in the cache; what is there is not made again.

    Example: medopt prepare busi --on ray
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study

    paths = [study_path(study_file) for study_file in study_files]
    studies = [(load_study(path, overrides), path) for path in paths]
    folders = [study_data(study, path, data) for study, path in studies]
    from medopt.core.jobs import Fleet, connected
    from medopt.pipeline.fill_cache import fill_cache
    from medopt.pipeline.study_cases import read_source

    fleet, rows = Fleet(where, job_cpus), []
    with reporting() as reporter, connected(fleet):
        for (study, path), folder in zip(studies, folders, strict=True):
            source = read_source(study, path, folder, runs)
            started = time.perf_counter()
            count = fill_cache(source, runs, fleet, reporter)
            rows.append({"study": study.name, "images": count, "seconds": round(time.perf_counter() - started, 1)})
    for row in rows:
        typer.echo(f"{row['study']}: {row['images']} images are prepared, in {row['seconds']} s")
    print_json(as_json, {"studies": rows})
