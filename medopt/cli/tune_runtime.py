"""`medopt tune runtime`: the fastest engine, threads and batch of a release, measured where it will serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import JsonOption, ModelOption, RegistryOption, ReleaseArgument
from medopt.cli.places import release_folder

if TYPE_CHECKING:
    from medopt.inference.runtime import MeasuredSetting, Setting, Tuned


def tune_runtime(
    release: ReleaseArgument,
    model: ModelOption = "int8",
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Time for each of the two trials (three rounds at least).")
    ] = 20.0,
    runs: RegistryOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Find out how a release runs fastest on this machine; do this once where it is installed.

    Which engine wins depends on the processor and on the network: nothing but a trial tells. Each engine that passed
    the release's gate is tried with one thread and with one for each core: for latency one image at a time (a scan
    that somebody waits for), for throughput in batches of 1, 4, 8 and 16 (an archive over night). All are measured in
    turn, so that a slow moment of the machine hits all alike; of settings within 3 % of the fastest the smallest is
    taken.

    The choice must answer the release's golden cases as when it was built, and is then written beside the release as
    RELEASE.runtime.json. medopt predict takes it from there. It is left aside, with a note, on another processor, with
    other versions of the engines, or for another release; deleting it does no harm.

    Example: medopt tune runtime runs/busi
    """
    folder = release_folder(release, runs)
    from medopt.release.runtime import engine_versions, this_machine
    from medopt.release.tune_runtime import tune_runtime as tune

    with reporting() as reporter:
        reporter.stage("tune", f"engines of {folder}, about {2 * seconds:.0f} seconds")
        tuned, path = tune(folder, model, seconds)
    machine = this_machine()
    _print(tuned, f"{folder.name}, {model} model, on {machine.cores} cores of {machine.cpu}")
    typer.echo(f"latency    {_in_words(tuned.latency)}")
    typer.echo(f"throughput {_in_words(tuned.throughput)}")
    typer.echo(f"written to {path}; golden cases answered as when the release was built")
    facts = {"release": str(folder), "model": model, "file": str(path), "machine": machine.model_dump()}
    print_json(as_json, facts | tuned.model_dump(mode="json") | {"versions": engine_versions()})


def _print(tuned: Tuned, title: str) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console

    table = Table(
        "", "engine", "opened for", "threads", "batch", "ms", "images/s", "", title=title, title_justify="left"
    )
    for goal, rows in tuned.measured.items():
        chosen = tuned.setting(goal)
        for place, row in enumerate(rows):
            table.add_row(goal if not place else "", *_cells(row), "chosen" if row.setting == chosen else "")
        table.add_section()
    plain_console().print(table)


def _cells(row: MeasuredSetting) -> list[str]:
    setting = row.setting
    opened = "streams" if setting.mode == "throughput" and setting.engine == "openvino" else "one call"
    return [
        setting.engine, opened, str(setting.threads), str(setting.batch),
        f"{row.milliseconds:.2f}", f"{row.images_per_second:.1f}",
    ]  # fmt: skip


def _in_words(setting: Setting) -> str:
    threads = "thread" if setting.threads == 1 else "threads"
    images = "image" if setting.batch == 1 else "images"
    return f"{setting.engine}, {setting.threads} {threads}, {setting.batch} {images} at once"
