"""`medopt tune`: what to train with, measured on the study's own training images before a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from medopt.cli.command import print_json, reporting
from medopt.cli.options import DataOption, JsonOption, RunsOption, SetOption, StudyFile
from medopt.cli.places import study_data
from medopt.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from medopt.cli.console import ConsoleReporter
    from medopt.config import Study
    from medopt.training.init_study import InitResult

Depth = Literal[14, 26, 50, 101, 152]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A study with its prepared training images; `folder` is where its pictures go."""

    study: Study
    cases: Sequence[Any]
    files: Sequence[Path]
    folder: Path
    reporter: ConsoleReporter


@contextmanager
def _ready(study_file: Path, overrides: list[str] | None, data: Path | None, runs: Path) -> Iterator[_Ready]:
    """The training split alone: what is chosen here may look at nothing else."""
    from medopt.config.shipped import study_path
    from medopt.config.study_file import load_study

    path = study_path(study_file)
    study = load_study(path, overrides)
    folder = study_data(study, path, data)
    from medopt.data.cache import PreparedCache
    from medopt.pipeline.study_cases import read_source
    from medopt.transforms.prepare import PrepareChain

    source = read_source(study, path, folder, runs)
    cases = [case for case in source.cases if case.split == "train"]
    with reporting() as reporter:
        files = PreparedCache(runs / "cache", PrepareChain(study.prepare)).fill(cases, source.root, reporter)
        yield _Ready(study, cases, files, runs / study.name / "tune", reporter)


def _end(facts: Mapping[str, Any], picture: Path, as_json: bool) -> None:
    typer.echo(f"picture   {picture}")
    print_json(as_json, dict(facts) | {"picture": str(picture)})


