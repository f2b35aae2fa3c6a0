"""`medopt evaluate`: every figure of a prediction table, computed again from that table alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medopt.cli.command import outputs, print_json
from medopt.cli.options import JsonOption, Split
from medopt.cli.places import run_folder
from medopt.core.format import format_amount, format_difference, format_estimate, unit_text

if TYPE_CHECKING:
    from medopt.evaluation.subgroup_results import SubgroupResults
    from medopt.metrics.figures import Figures
    from medopt.pipeline.reevaluate import EvaluatedTable

NAMES = {"ppv": "PPV", "npv": "NPV", "f1": "F1", "ece": "ECE", "ace": "ACE"}


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder, a study's folder (its newest run), or a prediction table."),
    ],
    study_file: Annotated[
        Path | None, typer.Option("--study", help="Settings; else study.yaml beside the table, else the defaults.")
    ] = None,
    split: Annotated[Split, typer.Option("--split", help="Which cases.")] = "test",
    model: Annotated[list[str] | None, typer.Option("--model", help="As the table names it; else all.")] = None,
    level: Annotated[
        Literal["image", "patient"], typer.Option("--level", help="What is one case of the figures.")
    ] = "image",
    aggregate: Annotated[
        str | None, typer.Option("--aggregate", help="With --level patient: mean or max of the images' logits.")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option("--prevalence", help="PPV, NPV and net benefit at this share of the finding.")
    ] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for the pictures.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File for all figures: .json.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute every figure of a prediction table again, each with its interval.

    Calibration and operating point are fitted on the table's validation rows, as a run does. Where it has none,
    metrics.json beside it is asked; else probabilities stay as the network gives them and the threshold is 0.5.

    Example: medopt evaluate runs/busi --level patient --prevalence 0.05
    """
    outputs([out] if out else (), {".json": "all figures"})
    source = run_folder(predictions)
    from medopt.pipeline.reevaluate import draw, evaluate_table, open_table

    changes = {"prevalence": prevalence, "aggregate": aggregate}
    table = open_table(source, study_file, {name: value for name, value in changes.items() if value is not None})
    evaluated = evaluate_table(table, split, model, level == "patient")
    _print(evaluated)
    if figures is not None:
        draw(table, evaluated, figures)
        typer.echo(f"pictures  {figures}")
    if out is not None:
        evaluated.write(out)
        typer.echo(f"figures   {out}")
    print_json(as_json, evaluated.json_values())


def _print(evaluated: EvaluatedTable) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console
    from medopt.metrics.figures import REPORTED

    console, models = plain_console(), evaluated.models
    first = next(iter(models.values()))
    what = "images" if evaluated.level == "image" else f"patients ({evaluated.aggregate})"
    count, level = first.figures.auc.n, f"{evaluated.confidence:.0%} interval"
    title = f"{evaluated.table}: {count} {what} of the {evaluated.split} split ({level})"
    table = Table("", *models, title=title, title_justify="left")
    for name in REPORTED:
        table.add_row(_called(name), *(format_estimate(one.figures[name]) for one in models.values()))
    table.add_row("AURC", *(_cell(one.selective, "aurc") for one in models.values()))
    for label in first.net_benefit:
        cells = [_cell(one.net_benefit[label], "at_operating_point") for one in models.values()]
        table.add_row(f"net benefit, {label}" if len(first.net_benefit) > 1 else "net benefit", *cells)
    if first.number is not None:
        unit, numbers = unit_text(first.number.unit), [one.number for one in models.values()]
        table.add_row(f"mean absolute error{unit}", *(format_amount(one.mae if one else None) for one in numbers))
        table.add_row("R2", *(format_estimate(one.r2 if one else None) for one in numbers))
    if first.grades is not None:
        table.add_row(
            "weighted kappa", *(format_estimate(one.grades.kappa if one.grades else None) for one in models.values())
        )
    bands = [getattr(one.selective, "band", None) for one in models.values()]
    if any(bands):
        table.add_row("share decided", *(_cell(band, "coverage") for band in bands))
    table.add_row("decided", *(one.decided for one in models.values()))
    console.print(table)
    for name, one in models.items():
        for note in [*one.notes, *_noted(one.figures)]:
            console.print(f"{name}: {note}", soft_wrap=True)
    name, last = list(models.items())[-1]  # the one that serves: float stands before int8
    _print_subgroups(name, last.subgroups)


def _called(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _noted(figures: Figures) -> list[str]:
    """The notes on figures, each once with the names of those figures."""
    from medopt.metrics.figures import REPORTED

    named: dict[str, list[str]] = {}
    for name in REPORTED:
        if note := figures[name].note:
            named.setdefault(note, []).append(_called(name))
    return [f"{', '.join(names)}: {note}" for note, names in named.items()]


def _cell(result: object, name: str) -> str:
    """An estimate of a result; empty where the result, or that part of it, is not there."""
    estimate = getattr(result, name, None)
    return "" if estimate is None else format_estimate(estimate)


def _print_subgroups(name: str, results: SubgroupResults) -> None:
    from rich.table import Table

    from medopt.cli.console import plain_console

    if not results.variables:
        return
    headings = ("group", "patients", "auc", "less all others", "sensitivity", "specificity", "")
    table = Table(*headings, title=f"{name}: sites and subgroups")
    table.title_justify = "left"
    for variable, group_name, group in results.groups():
        apart = format_difference(group.difference.auc) if group.difference else ""
        auc, *rates = (_cell(group, figure) for figure in ("auc", "sensitivity", "specificity"))
        table.add_row(f"{variable}: {group_name}", str(group.patients), auc, apart, *rates, group.note)
    console, worst = plain_console(), results.worst
    console.print(table)
    if worst is not None:
        console.print(f"worst: {worst.variable} {worst.group}. {results.note}", soft_wrap=True)
