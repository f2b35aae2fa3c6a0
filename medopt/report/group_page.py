"""What stands above several runs, as Markdown: the mean of seeds and folds, or the best of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medopt.report.words import figure

KINDS = ("float", "int8")


def members_page(question: str, metrics: Mapping[str, Any]) -> str:
    """Mean figures of the members on test with interval and standard deviation; `metrics` is the group's file."""
    count, folds = len(metrics["members"]), metrics["folds"]
    area = metrics["test"]["int8"]["auc"]
    rows = ["| mean of the members | float | int8 |", "|---|---|---|"]
    for name in ("auc", "sensitivity", "specificity", "accuracy"):
        told = [metrics["test"][kind].get(name) for kind in KINDS]
        if all(told):
            rows.append(f"| {'AUC' if name == 'auc' else name} | {' | '.join(_mean(one) for one in told)} |")
    refused = sum(not member["gate_passed"] for member in metrics["members"])
    parts = [
        f"{question} **{count} runs: {len(metrics['seeds'])} seeds{f', {folds} folds' if folds else ''}.**",
        f"int8 AUC on {metrics['cases']} test images: **{_mean(area)}**."
        + (f" The gate refused {refused} of {count}." if refused else " The gate passed all."),
        "\n".join(rows),
        "Each run below this one has its own report; `tables/members.csv` has all figures.",
    ]
    return "\n\n".join(parts)


def _mean(told: Mapping[str, Any]) -> str:
    spread = f", SD {told['sd']:.3f}" if told["sd"] is not None else ""
    return f"{figure(told['mean'])}{spread}"


def sweep_page(question: str, summary: Mapping[str, Any]) -> str:
    """The best trial and its settings; `summary` is that of the sweep."""
    best, counts = summary["best"], summary["counts"]
    told = f"{question} **A sweep of {len(summary['trials'])} trials.**"
    ended = f"{counts['complete']} complete, {counts['pruned']} given up early, {counts['fail']} failed."
    if best is None:
        return f"{told}\n\n{ended} None came to its end."
    settings = "\n".join(f"- `{one}`" for one in best["overrides"])
    score = f"Best {summary['metric']} on validation: **{best['score']:.4f}** (trial {best['trial']})."
    return f"{told}\n\n{score} {ended}\n\n{settings}\n\n{summary['note']}. `best.yaml` is its study file."