def learning_rate(
    study_file: StudyFile,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    low: Annotated[float, typer.Option("--low", help="The first learning rate.")] = 1e-5,
    high: Annotated[float, typer.Option("--high", help="The last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option("--steps", help="Steps from the first to the last.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Learning-rate range test: train a fresh network at a rising rate until its loss explodes, and suggest a rate.

    The same study gives the same answer. In a study file, training.optimizer.lr: auto does this before the first epoch.

    Example: medopt tune lr busi
    """
    with _ready(study_file, overrides, data, runs) as ready:
        from rich.table import Table

        from medopt.cli.console import plain_console
        from medopt.figures.tuning import range_figure
        from medopt.training.auto_settings import with_sizes
        from medopt.training.lr_range_test import range_test

        study = with_sizes(ready.study)
        test = range_test(study, ready.cases, ready.files, low=low, high=high, steps=steps, reporter=ready.reporter)
    picture = ready.folder / "lr.png"
    range_figure(test, picture, study.name)
    table = Table("rate", "loss", "smoothed", title=f"{study.name}: learning-rate range test", title_justify="left")
    steps_of_test = list(zip(test.rates, test.losses, test.smoothed, strict=True))
    for rate, *losses in steps_of_test[:: max(1, len(steps_of_test) // 15)]:
        table.add_row(f"{rate:.1e}", *(f"{loss:.4f}" if math.isfinite(loss) else "not finite" for loss in losses))
    plain_console().print(table)
    suggestion = test.suggestion
    typer.echo(f"suggested {'none' if suggestion is None else f'--set training.optimizer.lr={suggestion:g}'}")
    typer.echo(f"because   {test.reason}")
    _end(test.json_values(), picture, as_json)


def batch(
    study_file: StudyFile,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    max_batch: Annotated[int, typer.Option("--max", help="Largest batch where training.batch_size is auto.")] = 256,
    seconds: Annotated[float, typer.Option("--seconds", help="No further size is begun after so long.")] = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Try micro-batches of 2, 4, 8 ... images: images a second, memory, and the fastest that fits.

    The batch of training.batch_size stays as it is, gradients add up to it; `auto` there finds the batch, too.

    Example: medopt tune batch busi --set training.batch_size=64
    """
    with _ready(study_file, overrides, data, runs) as ready:
        from rich.table import Table

        from medopt.cli.console import plain_console
        from medopt.figures.tuning import batch_figure
        from medopt.training.batch_size import find_batch_size

        test = find_batch_size(
            ready.study, ready.cases, ready.files, max_size=max_batch, seconds=seconds, reporter=ready.reporter
        )
    picture = ready.folder / "batch.png"
    batch_figure(test, picture, ready.study.name)
    title = f"{ready.study.name}: a step of {test.batch_size} images on {test.device}"
    table = Table("micro-batch", "images/s", "GiB", "", title=title, title_justify="left")
    for trial in test.trials:
        chosen = "chosen" if trial.micro_batch == test.micro_batch else trial.note
        taken = "" if trial.bytes is None else f"{trial.bytes / 2**30:.2f}"
        speed = "" if trial.images_per_second is None else f"{trial.images_per_second:.1f}"
        table.add_row(str(trial.micro_batch), speed, taken, chosen)
    plain_console().print(table)
    sizes = f"--set training.batch_size={test.batch_size} --set training.micro_batch={test.micro_batch}"
    typer.echo(f"suggested {sizes}\nbecause   {test.reason}")
    _end(test.json_values(), picture, as_json)


def initialization(
    study_file: StudyFile,
    overrides: SetOption = None,
    data: DataOption = None,
    runs: RunsOption = Path("runs"),
    images: Annotated[int, typer.Option("--images", min=2, help="Training images of the one batch.")] = 8,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps on that batch.")] = 10,
    depths: Annotated[
        list[int] | None, typer.Option("--depth", help="14, 26, 50, 101 or 152; else the study's and 152. Repeatable.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How activations and gradients scale with depth when training begins: He and Xavier, with and without skips.

    At the study's depth and at 152 layers: why a deep net trains, and which initialization suits this study.

    Example: medopt tune init busi
    """
    chosen_depths = [_depth(depth) for depth in depths or ()]
    with _ready(study_file, overrides, data, runs) as ready:
        from medopt.cli.console import plain_console
        from medopt.figures.tuning import initialization_figure
        from medopt.training.init_study import compare_initializations

        study = ready.study
        nets = compare_initializations(
            study, ready.cases, ready.files, depths=chosen_depths, images=images, steps=steps, reporter=ready.reporter
        )
    picture = ready.folder / "init.png"
    initialization_figure(nets, picture)
    plain_console().print(_init_table(study, nets))
    _end({"nets": [net.json_values() for net in nets], "study": study.name}, picture, as_json)


def _depth(depth: int) -> Depth:
    if depth not in get_args(Depth):
        raise ConfigError(f"--depth takes 14, 26, 50, 101 or 152; got {depth}.")
    return cast(Depth, depth)


def _init_table(study: Study, results: Sequence[InitResult]) -> Table:
    """Scales at the first, the middle and the last block, and what the first steps did to the loss."""
    from rich.table import Table

    table = Table(title=f"{study.name}: how a net begins", title_justify="left")
    table.add_column("net")
    headings = (
        "init",
        "activations: first, middle, last block",
        "gradient of weights: first, last",
        "first/last",
        "loss",
    )
    for heading in headings:
        table.add_column(heading, justify="right" if heading != "init" else "left")
    depth = 0
    for net in results:
        if depth and net.variant.depth != depth:
            table.add_section()
        depth, scale, losses = net.variant.depth, net.scale, net.losses
        blocks = scale.activation
        activations = ", ".join(f"{value:.2g}" for value in (blocks[0], blocks[len(blocks) // 2], blocks[-1]))
        weights = f"{scale.weights[0]:.2g}, {scale.weights[-1]:.2g}"
        own = (net.variant.depth, net.variant.init, net.variant.description) == _own(study)
        name = f"{net.variant.depth} layers, {net.variant.description}{'  (this study)' if own else ''}"
        table.add_row(
            name, net.variant.init, activations, weights, f"{scale.ratio:.2g}", f"{losses[0]:.3g} to {losses[-1]:.3g}"
        )
    return table


def _own(study: Study) -> tuple[int, str, str]:
    """Depth, initialization and kind of the study's own network."""
    kind = "residual, zero start" if study.model.zero_init_residual else "residual"
    return study.model.depth, study.model.init, kind
