"""What a person sees of several runs: the mean with its interval, and how far the members lie apart."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from medopt.cli.console import caption_of, plain_console
from medopt.core.format import format_difference, format_estimate, format_share
from medopt.core.records import KINDS
from medopt.evaluation.group_metrics import verdict_counts
from medopt.metrics.figures import HEADLINE

if TYPE_CHECKING:
    from medopt.evaluation.compression_front import CompressionFront
    from medopt.evaluation.group_metrics import FigureSpread, GroupMetrics
    from medopt.experiments.group_summary import FinishedGroup
    from medopt.experiments.sweep_report import FinishedSweep


def print_members(group: FinishedGroup) -> None:
    """The table at the end of seeds and folds: means of the test split, sites, and out-of-fold figures."""
    console, metrics = plain_console(), group.metrics
    is_good = all(member.better_than_chance and member.gate_passed for member in metrics.members)
    console.print(Text(verdict_counts(metrics.members), "bold green" if is_good else "bold red"), soft_wrap=True)
    table = Table(title=_title(metrics), title_justify="left")
    table.caption, table.caption_justify = caption_of(metrics.data_notes), "left"
    table.add_column("")
    for kind in KINDS:
        table.add_column(f"{kind}: mean", justify="right")
        table.add_column(f"{len(metrics.members)} runs (sd)", justify="right")
    rows = {name.replace("_", " "): [metrics.test[kind][name] for kind in KINDS] for name in HEADLINE}
    if len(metrics.sites) > 1:
        rows |= {f"auc at {site}": [one[kind] for kind in KINDS] for site, one in metrics.sites.items()}
    for label, spreads in rows.items():
        table.add_row(label, *(cell for one in spreads for cell in (format_estimate(one.mean), _range(one))))
    if metrics.out_of_fold:
        pooled = [metrics.out_of_fold[kind] for kind in KINDS]
        for label, estimates in {
            "auc": [one.auc for one in pooled],
            "average precision": [one.average_precision for one in pooled],
            "brier score": [one.brier for one in pooled],
        }.items():
            cells = (cell for one in estimates for cell in (format_estimate(one), f"{one.n} cases"))
            table.add_row(f"{label}, out of fold", *cells)
    console.print(table)
    console.print(
        "The interval covers the choice of test patients; the members' range and sd what a seed or fold does."
    )
    if metrics.out_of_fold:
        console.print(f"Out of fold: {metrics.out_of_fold.note}.", soft_wrap=True)
    console.print(f"runs     {group.folder}\nMLflow   {group.mlflow_link}", soft_wrap=True)
    runs = group.folder.parent.parent
    console.print(
        f"  medopt ui --runs {quote(str(runs))}", Text("  # compare the runs in MLflow", "dim"), soft_wrap=True
    )


def _title(metrics: GroupMetrics) -> str:
    seeds, folds = metrics.seeds, metrics.folds
    members = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    members += f" x {folds} folds" if folds else ""
    level = f"{100 * metrics.confidence:g} % interval"
    return f"{metrics.study}, {members}: {metrics.cases} cases of the test split ({level})"


def _range(spread: FigureSpread) -> str:
    if spread.least is None or spread.most is None:
        return ""
    deviation = f" ({spread.sd:.3f})" if spread.sd is not None else ""
    return f"{spread.least:.3f} to {spread.most:.3f}{deviation}"


def print_sweep(finished: FinishedSweep, most: int = 10) -> None:
    """The best trials of a sweep, what was given up, which parameters matter, and the command that goes on."""
    console, sweep = plain_console(), finished.sweep
    complete = sorted(sweep.complete, key=lambda trial: trial.score or 0.0, reverse=True)
    sign = -1 if sweep.metric == "loss" else 1
    title = f"{sweep.study}: {len(sweep.trials)} trials, the best {min(most, len(complete))} by validation"
    paths = list(sweep.trials[0].values)
    table = Table("trial", f"validation {sweep.metric}", "epochs", *paths, title=title, title_justify="left")
    for trial in complete[:most]:
        values = [f"{one:.4g}" if isinstance(one, float) else str(one) for one in trial.values.values()]
        table.add_row(str(trial.trial), f"{sign * (trial.score or 0.0):.4f}", str(trial.epochs), *values)
    console.print(table)
    counts, epochs = sweep.counts, sweep.epochs
    console.print(
        f"{counts['complete']} complete, {counts['pruned']} given up, {counts['fail']} failed; "
        f"{epochs.trained} of {epochs.without_pruning} epochs were trained; {sweep.note}",
        soft_wrap=True,
    )
    if sweep.importance:
        shares = ", ".join(f"{name} {value:.0%}" for name, value in sweep.importance.items())
        console.print(f"what decides (PED-ANOVA): {shares}", soft_wrap=True)
    console.print(f"runs     {finished.folder}\nMLflow   {finished.mlflow_link}", soft_wrap=True)
    if sweep.command:
        console.print(Text("\nNext:", "bold"))
        console.print(f"  {sweep.command}", Text("  # the best trial's release", "dim"), soft_wrap=True)


def print_front(front: CompressionFront) -> None:
    """Every option of `medopt compress` with what it costs and keeps; which no other beats, and which was chosen."""
    title = f"{len(front.options)} options on {front.validation_cases} validation cases, {front.rule}"
    table = Table(title=title, title_justify="left")
    for name in ("option", "AUC", "less float", "decisions that flip", "ms", "over torch", "MB", "multiply-adds", ""):
        table.add_column(name, justify="left" if name in ("option", "") else "right")
    for number, option in enumerate(front.options):
        is_refused = bool(option.faults) and option.precision == "int8"
        marks = {"chosen": option.name == front.chosen, "front": option.name in front.front, "refused": is_refused}
        table.add_row(
            Text(option.name, "bold green" if marks["chosen"] else ""),
            format_estimate(option.auc),
            format_difference(option.auc_difference) if number else "",  # the first is the float network itself
            format_share(option.decision_flips) if number else "",
            f"{option.latency_ms:.2f}",
            f"{option.speedup_over_torch:.1f}x",
            f"{option.size_bytes / 1e6:.2f}",
            f"{option.multiply_adds / 1e6:.1f} M",
            ", ".join(mark for mark, holds in marks.items() if holds),
        )
    console = plain_console()
    console.print(table)
    for option in front.options:
        if option.faults and option.precision == "int8":
            console.print(f"refused  {option.name}: {'; '.join(option.faults)}", soft_wrap=True)
