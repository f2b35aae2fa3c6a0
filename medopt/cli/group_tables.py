"""What a person sees of several runs: the mean with its interval, and how far the members lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from medopt.cli.console import caption_of, plain_console

FIGURES = ("auc", "average_precision", "accuracy", "sensitivity", "specificity")
KINDS = ("float", "int8")


def print_members(summary: Mapping[str, Any]) -> None:
    """The table at the end of seeds and folds: means of the test split, sites, and out-of-fold figures."""
    from medopt.release.card import shown

    console, count = plain_console(), len(summary["members"])
    table = Table(title=_title(summary), title_justify="left")
    table.caption, table.caption_justify = caption_of(summary["data_notes"]), "left"
    table.add_column("")
    for kind in KINDS:
        table.add_column(f"{kind}: mean", justify="right")
        table.add_column(f"{count} runs (sd)", justify="right")
    for name in FIGURES:
        found = [summary["test"][kind][name] for kind in KINDS]
        table.add_row(name.replace("_", " "), *(cell for one in found for cell in (shown(one["mean"]), _range(one))))
    if len(summary["sites"]) > 1:
        for site, kinds in summary["sites"].items():
            cells = (cell for kind in KINDS for cell in (shown(kinds[kind]["mean"]), _range(kinds[kind])))
            table.add_row(f"auc at {site}", *cells)
    for name, label in (("auc", "auc"), ("average_precision", "average precision"), ("brier", "brier score")):
        if "out_of_fold" in summary:
            first = summary["out_of_fold"]["float"][name]["n"]
            cells = (cell for kind in KINDS for cell in (shown(summary["out_of_fold"][kind][name]), f"{first} cases"))
            table.add_row(f"{label}, out of fold", *cells)
    console.print(table)
    console.print(
        "The interval covers the choice of test patients; the members' range and sd what a seed or fold does."
    )
    if "out_of_fold" in summary:
        console.print(f"Out of fold: {summary['out_of_fold']['note']}.", soft_wrap=True)
    console.print(f"runs     {summary['folder']}\nMLflow   {summary['mlflow_link']}", soft_wrap=True)
    runs = Path(summary["folder"]).parent.parent
    console.print(f"  medopt ui --runs {runs}", Text("  # compare the runs in MLflow", "dim"), soft_wrap=True)


def _title(summary: Mapping[str, Any]) -> str:
    seeds, folds = summary["seeds"], summary["folds"]
    told = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    told += f" x {folds} folds" if folds else ""
    return (
        f"{summary['study']}, {told}: {summary['cases']} cases of the test split "
        f"({100 * summary['confidence']:g} % interval)"
    )


def _range(one: Mapping[str, Any]) -> str:
    if one["least"] is None:
        return ""
    spread = f" ({one['sd']:.3f})" if one["sd"] is not None else ""
    return f"{one['least']:.3f} to {one['most']:.3f}{spread}"


def print_sweep(summary: Mapping[str, Any], most: int = 10) -> None:
    """The best trials of a sweep, what was given up, which parameters matter, and the command that goes on."""
    console = plain_console()
    complete = sorted(
        (row for row in summary["trials"] if row["state"] == "complete"), key=lambda row: row["score"], reverse=True
    )
    counts, epochs = summary["counts"], summary["epochs"]
    sign = -1 if summary["metric"] == "loss" else 1
    title = f"{summary['study']}: {len(summary['trials'])} trials, the best {min(most, len(complete))} by validation"
    paths = list(summary["trials"][0]["values"])
    table = Table("trial", f"validation {summary['metric']}", "epochs", *paths, title=title, title_justify="left")
    for row in complete[:most]:
        values = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in row["values"].values()]
        table.add_row(str(row["trial"]), f"{sign * row['score']:.4f}", str(row["epochs"]), *values)
    console.print(table)
    console.print(
        f"{counts['complete']} complete, {counts['pruned']} given up, {counts['fail']} failed; "
        f"{epochs['trained']} of {epochs['without_pruning']} epochs were trained; {summary['note']}",
        soft_wrap=True,
    )
    if summary["importance"]:
        told = ", ".join(f"{name} {value:.0%}" for name, value in summary["importance"].items())
        console.print(f"what decides (PED-ANOVA): {told}", soft_wrap=True)
    console.print(f"runs     {summary['folder']}\nMLflow   {summary['mlflow_link']}", soft_wrap=True)
    if "command" in summary:
        console.print(Text("\nNext:", "bold"))
        console.print(f"  {summary['command']}", Text("  # the best trial's release", "dim"), soft_wrap=True)


def print_front(front: Mapping[str, Any]) -> None:
    """Every option of `medopt compress` with what it costs and keeps; which no other beats, and which was chosen."""
    from medopt.release.card import shown
    from medopt.report.format import share

    title = f"{len(front['options'])} options on {front['validation_cases']} validation cases, {front['rule']}"
    table = Table(title=title, title_justify="left")
    for name in ("option", "AUC", "less float", "decisions that flip", "ms", "over torch", "MB", "multiply-adds", ""):
        table.add_column(name, justify="left" if name in ("option", "") else "right")
    for one in front["options"]:
        is_chosen, is_first = one["name"] == front["chosen"], one["name"] == front["options"][0]["name"]
        marks = ["chosen"] if is_chosen else []
        marks += ["front"] if one["name"] in front["front"] else []
        marks += ["refused"] if one["faults"] and one["precision"] == "int8" else []
        table.add_row(
            Text(one["name"], "bold green" if is_chosen else ""),
            shown(one["auc"]),
            "" if is_first else shown(one["auc_difference"]),
            "" if is_first else share(one["decision_flips"]),
            f"{one['latency_ms']:.2f}",
            f"{one['speedup_over_torch']:.1f}x",
            f"{one['size_bytes'] / 1e6:.2f}",
            f"{one['multiply_adds'] / 1e6:.1f} M",
            ", ".join(marks),
        )
    console = plain_console()
    console.print(table)
    for one in front["options"]:
        if one["faults"] and one["precision"] == "int8":
            console.print(f"refused  {one['name']}: {'; '.join(one['faults'])}", soft_wrap=True)
