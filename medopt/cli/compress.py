"""`medopt compress`: what accuracy costs in time and size, and a release of the best."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import (
    DataOption,
    DevicesOption,
    JsonOption,
    OverrideOption,
    OverrideReason,
    RunArgument,
    named_override,
)
from medopt.cli.places import run_folder
from medopt.core.errors import ConfigError, ReleaseRefused, listed

PRECISIONS = ("float32", "float16", "int8-weights", "int4-weights", "int8")


def compress(
    run: RunArgument,
    prune: Annotated[
        str,
        typer.Option("--prune", help="Shares of the multiply-adds to remove; each step continues from the one before."),
    ] = "0.5,0.67,0.75",
    precision: Annotated[
        str, typer.Option("--precision", help=f"Of {', '.join(PRECISIONS)}; a release is int8, the others compare.")
    ] = "int8",
    choose: Annotated[
        Literal["fastest", "smallest"], typer.Option("--choose", help="Which of those within the margin.")
    ] = "fastest",
    within: Annotated[
        float, typer.Option("--within", min=0, help="Largest loss of validation AUC that is allowed.")
    ] = 0.005,
    data: DataOption = None,
    devices: DevicesOption = 0,
    as_json: JsonOption = False,
    override_by: OverrideOption = "",
    reason: OverrideReason = "",
) -> None:
    """Prune and quantize a finished run's network to several sizes, show what each costs, and release the best.

    Every option is measured on validation: AUC with its interval, decisions that flip, time (interleaved), size. Of
    those that pass the gate the fastest within the margin is chosen; only that one sees the test split. It stands in
    RUN/compressed as a run of its own, with a release, below RUN in MLflow. Interrupted, the same command goes on.
    It has its own verdicts; an --override of RUN does not cover them. If no option passes the gate on validation,
    medopt chooses none, and an override changes nothing.

    Example: medopt compress runs/phantom --prune 0.3,0.5,0.67 --within 0.01
    """
    folder = run_folder(run)
    kinds = [part.strip() for part in precision.split(",")]
    if unknown := [kind for kind in kinds if kind not in PRECISIONS]:
        raise ConfigError(f"--precision takes {', '.join(PRECISIONS)}; got {', '.join(unknown)}.")
    shares, override = _shares(prune), named_override(override_by, reason)
    from medopt.cli.console import print_summary
    from medopt.cli.group_tables import print_front
    from medopt.compression.pareto import Rule
    from medopt.config.study_file import data_folder
    from medopt.experiments.compression_search import CompressionGrid, compress_run
    from medopt.training.hardware import Hardware

    grid = CompressionGrid(shares, tuple(kinds), Rule(choose, within))  # type: ignore[arg-type]  # checked above
    with reporting() as reporter:
        hardware = Hardware.detect(devices, 1, "ddp")
        finished = compress_run(folder, grid, data_folder(data), reporter, hardware, override)
    front = finished.front
    assert front is not None
    print_front(front)
    print_summary(finished, name=f"compressed: {front.chosen}")
    print_json(as_json, finished.summary())
    if not finished.metrics.is_released:
        again = "" if finished.metrics.gate.passed else " The same command judges it anew, as for a busy machine."
        raise ReleaseRefused(
            f"{front.chosen} was chosen, and is not released: {listed(list(finished.metrics.refusals))}.{again} A "
            "person who takes responsibility for it can release it all the same: --override NAME --reason TEXT."
        )


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(",") if share.strip())
    except ValueError:
        raise ConfigError(f"--prune takes numbers with commas between them, as 0.3,0.5; got {text!r}.") from None
