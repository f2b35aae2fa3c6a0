"""`medopt bench`: how fast each stage of a training is here, in a minute."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import DataOption, JsonOption, RunsOption, SetOption
from medopt.cli.places import study_data

if TYPE_CHECKING:
    from medopt.training.throughput import Throughput


def bench(
    study_file: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDY]", help="A study file or the name of a study; else drawn radiographs."),
    ] = None,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="Time for each of the stages.")] = 5.0,
    compile_network: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Time a compiled step, too; else on a GPU only, as it takes long."),
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Keep the result in MLflow; also where MLFLOW_TRACKING_URI names a store.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how many images a second each stage of a training takes here, in about a minute.

    The stages in the order of the data: a scan is read and decoded, then prepared (both once, before the first epoch);
    each epoch augments its image, and the network takes a step with it. The slowest of what an epoch does bounds a
    training: where "training, with its data" is much slower than "step, images in memory", the GPU waits for images,
    and training.workers, training.augment_on or training.residence help. The share says how near a stage comes to what
    the device can do, measured just before: a product of large matrices for the network, a copy within its memory for
    augmentation. Small networks and small batches stay far below it.

    Below the table stand the settings that a training would choose by itself (those that are auto), and why. Nothing
    is trained or kept, but prepared images in the cache.

    Example: medopt bench lesions.yaml --set training.batch_size=64
    """
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study
    from medopt.pipeline.bench import DRAWN, bench_drawn, bench_study, bench_values, log_bench

    compiles = _has_gpu() if compile_network is None else compile_network
    path = study_path(study_file or Path(DRAWN))
    study = load_study(path, overrides)
    with reporting() as reporter:
        reporter.stage("bench", f"about {seconds:g} s a stage")
        if study_file is None:
            measured = bench_drawn(overrides or [], reporter, compiles=compiles, seconds=seconds)
        else:
            folder = study_data(study, path, data)
            measured = bench_study(study, path, folder, runs, reporter, compiles=compiles, seconds=seconds)
    _print(measured, study.name)
    values = bench_values(study.name, measured)
    if log or os.environ.get("MLFLOW_TRACKING_URI"):
        typer.echo(f"MLflow    {log_bench(study, values, runs)}")
    print_json(as_json, values)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _print(measured: Throughput, name: str) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console
    from medopt.core.format import count_text

    table = Table(
        *("stage", "images/s", "ms an image", "share of the peak"),
        title=f"{name}: batches of {measured.batch} on {measured.device}, {measured.precision}",
        title_justify="left",
    )
    for stage in measured.stages:
        rate = stage.images_per_second
        share = "" if stage.share is None else f"{stage.share:.1%} of the {stage.ceiling}"
        table.add_row(stage.name, f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}", f"{1000 / rate:.3g}", share)
    plain_console().print(table)
    typer.echo(
        f"peak      {measured.tera_operations:.3g} TFLOP/s in a matrix product, {measured.copied_gb:.3g} GB/s in a "
        f"copy; {count_text(measured.threads, 'CPU thread')}"
    )
    pace = measured.pace
    typer.echo(
        f"chosen    training.residence={pace.residence} training.augment_on={pace.augment_on} "
        f"training.compile={str(pace.compile).lower()} training.workers={measured.workers}"
    )
    for reason in pace.reasons:
        typer.echo(f"because   {reason}")
