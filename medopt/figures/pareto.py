"""The picture of `medopt compress`: accuracy with its interval against time, and against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from medopt.evaluation.compression_front import CompressionFront, CompressionOption
from medopt.figures.style import COLOURS, GREY, SIZE, figure_page, style_axes

MARKS = {"float32": "o", "float16": "s", "int8-weights": "^", "int4-weights": "v", "int8": "D"}


def front_figure(
    front: CompressionFront,
    path: Path,
    *,
    title: str,
    caption: str,
) -> None:
    """A point for each option whose AUC is defined; the line joins those that no other beats."""
    known = [one for one in front.options if one.auc.value is not None]
    with figure_page(path, 2, title, caption=caption) as panels:
        for axes, key, scale, unit in (
            (panels[0], "latency_ms", 1.0, "time of one image (ms)"),
            (panels[1], "size_bytes", 1e6, "size of the file (MB)"),
        ):
            if key == "latency_ms" and front.front:
                line = [one for name in front.front for one in known if one.name == name]
                points = [(one.latency_ms, one.auc.value) for one in line]
                axes.step(*zip(*points, strict=True), where="post", color=GREY, linewidth=1, linestyle="--")
            for one in known:
                is_chosen = one.name == front.chosen
                _point(
                    axes, one, getattr(one, key) / scale, is_chosen=is_chosen, named=is_chosen or key == "size_bytes"
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            style_axes(axes, unit, "AUC on validation")
            _explain(axes, known, marks=key == "latency_ms")


def _point(axes: Axes, option: CompressionOption, x: float, *, is_chosen: bool, named: bool) -> None:
    value, low, high, mark = option.auc.value, option.auc.low, option.auc.high, MARKS[option.precision]
    assert value is not None  # `front_figure` leaves out the others
    colour = COLOURS[1] if is_chosen else COLOURS[0] if not option.faults else GREY
    if low is not None and high is not None:
        axes.errorbar(x, value, yerr=[[value - low], [high - value]], color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(x, value, mark, color=colour, markersize=9 if is_chosen else 6)
    if option.precision != "int8" or not named:
        return
    axes.annotate(
        f"{100 * option.removed:.0f} %" if option.removed else "whole",
        (x, value),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        fontsize=SIZE,
        color=colour,
    )


def _explain(axes: Axes, options: Sequence[CompressionOption], *, marks: bool) -> None:
    """The legend: what a mark means, or a colour."""
    if marks:
        for precision, mark in MARKS.items():
            if any(one.precision == precision for one in options):
                axes.plot([], [], mark, color=GREY, label=precision)
    else:
        axes.plot([], [], "o", color=COLOURS[1], label="chosen")
        axes.plot([], [], "o", color=COLOURS[0], label="passes the gate")
        axes.plot([], [], "o", color=GREY, label="refused, or for comparison")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, fontsize=SIZE, frameon=False)
