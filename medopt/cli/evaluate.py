"""`medopt evaluate`: every figure of a prediction table, computed again from that table alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medopt.core.errors import ConfigError
from medopt.core.files import write_json

NAMES = {"auc_bootstrap": "auc (bootstrap)", "ppv": "PPV", "npv": "NPV", "f1": "F1", "ece": "ECE", "ace": "ACE"}


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A prediction table, or the run folder that holds it.")],
    study_file: Annotated[
        Path | None, typer.Option("--study", help="Settings; else study.yaml beside the table, else the defaults.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    model: Annotated[list[str] | None, typer.Option("--model", help="As the table names it; else all.")] = None,
    level: Annotated[str, typer.Option("--level", help="image or patient.")] = "image",
    aggregate: Annotated[
        str | None, typer.Option("--aggregate", help="With --level patient: mean or max of the images' logits.")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option("--prevalence", help="PPV, NPV and net benefit at this share of the finding.")
    ] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for the pictures.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="File for all figures as JSON.")] = None,
) -> None:
    """Compute every figure of a prediction table again, each with its interval.

    Calibration and operating point are fitted on the table's validation rows, as a run does. Where it has none,
    metrics.json beside it is asked; else probabilities stay as the network gives them and the threshold is 0.5.

    Example: medopt evaluate runs/busi/20261123-*/predictions.csv --level patient --prevalence 0.05
    """
    if level not in ("image", "patient"):
        raise ConfigError(f"--level takes image or patient; got {level!r}.")
    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split takes train, val or test; got {split!r}.")
    from medopt.pipeline.reevaluate import draw, evaluate_table, open_table

    changes = {"prevalence": prevalence, "aggregate": aggregate}
    table = open_table(predictions, study_file, {name: value for name, value in changes.items() if value is not None})
    told = evaluate_table(table, split, model, level == "patient")  # type: ignore[arg-type]  # checked above
    _print(told)
    if figures is not None:
        draw(table, told, figures)
        typer.echo(f"pictures  {figures}")
    if out is not None:
        write_json(out, told)
        typer.echo(f"figures   {out}")


def _print(told: Mapping[str, Any]) -> None:
    from medopt.cli.console import plain_console

    console, models = plain_console(), told["models"]
    first = next(iter(models.values()))
    what = "images" if told["level"] == "image" else f"patients ({told['aggregate']})"
    count = first["figures"]["auc"]["n"]
    title = f"{told['table']}: {count} {what} of the {told['split']} split ({told['confidence']:.0%} interval)"
    table = Table("", *models, title=title, title_justify="left")
    for name in first["figures"]:
        cells = [_cell(one["figures"][name]) for one in models.values()]
        table.add_row(NAMES.get(name, name.replace("_", " ")), *cells)
    table.add_row("AURC", *(_cell(one["selective"].get("aurc")) for one in models.values()))
    for label in first["net_benefit"]:
        cells = [_cell(one["net_benefit"][label].get("at_operating_point")) for one in models.values()]
        table.add_row(f"net benefit, {label}" if len(first["net_benefit"]) > 1 else "net benefit", *cells)
    table.add_row("decided", *(one["decided"] for one in models.values()))
    console.print(table)
    for name, one in models.items():
        for note in [*one["notes"], *_noted(one["figures"])]:
            console.print(f"{name}: {note}", soft_wrap=True)
    _print_subgroups(models)


def _noted(figures: Mapping[str, Any]) -> list[str]:
    """What is said of the figures, with the names of those that it is said of."""
    said: dict[str, list[str]] = {}
    for name, figure in figures.items():
        if figure.get("note"):
            said.setdefault(figure["note"], []).append(NAMES.get(name, name.replace("_", " ")))
    return [f"{', '.join(names)}: {note}" for note, names in said.items()]


def _cell(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return ""
    from medopt.release.card import shown

    return shown(told) if told["value"] is not None else "not defined"


def _print_subgroups(models: Mapping[str, Any]) -> None:
    """Of the last model, which is the one that serves: float stands before int8."""
    from medopt.cli.console import plain_console

    name, one = list(models.items())[-1]
    variables = one["subgroups"]["variables"]
    if not variables:
        return
    headings = ("group", "patients", "auc", "less all others", "sensitivity", "specificity", "")
    table = Table(*headings, title=f"{name}: sites and subgroups")
    table.title_justify = "left"
    for variable, groups in variables.items():
        for group, found in groups.items():
            apart = (found.get("difference") or {}).get("auc")
            cells: Sequence[str] = [_cell(found.get(figure)) for figure in ("auc", "sensitivity", "specificity")]
            row = (cells[0], _cell(apart), *cells[1:], found.get("note", ""))
            table.add_row(f"{variable}: {group}", str(found["patients"]), *row)
    console, worst = plain_console(), one["subgroups"]["worst"]
    console.print(table)
    if worst is not None:
        console.print(f"worst: {worst['variable']} {worst['group']}. {one['subgroups']['note']}", soft_wrap=True)
