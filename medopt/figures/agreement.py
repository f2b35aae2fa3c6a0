"""How a predicted number agrees with the truth: one against the other, and their difference (Bland & Altman 1986)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medopt.core.format import unit_text
from medopt.core.number_scale import NumberScale
from medopt.figures.style import COLOURS, GREY, SIZE, figure_page, legend, style_axes
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.number_figures import NumberFigures

MARKERS = ("o", "x")


def agreement_figure(
    models: Sequence[CalibratedPredictions],
    figures: Mapping[str, NumberFigures],
    scale: NumberScale,
    path: Path,
    title: str = "Agreement",
) -> None:
    """Predicted against true numbers, and their difference against their mean with the limits of agreement.

    Dashed lines: the threshold of the yes-or-no question. `figures` are by the models' names; the limits are those of
    the last model.
    """
    called = f"{scale.quantity},{unit_text(scale.unit)}".rstrip(",")
    last = models[-1].predictions.model
    bias, lower, upper = (getattr(figures[last], name).value for name in ("bias", "lower", "upper"))
    caption = f"Lines on the right: mean difference and limits of agreement of {last}."
    with figure_page(path, 2, title, caption=caption) as (scatter, difference):
        for model, colour, marker in zip(models, COLOURS, MARKERS, strict=False):
            if model.numbers is None:
                continue
            predicted, truth = model.numbers
            how: dict[str, Any] = {"color": colour, "marker": marker, "s": 18, "alpha": 0.7}
            how["label"] = model.predictions.model
            scatter.scatter(truth, predicted, **how)
            difference.scatter((predicted + truth) / 2, predicted - truth, **how)
        ends = [min(scatter.get_xlim()[0], scatter.get_ylim()[0]), max(scatter.get_xlim()[1], scatter.get_ylim()[1])]
        scatter.plot(ends, ends, color=GREY, linewidth=1)
        scatter.axhline(scale.threshold, color=GREY, linewidth=0.8, linestyle="--")
        scatter.axvline(scale.threshold, color=GREY, linewidth=0.8, linestyle="--")
        scatter.set(xlim=ends, ylim=ends, aspect="equal")
        for value, line in ((bias, "-"), (lower, ":"), (upper, ":")):
            if value is not None and np.isfinite(value):
                difference.axhline(value, color=COLOURS[1], linewidth=1.2, linestyle=line)
        difference.axhline(0, color=GREY, linewidth=0.8)
        style_axes(scatter, f"true {called}", f"predicted {called}")
        style_axes(difference, "mean of predicted and true", "predicted less true")
        for axes in (scatter, difference):
            axes.tick_params(labelsize=SIZE)
            legend(axes, "upper left")
