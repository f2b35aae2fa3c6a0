"""`medopt compress`: what accuracy costs in time and size, and a release of the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medopt.cli.options import DataOption, DevicesOption, JsonOption
from medopt.core.errors import ConfigError, GateRefused, listed

PRECISIONS = ("float32", "float16", "int8-weights", "int8")


def compress(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, as `medopt run` prints it.")],
    prune: Annotated[
        str,
        typer.Option("--prune", help="Shares of the multiply-adds to take away; each goes on from the last."),
    ] = "0.5,0.67,0.75",
    precision: Annotated[
        str, typer.Option("--precision", help=f"Of {', '.join(PRECISIONS)}; a release is int8, the others compare.")
    ] = "int8",
    choose: Annotated[str, typer.Option("--choose", help="fastest or smallest.")] = "fastest",
    within: Annotated[float, typer.Option("--within", help="Largest loss of validation AUC that is allowed.")] = 0.005,
    data: DataOption = None,
    devices: DevicesOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Prune and quantize a finished run's network to several sizes, show what each costs, and release the best.

    Every option is measured on validation: AUC with its interval, decisions that flip, time (interleaved), size. Of
    those that pass the gate the fastest within the margin is chosen; only that one sees the test split. It stands in
    RUN/compressed as a run of its own, with a release, below RUN in MLflow. Interrupted, the same command goes on.

    Example: medopt compress runs/phantom/20261123-120000-abcdef01 --prune 0.3,0.5,0.67 --within 0.01
    """
    from medopt.cli.console import ConsoleReporter, print_summary
    from medopt.cli.group_tables import print_front
    from medopt.compression.pareto import Rule
    from medopt.config.study_file import data_folder
    from medopt.experiments.compression_search import CompressionGrid, compress_run
    from medopt.training.hardware import Hardware

    if choose not in ("fastest", "smallest") or within < 0:
        raise ConfigError("--choose takes fastest or smallest, and --within 0 or more.")
    kinds = [one.strip() for one in precision.split(",")]
    if unknown := [one for one in kinds if one not in PRECISIONS]:
        raise ConfigError(f"--precision takes {', '.join(PRECISIONS)}; got {', '.join(unknown)}.")
    grid = CompressionGrid(_shares(prune), tuple(kinds), Rule(choose, within))  # type: ignore[arg-type]  # checked above
    reporter = ConsoleReporter()
    try:
        finished = compress_run(run, grid, data_folder(data), reporter, Hardware.detect(devices, 1, "ddp"))
    finally:
        reporter.close()
    front = finished.front
    assert front is not None
    print_front(front)
    print_summary(finished, name=f"compressed: {front.chosen}")
    if as_json:
        typer.echo(json.dumps(finished.summary(), allow_nan=False))
    gate = finished.metrics.gate
    if not gate.passed:
        raise GateRefused(
            f"{front.chosen} was chosen, and the gate refuses it when measured again: {listed(list(gate.reasons))}. "
            "The same command measures anew."
        )


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise ConfigError(f"--prune takes numbers with commas between them, as 0.3,0.5; got {text!r}.") from None
