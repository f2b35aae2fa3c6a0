"""Pictures of a sweep: the score by trial, and by each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from medopt.evaluation.panels import COLOURS, GREY, dress, legend, page

MOST = 8  # panels of parameters


def sweep_figure(
    scores: Sequence[float | None],
    values: Mapping[str, Sequence[float | str]],
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
    with page(path, 1 + len(names), title, columns=3, height=3.2) as panels:
        _by_trial(panels[0], scores, score)
        for axes, name in zip(panels[1:], names, strict=True):
            _by_value(axes, values[name], scores, is_log=name in log)
            dress(axes, name, score)


def _by_trial(axes: Axes, scores: Sequence[float | None], score: str) -> None:
    known = [(number, one) for number, one in enumerate(scores) if one is not None]
    lost = [number for number, one in enumerate(scores) if one is None]
    if known:
        numbers, found = zip(*known, strict=True)
        axes.plot(numbers, found, "o", color=COLOURS[0], markersize=4)
        axes.step(numbers, np.maximum.accumulate(found), where="post", color=COLOURS[1], label="best so far")
        axes.plot(lost, [min(found)] * len(lost), "x", color=GREY, markersize=5, label="given up or failed")
        legend(axes, "lower right")
    dress(axes, "trial", score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _by_value(axes: Axes, values: Sequence[float | str], scores: Sequence[float | None], *, is_log: bool) -> None:
    known = [(value, one) for value, one in zip(values, scores, strict=True) if one is not None]
    axes.plot([value for value, _ in known], [one for _, one in known], "o", color=COLOURS[0], markersize=4)
    if is_log and known:
        axes.set_xscale("log")
