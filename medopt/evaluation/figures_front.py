"""The picture of `medopt compress`: accuracy with its interval against time, and against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from medopt.evaluation.panels import COLOURS, GREY, dress, legend, page

MARKS = {"float32": "o", "float16": "s", "int8-weights": "^", "int8": "D"}


def front_figure(
    options: Sequence[Mapping[str, Any]],
    front: Sequence[str],
    chosen: str | None,
    path: Path,
    *,
    title: str,
    caption: str,
) -> None:
    """`options` are rows of the front's table, `front` the names of those that no other beats, the fastest first."""
    known = [one for one in options if one["auc"]["value"] is not None]
    with page(path, 2, title, caption=caption) as panels:
        for axes, key, scale, unit in (
            (panels[0], "latency_ms", 1.0, "time of one image (ms)"),
            (panels[1], "size_bytes", 1e6, "size of the file (MB)"),
        ):
            if key == "latency_ms":
                line = [one for name in front for one in known if one["name"] == name]
                points = [(one[key] / scale, one["auc"]["value"]) for one in line]
                axes.step(*zip(*points, strict=True), where="post", color=GREY, linewidth=1, linestyle="--")
            for one in known:
                _point(axes, one, one[key] / scale, is_chosen=one["name"] == chosen)
            axes.set_xscale("log")
            for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
                which(FuncFormatter(lambda value, _: f"{value:g}"))
            if len(known) > 6:
                axes.xaxis.set_minor_formatter(NullFormatter())
            dress(axes, unit, "AUC on validation")
        _name(panels[0], known)


def _point(axes: Axes, one: Mapping[str, Any], x: float, *, is_chosen: bool) -> None:
    auc, mark = one["auc"], MARKS[one["precision"]]
    colour = COLOURS[1] if is_chosen else COLOURS[0] if not one["faults"] else GREY
    if auc["low"] is not None:
        spread = [[auc["value"] - auc["low"]], [auc["high"] - auc["value"]]]
        axes.errorbar(x, auc["value"], yerr=spread, color=colour, linewidth=0.8, alpha=0.5)
    axes.plot(x, auc["value"], mark, color=colour, markersize=9 if is_chosen else 6)
    axes.annotate(
        f"{100 * one['removed']:.0f} %" if one["removed"] else "whole",
        (x, auc["value"]),
        xytext=(5, 5),
        textcoords="offset points",
        fontsize=7,
        color=colour,
    )


def _name(axes: Axes, known: Sequence[Mapping[str, Any]]) -> None:
    """The legend: what a mark means, and a colour."""
    for precision, mark in MARKS.items():
        if any(one["precision"] == precision for one in known):
            axes.plot([], [], mark, color=GREY, label=precision)
    axes.plot([], [], "o", color=COLOURS[1], label="chosen")
    axes.plot([], [], "o", color=COLOURS[0], label="passes the gate")
    axes.plot([], [], "o", color=GREY, label="refused, or for comparison")
    legend(axes, "lower right")
