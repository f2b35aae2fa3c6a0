"""Pictures of a run, written as PNG: learning curves, ROC, reliability, confusion.

Several models (float and int8) share one picture and are told apart by colour and by line. Colours are those of Okabe
and Ito, which the colour-blind can tell apart. Drawn on `Figure` objects: nothing global is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medopt.evaluation.curves import reliability, roc_curve
from medopt.evaluation.scored import Scored
from medopt.provenance import atomic
from medopt.records import EpochRecord, Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINES = ("-", "--", "-.", ":")
GREY = "#666666"
PANEL_INCHES = 4.6


@contextmanager
def _panels(
    path: Path, count: int, title: str, *, columns: int = 3, height: float = PANEL_INCHES
) -> Iterator[list[Axes]]:
    """`count` empty panels under one title; written to `path` whole or not at all when the block ends."""
    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(PANEL_INCHES * across, height * down + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    panels = [figure.add_subplot(down, across, index + 1) for index in range(count)]
    yield panels
    with atomic(path) as part:
        figure.savefig(part, format="png", dpi=150)


def _dress(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Axis titles, a light grid, no box."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _unit_square(axes: Axes) -> None:
    """Both axes from 0 to 1, equally long, with the diagonal."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def shown(estimate: Estimate) -> str:
    """A figure as a person reads it: 0.912 (0.874 to 0.941)."""
    if estimate.value is None:
        return "not defined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def learning_curves(history: Sequence[EpochRecord], path: Path, *, metric: str = "auc") -> None:
    """Loss, validation metric, learning rate and images per second against the epoch. `metric`: auc or loss."""
    epochs = [one.epoch for one in history]
    scores = np.array([one.val_metric for one in history], dtype=float)
    with _panels(path, 4, f"Training, {len(history)} epochs", columns=2, height=3.2) as (loss, score, rate, speed):
        loss.plot(epochs, [one.train_loss for one in history], color=COLOURS[0], linestyle=LINES[0], label="training")
        loss.plot(epochs, [one.val_loss for one in history], color=COLOURS[1], linestyle=LINES[1], label="validation")
        loss.legend(frameon=False)
        score.plot(epochs, scores, color=COLOURS[1])
        rate.plot(epochs, [one.learning_rate for one in history], color=COLOURS[0])
        speed.plot(epochs, [one.images_per_second for one in history], color=COLOURS[0])
        speed.set_ylim(bottom=0)
        if np.isfinite(scores).any():
            best = int(np.nanargmin(scores) if metric == "loss" else np.nanargmax(scores))
            score.plot(epochs[best], scores[best], "o", color=COLOURS[1])
            score.set_title(f"best {scores[best]:.3f} in epoch {epochs[best]}", fontsize=10)
        _dress(loss, "epoch", "loss")
        _dress(score, "epoch", "validation AUC" if metric == "auc" else "validation loss", score.get_title())
        _dress(rate, "epoch", "learning rate")
        _dress(speed, "epoch", "images per second")
        for axes in (loss, score, rate, speed):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def roc_figure(
    models: Sequence[Scored],
    labels: Sequence[str],
    path: Path,
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
    title: str = "ROC",
) -> None:
    """ROC curves with pointwise bootstrap band and operating point: a panel for each output, all models in each.

    `labels` are the class or label names; of a binary study the second is the finding.
    """
    names = output_names(models[0], labels)
    with _panels(path, len(names), title) as panels:
        for output, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for colour, line, scored in zip(COLOURS, LINES, models, strict=False):
                curve = roc_curve(scored, output, bootstrap=bootstrap, confidence=confidence, seed=seed)
                if curve is None:
                    axes.plot([], [], label=f"{scored.predictions.model}: one class only")
                    continue
                label = f"{scored.predictions.model}: AUC {shown(curve.auc)}"
                axes.plot(curve.false_positive_rate, curve.sensitivity, color=colour, linestyle=line, label=label)
                axes.fill_between(curve.grid, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
                if curve.point is not None:
                    axes.plot(*curve.point, "o", color=colour, markeredgecolor="white")
            _unit_square(axes)
            found = int(models[0].target[:, output].sum())
            _dress(axes, "1 - specificity", "sensitivity", f"{name}: {found} of {len(models[0].predictions)} cases")
            axes.legend(loc="lower right", fontsize=8, frameon=False)


def reliability_figure(
    models: Sequence[Scored], labels: Sequence[str], path: Path, *, confidence: float = 0.95, title: str = "Reliability"
) -> None:
    """Observed frequency against mean probability with intervals, and how the probabilities spread beneath."""
    names = output_names(models[0], labels)
    with _panels(path, len(names), title) as panels:
        for output, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for colour, line, scored in zip(COLOURS, LINES, models, strict=False):
                probability = scored.probability[:, output]
                bins = reliability(probability, scored.target[:, output], confidence)
                spread = np.stack([bins.observed - bins.low, bins.high - bins.observed])
                axes.errorbar(
                    bins.predicted,
                    bins.observed,
                    yerr=spread,
                    color=colour,
                    linestyle=line,
                    marker="o",
                    markersize=4,
                    elinewidth=0.8,
                    label=scored.predictions.model,
                )
                counts, edges = np.histogram(probability, bins=25, range=(0, 1))
                axes.stairs(0.15 * counts / counts.max(), edges, color=colour, linestyle=line, alpha=0.7)
            _unit_square(axes)
            _dress(axes, "predicted probability", "observed frequency", name)
            axes.legend(loc="upper left", fontsize=8, frameon=False)


def confusion_figure(models: Sequence[Scored], labels: Sequence[str], path: Path, *, title: str = "Confusion") -> None:
    """Cases by truth (rows) and decision (columns), coloured by the share of their row; a panel a model (and label)."""
    tables = [
        (f"{scored.predictions.model}{name}", words, counts)
        for scored in models
        for name, words, counts in _confusions(scored, labels)
    ]
    with _panels(path, len(tables), title, columns=max(2, len(tables) // len(models))) as panels:
        for axes, (name, words, counts) in zip(panels, tables, strict=True):
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (row, column), count in np.ndenumerate(counts):
                ink = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, f"{count}\n{share[row, column]:.0%}", ha="center", va="center", color=ink)
            _dress(axes, "decided", "truth", name)
            axes.grid(False)
            axes.set_xticks(range(len(words)), words)
            axes.set_yticks(range(len(words)), words, rotation=90, va="center")


def _confusions(scored: Scored, labels: Sequence[str]) -> Iterator[tuple[str, Sequence[str], np.ndarray]]:
    """Name suffix, class names and counts (C, C) of each table that a model's decisions make."""
    if scored.task == "multiclass":
        yield "", labels, scored.target.T.astype(int) @ scored.decided.astype(int)
        return
    for output, name in enumerate(output_names(scored, labels)):
        truth, decided = (
            np.stack([~one[:, output], one[:, output]]).astype(int) for one in (scored.target, scored.decided)
        )
        words = labels if scored.task == "binary" else ("no", "yes")
        yield "" if scored.task == "binary" else f", {name}", words, truth @ decided.T


def output_names(scored: Scored, labels: Sequence[str]) -> Sequence[str]:
    """What each output answers: of a binary study only the finding, the second label."""
    return labels[1:] if scored.task == "binary" else labels
