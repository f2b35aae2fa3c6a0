"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medopt.core.errors import ConfigError

if TYPE_CHECKING:
    from medopt.core.records import Override


class Strategy(StrEnum):
    """How several devices share one model."""

    ddp = "ddp"
    fsdp = "fsdp"


def complete_study(incomplete: str) -> list[str]:
    """Names of the shipped studies, for the shell; files are what it completes by itself."""
    from medopt.config.shipped import shipped_names

    return [name for name in shipped_names() if name.startswith(incomplete)]


_STUDY = "A study file, or the name of one in ./pipelines or of those that come with medopt."
Model = Literal["int8", "float"]
Split = Literal["train", "val", "test"]
Where = Literal["local", "ray"]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help=_STUDY, autocompletion=complete_study)]
StudyFiles = Annotated[list[Path], typer.Argument(metavar="STUDY...", help=_STUDY, autocompletion=complete_study)]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run folder, its release folder, or a study's folder: then its newest run."),
]
ReleaseArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RELEASE",
        help="A release folder, a run folder, a study's folder (then its newest run's), or models:/NAME@champion.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Folder that holds the data; else MEDOPT_DATA, ./data, the root in the manifest's card, or beside it.",
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Folder for runs, the cache and MLflow's store.")]
RegistryOption = Annotated[
    Path,
    typer.Option(
        "--runs",
        help="Where RELEASE is models:/NAME@ALIAS: the runs folder whose registry has it; MLFLOW_TRACKING_URI, if set, "
        "goes first.",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in training.epochs=3. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Last line of stdout: the result as one JSON object.")]
ModelOption = Annotated[Model, typer.Option("--model", help="Which of the release's models.")]
WhereOption = Annotated[
    Where,
    typer.Option(
        "--on",
        help="Where independent jobs run: here, one after the other, or spread over a Ray cluster (RAY_ADDRESS, else "
        "one of this machine). All its machines must see what the jobs read and write.",
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
OverrideOption = Annotated[
    str,
    typer.Option(
        "--override",
        metavar="NAME",
        help="Release a model that a verdict did not pass; NAME is the person who takes responsibility.",
    ),
]
OverrideReason = Annotated[str, typer.Option("--reason", help="With --override: why. The model card says both.")]
RenameOption = Annotated[
    str,
    typer.Option(
        "--rename",
        metavar="OLD=NEW,...",
        help="Other names for labels, as in 0=healthy,1=nodule; where NEW is empty (unclear=) the scans are left out.",
    ),
]


def named_override(name: str, reason: str) -> Override | None:
    """Who releases a model that a verdict did not pass; raises ConfigError where the name or the reason is missing."""
    from medopt.core.records import Override

    if bool(name) != bool(reason):
        raise ConfigError("--override NAME and --reason TEXT go together: who releases the model, and why.")
    return Override.now(name, reason) if name else None


def renaming(text: str) -> dict[str, str]:
    """The names of --rename by the names that they replace; raises ConfigError for another form.

    >>> renaming("0=healthy, 1=nodule")
    {'0': 'healthy', '1': 'nodule'}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if wrong := [old for old, equals, _ in pairs if not (equals and old.strip())]:
        raise ConfigError(f"--rename takes OLD=NEW, separated by commas, as in 0=healthy,1=nodule; got {wrong[0]!r}.")
    return {old.strip(): new.strip() for old, _, new in pairs}
