"""The picture of a model's robustness: AUC against the level of each corruption, one panel a family."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import numpy as np

from medopt.core.format import format_estimate
from medopt.core.records import Estimate
from medopt.evaluation.analysis_results import ModelRobustness
from medopt.figures.style import COLOURS, GREY, LINES, figure_page, legend, style_axes


def robustness_figure(
    models: Mapping[str, ModelRobustness], path: Path, *, confidence: float, title: str = "Robustness, test split"
) -> None:
    """Small multiples on one scale; level 0 is the clean image, the band the interval at each level.

    Levels at which the AUC is not defined are left out.
    """
    last_name, last = list(models.items())[-1]
    mean = "; ".join(
        f"{name}: {format_estimate(one.mean)}, {_signed(one.drop)} from clean" for name, one in models.items()
    )
    caption = f"Level 0: the images as they are. Band: {confidence:.0%}, resampled patients. Above a panel: the mean "
    caption += f"change of {last_name} over its levels.\nMean over all: {mean}."
    every = [e for one in models.values() for family in one.families.values() for e in (one.clean, *family.auc)]
    lowest = min((e.value if e.low is None else e.low for e in every if e.value is not None), default=0.5)
    floor = min(0.45, np.floor(20 * lowest) / 20)
    families, styles = last.families, list(zip((6, 3.5, 2.5), cycle(COLOURS), cycle(LINES), strict=False))
    with figure_page(path, len(families), title, caption=caption, columns=min(3, len(families)), height=2.9) as panels:
        for axes, (family, reference) in zip(panels, families.items(), strict=True):
            for (size, colour, line), (name, one) in zip(styles, models.items(), strict=False):
                estimates = (one.clean, *one.families[family].auc)
                points = [(x, e) for x, e in enumerate(estimates) if e.value is not None]
                values = np.array([e.value for _, e in points], dtype=float)
                x = [at for at, _ in points]
                axes.plot(x, values, color=colour, linestyle=line, marker="o", markersize=size, label=name)
                band = [(at, e.low, e.high) for at, e in points if e.low is not None]
                if band:
                    axes.fill_between(*zip(*band, strict=True), color=colour, alpha=0.13, linewidth=0)  # type: ignore[arg-type]
            axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
            axes.set(ylim=(floor, 1.02), xticks=range(len(reference.auc) + 1))
            style_axes(axes, "level", "AUC", f"{family.replace('_', ' ')}: {_signed(reference.drop)}")
        legend(panels[0], "lower left")


def _signed(drop: Estimate) -> str:
    """A loss as a change: -0.031."""
    return "not defined" if drop.value is None else f"{-drop.value:+.3f}"
