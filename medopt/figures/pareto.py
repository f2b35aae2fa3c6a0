"""The picture of `medopt compress`: accuracy with its interval against time, and against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from medopt.figures.style import COLOURS, GREY, dress, page

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
            if key == "latency_ms" and front:
                line = [one for name in front for one in known if one["name"] == name]
                points = [(one[key] / scale, one["auc"]["value"]) for one in line]
                axes.step(*zip(*points, strict=True), where="post", color=GREY, linewidth=1, linestyle="--")
            for one in known:
                is_chosen = one["name"] == chosen
                _point(axes, one, one[key] / scale, is_chosen=is_chosen, named=is_chosen or key == "size_bytes")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            dress(axes, unit, "AUC on validation")
            _explain(axes, known, marks=key == "latency_ms")


def _point(axes: Axes, one: Mapping[str, Any], x: float, *, is_chosen: bool, named: bool) -> None:
    auc, mark = one["auc"], MARKS[one["precision"]]
    colour = COLOURS[1] if is_chosen else COLOURS[0] if not one["faults"] else GREY
    if auc["low"] is not None:
        spread = [[auc["value"] - auc["low"]], [auc["high"] - auc["value"]]]
        axes.errorbar(x, auc["value"], yerr=spread, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(x, auc["value"], mark, color=colour, markersize=9 if is_chosen else 6)
    if one["precision"] != "int8" or not named:
        return
    axes.annotate(
        f"{100 * one['removed']:.0f} %" if one["removed"] else "whole",
        (x, auc["value"]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=colour,
    )


def _explain(axes: Axes, known: Sequence[Mapping[str, Any]], *, marks: bool) -> None:
    """The legend: what a mark means, or a colour."""
    if marks:
        for precision, mark in MARKS.items():
            if any(one["precision"] == precision for one in known):
                axes.plot([], [], mark, color=GREY, label=precision)
    else:
        axes.plot([], [], "o", color=COLOURS[1], label="chosen")
        axes.plot([], [], "o", color=COLOURS[0], label="passes the gate")
        axes.plot([], [], "o", color=GREY, label="refused, or for comparison")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize=8, frameon=False)
