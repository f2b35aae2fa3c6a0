"""Pictures of several runs: each member with its interval above the mean of all (a forest plot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from medopt.core.records import Estimate
from medopt.evaluation.panels import COLOURS, GREY, dress, page


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
    with page(path, len(panels), title, caption=caption, columns=2, height=height) as drawn:
        for axes, (figure, (members, mean)) in zip(drawn, panels.items(), strict=True):
            for row, one in enumerate(members):
                _row(axes, row, one, COLOURS[0], "o")
            _row(axes, len(members), mean, COLOURS[1], "D")
            if mean.value is not None:
                axes.axvline(mean.value, color=GREY, linewidth=0.8, linestyle=":")
            dress(axes, figure, "")
            axes.set_yticks(range(len(names) + 1), [*names, "mean"], fontsize=8)
            axes.set_ylim(len(names) + 0.6, -0.6)


def _row(axes: Axes, row: int, one: Estimate, colour: str, marker: str) -> None:
    if one.value is None:
        return
    if one.low is not None and one.high is not None:
        axes.plot([one.low, one.high], [row, row], color=colour, linewidth=1.4)
    axes.plot([one.value], [row], marker=marker, color=colour, markersize=5)
