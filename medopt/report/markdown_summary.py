"""The first page of a run's report as Markdown, for where a reviewer reads before opening a file."""

from __future__ import annotations

from collections.abc import Iterator

from medopt.core.format import format_amount, format_difference, format_estimate, format_share, unit_text
from medopt.core.records import KINDS
from medopt.evaluation.group_metrics import FigureSpread, GroupMetrics, verdict_counts
from medopt.evaluation.sweep_summary import SweepSummary
from medopt.evaluation.verdict_lines import verdict_lines
from medopt.metrics.figures import RATES
from medopt.metrics.thresholds import OperatingPoint
from medopt.report.format import plain
from medopt.report.key_questions import key_answers
from medopt.report.run_records import RunRecords

FIGURES = (*RATES, "accuracy")
MARKS = {"good": "🟢", "unsure": "🟡", "bad": "🔴"}  # Markdown has no colours
MAX_LENGTH = 7500  # characters; MLflow's store takes 8000


def first_page(run: RunRecords) -> str:
    """The verdicts, both models' figures with intervals, and the answers of the report's first page."""
    sections = ["\n".join(_verdict(run)), "\n".join(_table(run))]
    sections += [f"**{one.question}** {' '.join(one.sentences)}" for one in key_answers(run)]
    if notes := run.metrics.data_notes:
        sections.append("\n".join(["**Known of the data**", *(f"- {note}" for note in notes)]))
    sections.append("All of it is in `report.html` among the artifacts. Research software, not a medical device.")
    text = "\n\n".join(sections)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]} ..."


def _verdict(run: RunRecords) -> Iterator[str]:
    """The lines that MLflow shows before somebody asks for more: the verdicts in their colours, then the question."""
    gate, test = run.metrics.gate, run.metrics.test
    for line in verdict_lines(run.metrics, gate):
        yield f"{MARKS[line.tone]} **{line.head}**{f': {line.detail}' if line.detail else ''}\n"
    yield f"{run.study.question}\n"
    yield (
        f"AUC on {test.int8.auc.n} test images: int8 **{format_estimate(test.int8.auc)}**, float "
        f"{format_estimate(test.float.auc)}; changed by {format_difference(run.metrics.int8_on_test.auc_difference)}."
    )
    if shifted := gate.figures.chosen.shifted:
        yield f"\n{shifted.sentence[0].upper()}{shifted.sentence[1:]}."


def _table(run: RunRecords) -> Iterator[str]:
    metrics = run.metrics
    test, engine = metrics.test, metrics.engine
    yield f"| test split, {test.int8.auc.n} images | float ({engine.float}) | int8 ({engine.int8}) |"
    yield "|---|---|---|"
    yield _row("AUC", *(format_estimate(test[kind].auc) for kind in KINDS))
    for name in FIGURES[1:]:
        yield _row(name, *(format_share(test[kind][name]) for kind in KINDS))
    if number := metrics.number:
        yield _row(f"mean absolute error{unit_text(number.float.unit)}", *(format_amount(number[k].mae) for k in KINDS))
        yield _row("R2", *(format_estimate(number[kind].r2) for kind in KINDS))
    if grades := metrics.grades:
        yield _row("weighted kappa", *(format_estimate(grades[kind].kappa) for kind in KINDS))
    if len(metrics.sites) > 1:
        for site, figures in metrics.sites.items():
            yield _row(f"AUC at {site}", *(format_estimate(figures[kind].auc) for kind in KINDS))
    points = [metrics.operating_point[kind] for kind in KINDS]
    yield _row(f"operating point ({plain(points[1].rule)})", *(_threshold(point) for point in points))
    yield _row("time for an image", *(f"{metrics.served_ms[kind]:.2f} ms" for kind in KINDS))
    yield _row("size", *(f"{metrics.size_bytes[kind] / 1e6:.2f} MB" for kind in KINDS))
    yield _row("AUC, int8 less float", "", format_difference(metrics.int8_on_test.auc_difference))
    yield _row("decisions that flip", "", format_share(metrics.int8_on_test.decision_flips))


def _threshold(point: OperatingPoint) -> str:
    # Of several classes the most probable one is chosen, without a threshold.
    return ", ".join(f"{threshold:.3f}" for threshold in point.thresholds) or "none"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def members_page(question: str, metrics: GroupMetrics) -> str:
    """Mean figures of the members on test with interval and standard deviation."""
    count, folds = len(metrics.members), metrics.folds
    rows = ["| mean of the members | float | int8 |", "|---|---|---|"]
    for name in FIGURES:
        spreads = [metrics.test[kind][name] for kind in KINDS]
        rows.append(f"| {'AUC' if name == 'auc' else name} | {' | '.join(_mean(one) for one in spreads)} |")
    is_good = all(member.better_than_chance and member.gate_passed for member in metrics.members)
    parts = [
        f"{MARKS['good' if is_good else 'bad']} **{verdict_counts(metrics.members)}**",
        f"{question} **{count} runs: {len(metrics.seeds)} seeds{f', {folds} folds' if folds else ''}.**",
        f"int8 AUC on {metrics.cases} test images: **{_mean(metrics.test.int8['auc'])}**.",
        "\n".join(rows),
        "Each run below this one has its own report; `tables/members.csv` has all figures.",
    ]
    return "\n\n".join(parts)


def _mean(spread: FigureSpread) -> str:
    deviation = f", SD {spread.sd:.3f}" if spread.sd is not None else ""
    return f"{format_estimate(spread.mean)}{deviation}"


def sweep_page(question: str, summary: SweepSummary) -> str:
    """The best trial and its settings."""
    best, counts = summary.best, summary.counts
    heading = f"{question} **A sweep of {len(summary.trials)} trials.**"
    ended = f"{counts['complete']} complete, {counts['pruned']} given up early, {counts['fail']} failed."
    if best is None:
        return f"{heading}\n\n{ended} None came to its end."
    settings = "\n".join(f"- `{one}`" for one in best.overrides)
    score = f"Best {summary.metric} on validation: **{best.score:.4f}** (trial {best.trial})."
    return f"{heading}\n\n{score} {ended}\n\n{settings}\n\n{summary.note}. `best.yaml` is its study file."
