"""Pictures of what `medopt tune` measures: initialization by depth, the learning-rate range test, micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medopt.evaluation.sweep_summary import Setting
from medopt.figures.style import COLOURS, GREY, LINES, figure_page, legend, style_axes
from medopt.training.batch_size import BatchTest
from medopt.training.init_study import InitResult
from medopt.training.lr_range_test import RangeTest

INK = {kind: COLOURS[place] for place, kind in enumerate((
    "residual, zero start", "plain", "residual", "residual, no BatchNorm", "residual, no BatchNorm, zero start",
    "plain, no BatchNorm",
))}  # fmt: skip


def initialization_figure(nets: Sequence[InitResult], path: Path) -> None:
    """Scale of activations and gradients against the block, a row of panels a depth; no point where not finite."""
    depths = sorted({net.variant.depth for net in nets})
    parts = (("activation", "standard deviation of the output"), ("gradient", "norm of the loss's gradient there"))
    caption = (
        "Solid: He. Dashed: Xavier (under BatchNorm nearly the same). A line ends where float32 has no such number."
    )
    with figure_page(path, 2 * len(depths), "How a net begins, block by block", caption=caption, columns=2) as panels:
        for place, (depth, (quantity, label)) in enumerate((depth, part) for depth in depths for part in parts):
            axes = panels[place]
            for net in (net for net in nets if net.variant.depth == depth):
                values = _finite(getattr(net.scale, quantity))
                values[values == 0] = np.nan  # no place on a logarithmic axis
                name, is_he = net.variant.description, net.variant.init == "he"
                axes.plot(
                    range(1, len(values) + 1),
                    values,
                    color=INK[name],
                    linestyle=LINES[0] if is_he else LINES[1],
                    linewidth=3.0 if name == "residual, zero start" else 1.5,  # it shows beneath those that cover it
                    label=name if is_he else None,
                )
            axes.set_yscale("log")
            style_axes(axes, "block", label, f"{quantity}s, {depth} layers")
        legend(panels[-2], "lower left")  # beneath the line that falls


def range_figure(test: RangeTest, path: Path, study: str) -> None:
    """Loss against the learning rate, the turn and the suggestion marked."""
    rates, losses, smoothed = np.array(test.rates), _finite(test.losses), _finite(test.smoothed)
    with figure_page(path, 1, f"{study}: learning-rate range test") as (axes,):
        axes.plot(rates, losses, ".", color=GREY, markersize=3, label="a step")
        axes.plot(rates, smoothed, color=COLOURS[0], label="smoothed")
        top = 1.15 * np.nanmax(smoothed)
        axes.set(xscale="log", ylim=(min(0.0, np.nanmin(losses)), top))
        axes.axvline(test.turn, color=COLOURS[1], linestyle=LINES[3], label=f"turns: {test.turn:.1e}")
        if test.exploded is not None:
            axes.axvline(test.exploded, color=GREY, linewidth=0.8, label=f"explodes: {test.exploded:.1e}")
        if test.suggestion is not None:
            rate = test.suggestion
            axes.axvline(rate, color=COLOURS[2], linestyle=LINES[1], label=f"suggested: {rate:.1e}")
            axes.plot(rate, np.interp(np.log(rate), np.log(rates), smoothed), "o", color=COLOURS[2])
        style_axes(axes, "learning rate", "training loss")
        legend(axes, "lower left")


def batch_figure(test: BatchTest, path: Path, study: str) -> None:
    """Images a second and memory against the micro-batch, the chosen one marked."""
    known = [(trial, trial.bytes / 2**30) for trial in test.trials if trial.bytes is not None]
    sizes = [trial.micro_batch for trial, _ in known]
    title = f"{study}: micro-batches of a step on {test.device}"
    with figure_page(path, 2, title) as (speed, memory):
        speed.plot(sizes, [trial.images_per_second or np.nan for trial, _ in known], "o-", color=COLOURS[0])
        memory.plot(sizes, [gib for _, gib in known], "o-", color=COLOURS[1], label="taken")
        free = test.available_bytes / 2**30
        if free < 4 * max(gib for _, gib in known):
            memory.axhline(free, color=GREY, linestyle=LINES[1], label="free")
            legend(memory, "lower right")
        for axes in (speed, memory):
            _sizes(axes, sizes)
            axes.axvline(test.micro_batch, color=COLOURS[2], linestyle=LINES[1])
        style_axes(speed, "micro-batch", "images per second", f"chosen: {test.micro_batch}")
        style_axes(memory, "micro-batch", "GiB", f"{free:.1f} GiB were free")


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.array(values, dtype=float)
    return np.where(np.isfinite(array), array, np.nan)


def _sizes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)


MOST = 8  # panels of parameters


def sweep_figure(
    scores: Sequence[float | None],
    values: Mapping[str, Sequence[Setting]],
    path: Path,
    *,
    log: Sequence[str],
    score: str,
    title: str,
) -> None:
    """The score (N,) by trial with the best so far, and by each parameter's values (N,); None: given up or failed.

    `log` names the parameters whose axis is logarithmic.
    """
    names = list(values)[:MOST]
    with figure_page(path, 1 + len(names), title, columns=3, height=3.2) as panels:
        _by_trial(panels[0], scores, score)
        for axes, name in zip(panels[1:], names, strict=True):
            _by_value(axes, values[name], scores, is_log=name in log)
            style_axes(axes, name, score)


def _by_trial(axes: Axes, scores: Sequence[float | None], score: str) -> None:
    known = [(number, one) for number, one in enumerate(scores) if one is not None]
    lost = [number for number, one in enumerate(scores) if one is None]
    if known:
        numbers, found = zip(*known, strict=True)
        axes.plot(numbers, found, "o", color=COLOURS[0], markersize=4)
        axes.step(numbers, np.maximum.accumulate(found), where="post", color=COLOURS[1], label="best so far")
        axes.plot(lost, [min(found)] * len(lost), "x", color=GREY, markersize=5, label="given up or failed")
        legend(axes, "lower right")
    style_axes(axes, "trial", score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _by_value(axes: Axes, values: Sequence[Setting], scores: Sequence[float | None], *, is_log: bool) -> None:
    known = [(value, score) for value, score in zip(values, scores, strict=True) if score is not None]
    settings = np.array([value for value, _ in known])  # numbers, or words, which matplotlib takes as categories
    axes.plot(settings, [score for _, score in known], "o", color=COLOURS[0], markersize=4)
    if is_log and known:
        axes.set_xscale("log")
