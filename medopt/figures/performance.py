"""Pictures of a run, written as PNG: learning curves, ROC, reliability, confusion.

Several models (float and int8) share one picture and are told apart by colour and by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medopt.core.format import format_estimate
from medopt.core.records import EpochRecord, has_one_output, is_exclusive
from medopt.evaluation.evaluate import output_names
from medopt.figures.fonts import drawn_labels
from medopt.figures.style import COLOURS, GREY, LINES, SIZE, figure_page, legend, style_axes
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.metrics.calibration_error import adaptive_calibration_error, expected_calibration_error
from medopt.metrics.curves import reliability, roc_curve

STRIP = 0.25  # height of the strip beneath a reliability diagram, where the diagram has height 1


def _styled(models: Sequence[CalibratedPredictions]) -> Iterator[tuple[str, str, CalibratedPredictions]]:
    """Each model with its colour and its line."""
    yield from zip(cycle(COLOURS), cycle(LINES), models, strict=False)


def _unit_square(axes: Axes, bottom: float = -0.02) -> None:
    """Both axes from 0 to 1, equally long, with the diagonal; room beneath down to `bottom`."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    ticks = np.linspace(0, 1, 6)
    axes.set(xlim=(-0.02, 1.02), ylim=(bottom, 1.02), aspect="equal", xticks=ticks, yticks=ticks)


