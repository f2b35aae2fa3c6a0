"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Strategy(StrEnum):
    """How several devices share one model."""

    ddp = "ddp"
    fsdp = "fsdp"


StudyFile = Annotated[Path, typer.Argument(help="A study file, as in pipelines/.")]
StudyFiles = Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Study files, as in pipelines/.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder that holds the data; else MEDOPT_DATA, else ./data.")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder for runs, the cache and MLflow's store.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in training.epochs=3. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Last line of stdout: the result as one JSON object.")]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="local|ray",
        help="Where independent jobs run: here, one after the other, or spread over a Ray cluster (RAY_ADDRESS, else "
        "one of this machine). All its machines must see the data and the runs folder.",
    ),
]
FleetOption = Annotated[
    str,
    typer.Option(
        "--fleet",
        metavar="local|ray",
        help="Predict here, or in parts over a Ray cluster (RAY_ADDRESS, else one of this machine), whose machines "
        "must see release and scans.",
    ),
]
CpusOption = Annotated[int, typer.Option("--job-cpus", help="Processors that one job takes on a Ray cluster.")]
GpusOption = Annotated[
    float | None,
    typer.Option("--job-gpus", help="GPUs that one job takes on a Ray cluster, as in 0.5; else 1 where it has any."),
]
DevicesOption = Annotated[
    int,
    typer.Option("--devices", min=0, help="Processes that train one model on each node; 0: every GPU, else one."),
]
NodesOption = Annotated[
    int,
    typer.Option("--nodes", min=1, help="Machines that train one model; torchrun and SLURM say both by themselves."),
]
StrategyOption = Annotated[
    Strategy,
    typer.Option("--strategy", help="ddp: a whole model on each device; fsdp: its parameters are spread over them."),
]
