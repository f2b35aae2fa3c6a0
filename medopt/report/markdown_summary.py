"""The first page of a run's report as Markdown, for where a reviewer reads before opening a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medopt.report.format import difference, figure, plain, share
from medopt.report.key_questions import answers
from medopt.report.run_records import RunRecords

KINDS = ("float", "int8")
MOST = 7500  # characters; MLflow's store takes 8000


def first_page(run: RunRecords) -> str:
    """The verdict, both models' figures with intervals, and the answers of the report's first page."""
    sections = ["\n".join(_verdict(run)), "\n".join(_table(run))]
    sections += [f"**{one.question}** {' '.join(one.sentences)}" for one in answers(run)]
    if notes := run.metrics["data_notes"]:
        sections.append("\n".join(["**Known of the data**", *(f"- {note}" for note in notes)]))
    sections.append("All of it is in `report.html` among the artifacts. Research software, not a medical device.")
    text = "\n\n".join(sections)
    return text if len(text) <= MOST else f"{text[:MOST]} ..."


def _verdict(run: RunRecords) -> Iterator[str]:
    """The lines that MLflow shows before somebody asks for more."""
    gate, test = run.metrics["gate"], run.metrics["test"]
    told = gate["override"]
    if gate["passed"]:
        word = "int8 passed the gate"
    elif told:
        word = f"int8 refused by the gate, released by {told['by']}: {told['reason']}"
    else:
        word = "int8 refused by the gate"
    yield f"{run.study['question']} **{word}.**\n"
    yield (
        f"AUC on {test['int8']['auc']['n']} test images: int8 **{figure(test['int8']['auc'])}**, float "
        f"{figure(test['float']['auc'])}; changed by {difference(run.metrics['int8_on_test']['auc_difference'])}."
    )
    if not gate["passed"]:
        yield from ("", *(f"- {reason}" for reason in gate["reasons"]))


def _table(run: RunRecords) -> Iterator[str]:
    metrics = run.metrics
    test, engine = metrics["test"], metrics["engine"]
    yield f"| test split, {test['int8']['auc']['n']} images | float ({engine['float']}) | int8 ({engine['int8']}) |"
    yield "|---|---|---|"
    for name in ("auc", "sensitivity", "specificity", "accuracy"):
        shown = figure if name == "auc" else share
        yield _row("AUC" if name == "auc" else name, *(shown(test[kind].get(name)) for kind in KINDS))
    if len(metrics["sites"]) > 1:
        for site, found in metrics["sites"].items():
            yield _row(f"AUC at {site}", *(figure(found[kind].get("auc")) for kind in KINDS))
    points = [metrics["operating_point"][kind] for kind in KINDS]
    yield _row(f"operating point ({plain(points[1]['rule'])})", *(_threshold(point) for point in points))
    times = [metrics["latency_ms"][f"{engine[kind]}_{kind}"] for kind in KINDS]
    yield _row("time for an image", *(f"{time:.2f} ms" for time in times))
    yield _row("size", *(f"{metrics['size_bytes'][kind] / 1e6:.2f} MB" for kind in KINDS))
    yield _row("AUC, int8 less float", "", difference(metrics["int8_on_test"]["auc_difference"]))
    yield _row("decisions that flip", "", share(metrics["int8_on_test"]["decision_flips"]))


def _threshold(point: Any) -> str:
    limit = point["threshold"]
    if limit is None:  # of several classes the most probable one is chosen
        return "none"
    return ", ".join(f"{one:.3f}" for one in limit) if isinstance(limit, list | tuple) else f"{limit:.3f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


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
