"""The picture of a model's robustness: AUC against the level of each corruption, one panel a family."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from medopt.core.records import Estimate
from medopt.evaluation.robustness import Robustness
from medopt.figures.performance import shown
from medopt.figures.style import COLOURS, GREY, LINES, dress, legend, page


def robustness_figure(
    models: Sequence[Robustness], path: Path, *, confidence: float, title: str = "Robustness, test split"
) -> None:
    """Small multiples on one scale; level 0 is the clean image, the band the interval at each level.

    Levels at which the AUC is not defined are left out.
    """
    families = list(models[0].auc)
    mean = "; ".join(f"{one.model}: {shown(one.mean)}, {_signed(one.lost)} from clean" for one in models)
    caption = f"Level 0: the images as they are. Band: {confidence:.0%}, resampled patients. Above a panel: the mean "
    caption += f"change of {models[-1].model} over its levels.\nMean over all: {mean}."
    every = [e for one in models for levels in one.auc.values() for e in (one.clean, *levels)]
    lowest = min((e.value if e.low is None else e.low for e in every if e.value is not None), default=0.5)
    floor = min(0.45, np.floor(20 * lowest) / 20)
    with page(path, len(families), title, caption=caption, columns=min(4, len(families)), height=3.2) as panels:
        for axes, family in zip(panels, families, strict=True):
            for size, colour, line, one in zip((6, 3.5, 2.5), cycle(COLOURS), cycle(LINES), models, strict=False):
                points = [(x, e) for x, e in enumerate((one.clean, *one.auc[family])) if e.value is not None]
                values = np.array([e.value for _, e in points], dtype=float)
                x = [at for at, _ in points]
                axes.plot(x, values, color=colour, linestyle=line, marker="o", markersize=size, label=one.model)
                band = [(at, e.low, e.high) for at, e in points if e.low is not None]
                if band:
                    axes.fill_between(*zip(*band, strict=True), color=colour, alpha=0.13, linewidth=0)  # type: ignore[arg-type]
            axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
            axes.set(ylim=(floor, 1.02), xticks=range(len(models[0].auc[family]) + 1))
            dress(axes, "level", "AUC", f"{family.replace('_', ' ')}: {_signed(models[-1].drop[family])}")
        legend(panels[0], "lower left")


def _signed(drop: Estimate) -> str:
    """A loss as a change: -0.031."""
    return "not defined" if drop.value is None else f"{-drop.value:+.3f}"