def learning_curves(
    history: Sequence[EpochRecord], path: Path, *, metric: str = "auc", kept_epoch: int | None = None
) -> None:
    """Loss, validation metric, learning rate and images per second against the epoch, from 1.

    `metric` is auc, R2 or loss, `kept_epoch` the one whose weights were kept.
    """
    epochs = [one.epoch + 1 for one in history]
    scores = np.array([one.val_metric for one in history], dtype=float) * (-1 if metric == "loss" else 1)
    with figure_page(path, 4, f"Training, {len(history)} epochs", columns=2, height=3.2) as (loss, score, rate, speed):
        loss.plot(epochs, [one.train_loss for one in history], color=COLOURS[0], linestyle=LINES[0], label="training")
        loss.plot(epochs, [one.val_loss for one in history], color=COLOURS[1], linestyle=LINES[1], label="validation")
        legend(loss, "upper right")
        score.plot(epochs, scores, color=COLOURS[1])
        rate.plot(epochs, [one.learning_rate for one in history], color=COLOURS[0])
        speed.plot(epochs, [one.images_per_second for one in history], color=COLOURS[0])
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
        speed.set_ylim(bottom=0)
        if kept_epoch is not None:
            score.plot(kept_epoch, scores[kept_epoch - 1], "o", color=COLOURS[1])
            score.set_title(f"{scores[kept_epoch - 1]:.3f} in epoch {kept_epoch}, which was kept", fontsize=SIZE)
        style_axes(loss, "epoch", "loss")
        style_axes(score, "epoch", f"validation {'AUC' if metric == 'auc' else metric}", score.get_title())
        style_axes(rate, "epoch", "learning rate")
        style_axes(speed, "epoch", "images per second")
        for axes in (loss, score, rate, speed):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def roc_figure(
    models: Sequence[CalibratedPredictions],
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
    names = output_names(models[0].task, drawn_labels(labels))
    caption = f"Band: {confidence:.0%} at each point, {bootstrap} resamples of patients."
    caption += "" if models[0].operating_point.threshold is None else "\nDot: operating point, chosen on validation."
    with figure_page(path, len(names), title, caption=caption) as panels:
        for output, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for colour, line, scored in _styled(models):
                curve = roc_curve(scored, output, bootstrap=bootstrap, confidence=confidence, seed=seed)
                if curve is None:
                    axes.plot([], [], label=f"{scored.predictions.model}: one class only")
                    continue
                label = f"{scored.predictions.model}: AUC {format_estimate(curve.auc)}"
                axes.plot(curve.false_positive_rate, curve.sensitivity, color=colour, linestyle=line, label=label)
                axes.fill_between(curve.grid, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
                if curve.point is not None:
                    axes.plot(*curve.point, "o", color=colour, markeredgecolor="white")
            _unit_square(axes)
            _enlarge_corner(axes)
            _, positive = models[0].of_output(output)
            found = f"{name}: {int(positive.sum())} of {len(positive)} cases"
            style_axes(axes, "1 - specificity", "sensitivity", found)
            legend(axes, "lower right")


def _enlarge_corner(axes: Axes) -> None:
    """The upper left corner once more, twice as large, where good models are told apart: if all curves pass there."""
    curves = [[np.asarray(values, dtype=float) for values in line.get_data()] for line in axes.lines]
    heights = [np.interp(0.28, across, up) for across, up in curves if len(across) > 2]  # not points and diagonal
    if not heights or min(heights) < 0.8:
        return
    corner = axes.inset_axes((0.4, 0.28, 0.56, 0.4), xlim=(-0.005, 0.28), ylim=(0.8, 1.005))
    for line in axes.lines:
        shape = {"color": line.get_color(), "linestyle": line.get_linestyle(), "linewidth": line.get_linewidth()}
        corner.plot(*line.get_data(), marker=line.get_marker(), markeredgecolor="white", **shape)  # type: ignore[arg-type]
    corner.tick_params(labelsize=SIZE)
    corner.grid(color="#dddddd", linewidth=0.6)
    axes.indicate_inset_zoom(corner, edgecolor=GREY)


def reliability_figure(
    models: Sequence[CalibratedPredictions],
    labels: Sequence[str],
    path: Path,
    *,
    confidence: float = 0.95,
    title: str = "Reliability",
) -> None:
    """Observed frequency against mean probability with intervals, and how the probabilities spread beneath.

    Each output is drawn twice where a model was calibrated: before, and as it is used.
    """
    before = [replace(one, calibration=UNCALIBRATED) for one in models]
    calibrated = any(one.calibration != UNCALIBRATED for one in models)
    stages = [("before calibration", before), ("calibrated", models)] if calibrated else [("", models)]
    names = output_names(models[0].task, drawn_labels(labels))
    panes = [(name, said, output, stage) for output, name in enumerate(names) for said, stage in stages]
    caption = f"Bars: {confidence:.0%} intervals (Wilson). Beneath: how the probabilities spread."
    with figure_page(path, len(panes), title, caption=caption, columns=2 if calibrated else None) as panels:
        for axes, (name, said, output, stage) in zip(panels, panes, strict=True):
            for colour, line, scored in _styled(stage):
                known, positive = scored.of_output(output)
                if len(positive) == 0:
                    continue
                probability = known.probability[:, output]
                bins = reliability(probability, positive, confidence)
                spread = np.stack([bins.observed - bins.low, bins.high - bins.observed])
                drawn = axes.errorbar(
                    bins.predicted, bins.observed, spread, color=colour, marker="o", markersize=4, elinewidth=0.8
                )
                drawn[0].set(linestyle=line, label=f"{scored.predictions.model}: {_errors(scored)}")
                counts, edges = np.histogram(probability, bins=25, range=(0, 1))
                heights = 0.8 * STRIP * counts / counts.max() - STRIP
                axes.stairs(heights, edges, baseline=-STRIP, color=colour, linestyle=line)
            _unit_square(axes, bottom=-STRIP)
            style_axes(axes, "predicted probability", "observed frequency", f"{name}, {said}" if said else name)
            legend(axes, "upper left")


def _errors(scored: CalibratedPredictions) -> str:
    """Both calibration errors of all outputs together."""
    answers = (scored.probability, scored.predictions.labels, scored.task)
    return f"ECE {expected_calibration_error(*answers):.3f}, ACE {adaptive_calibration_error(*answers):.3f}"


def confusion_figure(
    models: Sequence[CalibratedPredictions], labels: Sequence[str], path: Path, *, title: str = "Confusion"
) -> None:
    """Cases by truth (rows) and decision (columns), coloured by the share of their row; a panel a model (and label)."""
    tables = [table for scored in models for table in _confusions(scored, drawn_labels(labels))]
    each = len(tables) // len(models)
    with figure_page(path, len(tables), title, columns=each if each > 1 else 2) as panels:
        for axes, (name, words, counts) in zip(panels, tables, strict=True):
            share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            size = SIZE if len(words) <= 5 else 6
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (row, column), count in np.ndenumerate(counts):
                ink = "white" if share[row, column] > 0.5 else "black"
                text = f"{count}\n{share[row, column]:.0%}"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
            style_axes(axes, "decided", "truth", name)
            axes.grid(False)
            axes.set_xticks(range(len(words)), words, fontsize=size, rotation=0 if len(words) <= 3 else 30)
            axes.set_yticks(range(len(words)), words, fontsize=size, rotation=90 if len(words) <= 3 else 0, va="center")


def _confusions(
    scored: CalibratedPredictions, labels: Sequence[str]
) -> Iterator[tuple[str, Sequence[str], NDArray[np.int64]]]:
    """Title, class names and counts (C, C) of each table that a model's decisions make."""
    model = scored.predictions.model
    if is_exclusive(scored.task):
        yield model, labels, scored.target.astype(int).T @ scored.decided.astype(int)
        return
    for output, name in enumerate(output_names(scored.task, labels)):
        known, positive = scored.of_output(output)
        pairs = (positive, known.decided[:, output])
        rows, columns = (np.stack([~one, one]).astype(int) for one in pairs)
        if has_one_output(scored.task):
            yield model, labels, rows @ columns.T
        else:
            yield f"{model}, {name}", ("no", "yes"), rows @ columns.T
