"""`medopt probe`: how far a linear model comes, before anybody trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import DataOption, JsonOption, RunsOption, SetOption, StudyFile
from medopt.cli.places import study_data


def probe(
    study_file: StudyFile,
    overrides: SetOption = None,
    start: Annotated[
        list[str] | None,
        typer.Option("--start", help="A start to try: a name of `medopt weights list` or a file. Repeatable."),
    ] = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Fit linear models in a minute: on thumbnails, and on the features of pretrained weights.

    What they reach on validation is what a training has to beat; the test split is not looked at. Without --start the
    study's own start is taken (model.start), where it has one.

    Example: medopt probe lesions.yaml --start imagenet-resnet50
    """
    from rich.table import Table

    from medopt.cli.console import plain_console
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study
    from medopt.core.format import format_estimate
    from medopt.pipeline.probe import probe_study

    path = study_path(study_file)
    studies = [load_study(path, [*(overrides or []), f"model.start={name}"]) for name in start or []]
    studies = studies or [load_study(path, overrides)]
    folder = study_data(studies[0], path, data)
    with reporting() as reporter:
        found = probe_study(studies, path, folder, runs, reporter)
    table = Table("linear model on", "features", "AUC, validation", "seconds", title=studies[0].name)
    for one in found:
        table.add_row(one.reads, str(one.features), format_estimate(one.auc), f"{one.seconds:.0f}")
    plain_console().print(table)
    print_json(as_json, {"study": studies[0].name, "models": [one.json_values() for one in found]})
