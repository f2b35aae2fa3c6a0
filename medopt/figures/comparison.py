"""Pictures of several runs: differences to a reference by site, and members above their mean (forest plots)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medopt.core.format import UNDEFINED
from medopt.core.records import Estimate
from medopt.evaluation.comparison import COMPARED, Comparison, PairedFigures
from medopt.figures.style import COLOURS, GREY, SIZE, figure_page, style_axes


def comparison_figure(compared: Comparison, path: Path, *, title: str = "") -> None:
    """Differences to the reference with their intervals, a panel a figure."""
    rows: list[tuple[str, PairedFigures, bool]] = []
    for run in compared.runs:
        rows.append((run.name, run.figures, True))
        rows += [(f"at {site}", figures, False) for site, figures in run.sites.items()]
    caption = f"Bars: {compared.confidence:.0%} intervals of the paired difference on {compared.cases} cases of "
    caption += f"{compared.patients} patients. Orange: excludes 0.\n{compared.note}"
    title = title or f"Difference to {compared.reference}"
    height = 1.6 + 0.28 * len(rows)
    with figure_page(path, len(COMPARED), title, caption=caption, columns=2, height=height) as panels:
        for axes, figure in zip(panels, COMPARED, strict=True):
            for place, (_, figures, whole) in enumerate(rows):
                _difference_row(axes, place, figures.by_name()[figure].difference, "D" if whole else "o")
            axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
            # A difference below half a hundredth is none to look at: do not blow it up.
            least, most = axes.get_xlim()
            axes.set_xlim(min(least, -0.01), max(most, 0.01))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            better = "less is better" if figure == "brier" else "more is better"
            style_axes(axes, f"{'AUC' if figure == 'auc' else figure.capitalize()}: difference ({better})", "")
            axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=SIZE)
            axes.set_ylim(len(rows) - 0.4, -0.6)


def _difference_row(axes: Axes, place: int, estimate: Estimate, marker: str) -> None:
    if estimate.value is None:
        axes.text(0.02, place, UNDEFINED, fontsize=SIZE, color=GREY, va="center", transform=axes.get_yaxis_transform())
        return
    _row(axes, place, estimate, COLOURS[1] if estimate.excludes_zero else COLOURS[0], marker)


def forest_figure(
    names: Sequence[str],
    panels: Mapping[str, tuple[Sequence[Estimate], Estimate]],
    path: Path,
    *,
    title: str,
    caption: str = "",
) -> None:
    """A panel for each figure: a row for each member of these names, and the mean beneath in another colour.

    A figure that is not defined leaves its row empty, and one without an interval has a dot only.
    """
    height = 1.6 + 0.24 * len(names)
    with figure_page(path, len(panels), title, caption=caption, columns=2, height=height) as drawn:
        for axes, (figure, (members, mean)) in zip(drawn, panels.items(), strict=True):
            for row, one in enumerate(members):
                _row(axes, row, one, COLOURS[0], "o")
            _row(axes, len(members), mean, COLOURS[1], "D")
            if mean.value is not None:
                axes.axvline(mean.value, color=GREY, linewidth=0.8, linestyle=":")
            style_axes(axes, figure, "")
            axes.set_yticks(range(len(names) + 1), [*names, "mean"], fontsize=SIZE)
            axes.set_ylim(len(names) + 0.6, -0.6)


def _row(axes: Axes, row: int, estimate: Estimate, colour: str, marker: str) -> None:
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=1.4)
    axes.plot([estimate.value], [row], marker=marker, color=colour, markersize=5)
