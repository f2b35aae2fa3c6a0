"""Pictures of what decisions bring: precision and recall, net benefit, and the error that undecided cases save.

They are drawn from what `metrics.json` holds, so that picture and table say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from medopt.core.format import format_estimate
from medopt.core.records import Estimate, NotDefined
from medopt.evaluation.evaluate import output_names
from medopt.evaluation.subgroup_results import SubgroupFigures, SubgroupResults
from medopt.figures.fonts import drawn_labels
from medopt.figures.style import COLOURS, GREY, LINES, SIZE, figure_page, legend, style_axes
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.figures import RATES, Figures
from medopt.metrics.net_benefit import DecisionCurve
from medopt.metrics.selective import CoverageRisk
from medopt.metrics.weighted import Ranking


def precision_recall_figure(
    models: Sequence[CalibratedPredictions], labels: Sequence[str], path: Path, *, title: str = "Precision and recall"
) -> None:
    """Positive predictive value against sensitivity over all thresholds; dotted: that of calling everyone."""
    names = output_names(models[0].task, drawn_labels(labels))
    point = models[0].operating_point.threshold is not None
    caption = "Dotted: the prevalence, which calling every case positive reaches."
    caption += "\nDot: operating point, chosen on validation." if point else ""
    with figure_page(path, len(names), title, caption=caption) as panels:
        for output, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for colour, line, scored in zip(cycle(COLOURS), cycle(LINES), models, strict=False):
                _precision_recall(axes, scored, output, colour, line)
            axes.axhline(float(np.nanmean(models[0].truth[:, output])), color=GREY, linewidth=0.8, linestyle=":")
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            style_axes(axes, "sensitivity (recall)", "PPV (precision)", name)
            legend(axes, "lower left")


def _precision_recall(axes: Axes, scored: CalibratedPredictions, output: int, colour: str, line: str) -> None:
    model = scored.predictions.model
    scored, target = scored.of_output(output)
    if target.all() or not target.any():
        axes.plot([], [], label=f"{model}: one class only")
        return
    ranking = Ranking.of(scored.score[:, output], target)
    true, called = (one[0].astype(float) for one in ranking.counts(np.ones((1, len(target)), np.int64)))
    area = float((np.diff(true, prepend=0) * true / called).sum() / true[-1])
    label = f"{model}: AP {area:.3f}"
    axes.step(true / true[-1], true / called, where="pre", color=colour, linestyle=line, label=label)
    decided = scored.decided[:, output]
    if scored.operating_point.threshold is not None and decided.any():
        axes.plot(decided[target].mean(), target[decided].mean(), "o", color=colour, markeredgecolor="white")


def decision_curve_figure(
    curves: Mapping[str, Mapping[str, DecisionCurve | NotDefined]],
    path: Path,
    *,
    confidence: float,
    title: str = "Net benefit",
) -> None:
    """Net benefit against the threshold probability, a panel an output: `curves` by model and output."""
    names = list(next(iter(curves.values())))
    caption = "True positives a patient, less false ones weighed by t / (1 - t)\n(Vickers & Elkin 2006). "
    caption += f"Band: {confidence:.0%} at each threshold, resamples of patients."
    with figure_page(path, len(names), title, caption=caption) as panels:
        for axes, name in zip(panels, names, strict=True):
            reference: DecisionCurve | None = None
            for colour, line, (model, by_output) in zip(cycle(COLOURS), cycle(LINES), curves.items(), strict=False):
                curve = by_output[name]
                if isinstance(curve, NotDefined):
                    axes.plot([], [], label=f"{model}: {curve.note}")
                    continue
                reference = curve
                axes.plot(curve.thresholds, curve.value, color=colour, linestyle=line, label=model)
                axes.fill_between(curve.thresholds, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
            if reference is not None:
                share = reference.prevalence
                axes.plot(reference.thresholds, reference.treat_all, color=GREY, linewidth=1, label="treat all")
                axes.axhline(0, color="black", linewidth=1, label="treat none")
                axes.set(xlim=(0, 1), ylim=(-0.15 * share, 1.1 * share))
            style_axes(axes, "threshold probability", "net benefit", name)
            legend(axes, "upper right")


def coverage_risk_figure(
    results: Mapping[str, CoverageRisk | NotDefined], path: Path, *, confidence: float, title: str = "Coverage and risk"
) -> None:
    """Share of wrong decisions among the surest cases against how many these are: `results` by model."""
    has_band = any(isinstance(one, CoverageRisk) and one.band for one in results.values())
    caption = "The least sure cases are left undecided first. AURC: the area beneath.\n"
    caption += f"Band: {confidence:.0%} at each coverage, resamples of patients.\n"
    caption += "Dot: the band chosen on validation." if has_band else ""
    with figure_page(path, 1, title, caption=caption) as (axes,):
        for colour, line, (model, result) in zip(cycle(COLOURS), cycle(LINES), results.items(), strict=False):
            if isinstance(result, NotDefined):
                axes.plot([], [], label=f"{model}: {result.note}")
                continue
            curve, label = result.curve, f"{model}: AURC {format_estimate(result.aurc)}"
            axes.plot(curve.coverage, curve.risk, color=colour, linestyle=line, label=label)
            axes.fill_between(curve.coverage, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
            if result.band:
                coverage, risk = result.band.coverage.value, result.band.risk.value
                if coverage is not None and risk is not None:
                    axes.plot(coverage, risk, "o", color=colour, markeredgecolor="white")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(bottom=0)
        style_axes(axes, "coverage: share of cases decided", "risk: share of these decided wrongly")
        legend(axes, "upper left")


def subgroup_figure(
    results: SubgroupResults, overall: Figures, path: Path, *, confidence: float, title: str = "Sites and subgroups"
) -> None:
    """A row for each site and subgroup: AUC, sensitivity and specificity with their intervals.

    `results` are those of `subgroup_figures`, `overall` the figures of all cases, drawn as a line. Groups that are too
    small to be judged have their row, and the reason in it.
    """
    rows = list(results.groups())
    names = [f"{variable}: {name} ({group.patients})" for variable, name, group in rows] or ["no groups"]
    caption = f"Bars: {confidence:.0%} intervals. Line: all cases. In brackets: patients. Filled: differs from all "
    caption += "others by an interval\nthat excludes 0; these intervals hold together for all groups."
    with figure_page(path, 3, title, caption=caption, columns=3, height=1.6 + 0.26 * len(names)) as panels:
        for axes, figure in zip(panels, RATES, strict=True):
            for row, (_, _, group) in enumerate(rows):
                _group_row(axes, row, group, figure)
            if (value := overall[figure].value) is not None:
                axes.axvline(value, color=GREY, linewidth=0.8, linestyle=":")
            style_axes(axes, figure if figure != "auc" else "AUC", "")
            axes.set_yticks(range(len(names)), names if axes is panels[0] else [""] * len(names), fontsize=SIZE)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_xlim(right=1.005)


def _group_row(axes: Axes, row: int, group: SubgroupFigures, figure: str) -> None:
    estimate: Estimate | None = getattr(group, figure)
    if estimate is None or estimate.value is None:
        if figure == "auc":
            reason = group.note or (estimate.note if estimate else "")
            axes.text(0.02, row, reason, fontsize=SIZE, color=GREY, va="center", transform=axes.get_yaxis_transform())
        return
    differs = group.difference is not None and getattr(group.difference, figure).excludes_zero
    colour = COLOURS[1] if differs else COLOURS[0]
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=1.4)
    face = colour if differs else "white"
    axes.plot([estimate.value], [row], "o", color=colour, markersize=5, markerfacecolor=face)
