"""A prediction table evaluated again: with its study's settings, on images or patients, from the table alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medopt.config import Evaluation
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, DataError
from medopt.core.records import Predictions, Split, Task
from medopt.evaluation.evaluate import beyond_figures, calibration_told, figures_of
from medopt.evaluation.patients import by_patient
from medopt.evaluation.predictions_io import read_labels, read_predictions
from medopt.evaluation.validation_fit import fit_on
from medopt.figures.decisions import (
    coverage_risk_figure,
    decision_curve_figure,
    precision_recall_figure,
    subgroup_figure,
)
from medopt.figures.performance import confusion_figure, reliability_figure, roc_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import Calibration
from medopt.metrics.thresholds import OperatingPoint

TABLE, STUDY, METRICS = "predictions.csv", "study.yaml", "metrics.json"


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A prediction table with all that its figures depend on."""

    path: Path
    tables: Sequence[Predictions]
    task: Task
    labels: Sequence[str]
    wanted: Evaluation
    seed: int


def open_table(path: Path, study_file: Path | None = None, changes: Mapping[str, Any] | None = None) -> OpenTable:
    """Read a prediction table, or that of a run folder, and the settings that belong to it.

    `changes` are settings of `evaluation` that differ. Raises DataError for the table, ConfigError for the settings.
    """
    path = path / TABLE if path.is_dir() else path
    task, labels = read_labels(path)
    beside = path.parent / STUDY
    if study_file is None and not beside.is_file():
        wanted, seed = Evaluation(), 0
    else:
        study = load_study(study_file or beside)
        wanted, seed = study.evaluation, study.seed
        if study.data.task != task or (task != "binary" and list(study.data.labels) != list(labels)):
            raise ConfigError(
                f"{study_file or beside} is a {study.data.task} study of {', '.join(study.data.labels)}, and {path} "
                f"holds {task} predictions of {', '.join(labels)}. Give the study that it belongs to with --study."
            )
        labels = study.data.labels
    try:
        wanted = Evaluation.model_validate(wanted.model_dump() | dict(changes or {}))
    except ValueError as error:
        raise ConfigError(f"The settings cannot be used: {error.errors()[0]['msg']}.") from None  # type: ignore[attr-defined]
    if wanted.prevalence is not None and task != "binary":
        raise ConfigError(f"--prevalence is the share of one finding; {path} holds {task} predictions.")
    return OpenTable(path, read_predictions(path), task, labels, wanted, seed)


def evaluate_table(
    table: OpenTable, split: Split, models: Sequence[str] | None = None, patients: bool = False
) -> dict[str, Any]:
    """Every figure of one split, by model. Raises DataError where the table has no such rows or no such model."""
    known = [one.model for one in table.tables]
    if unknown := [name for name in models or () if name not in known]:
        raise DataError(f"{table.path} has no model {', '.join(unknown)}; it has {', '.join(known)}.")
    found = {}
    for one in table.tables:
        if models and one.model not in models:
            continue
        scored, notes = scored_of(table, one, patients)
        part = scored.where(scored.predictions.split == split)
        if len(part.predictions) == 0:
            raise DataError(f"{table.path} has no rows of the {split} split for {one.model}. Choose another: --split.")
        found[one.model] = {
            "figures": figures_of(part, table.wanted, table.seed),
            "calibration": calibration_told(part),
            "operating_point": part.operating_point.as_dict(),
            "decided": _decided(part),
            "notes": notes,
        } | beyond_figures(part, table.labels, table.wanted, table.seed)
    return {
        "table": table.path.name,
        "split": split,
        "level": "patient" if patients else "image",
        "aggregate": f"{table.wanted.aggregate} of their images' logits" if patients else None,
        "confidence": table.wanted.confidence,
        "models": found,
    }


def scored_of(table: OpenTable, one: Predictions, patients: bool = False) -> tuple[CalibratedPredictions, list[str]]:
    """A model's rows with calibration and operating point, and what is to be said of where these come from."""
    if patients:
        one = by_patient(one, table.task, table.wanted.aggregate)
    validation = one.of_split("val")
    if len(validation):
        return replace(fit_on(validation, table.wanted, table.task), predictions=one), []
    beside = table.path.parent / METRICS
    try:
        facts = json.loads(beside.read_text(encoding="utf-8"))
        point = OperatingPoint.from_dict(facts["operating_point"][one.model])
        calibration = Calibration.from_dict(facts["calibration"][one.model])
    except (OSError, ValueError, KeyError, TypeError):
        said = "no validation rows: probabilities are those of the network, and the threshold is 0.5"
        half = None if table.task == "multiclass" else 0.5
        threshold = (0.5,) * one.logits.shape[1] if table.task == "multilabel" else half
        return CalibratedPredictions(one, table.task, operating_point=OperatingPoint(threshold, "fixed")), [said]
    said = f"no validation rows: calibration and operating point are those of {METRICS}"
    return CalibratedPredictions(one, table.task, calibration, point), [said]


def _decided(scored: CalibratedPredictions) -> str:
    """How cases were decided, in a few words."""
    threshold = scored.operating_point.threshold
    if threshold is None:
        return f"most probable, {scored.calibration.told()}"
    cuts = threshold if isinstance(threshold, tuple) else (threshold,)
    return (
        f"from {', '.join(f'{cut:.3f}' for cut in cuts)} ({scored.operating_point.rule}), {scored.calibration.told()}"
    )


def draw(table: OpenTable, told: Mapping[str, Any], folder: Path) -> None:
    """The pictures of what `evaluate_table` told."""
    patients = told["level"] == "patient"
    models = [scored_of(table, one, patients)[0] for one in table.tables if one.model in told["models"]]
    models = [one.where(one.predictions.split == told["split"]) for one in models]
    labels, wanted, split = table.labels, table.wanted, told["split"]
    options = {"bootstrap": wanted.bootstrap, "confidence": wanted.confidence, "seed": table.seed}
    roc_figure(models, labels, folder / "roc.png", **options, title=f"ROC, {split} split")  # type: ignore[arg-type]
    reliability_figure(models, labels, folder / "reliability.png", confidence=wanted.confidence)
    confusion_figure(models, labels, folder / "confusion.png", title=f"Confusion, {split} split")
    draw_decisions(models, labels, told["models"], folder, wanted.confidence, split)


def draw_decisions(
    models: Sequence[CalibratedPredictions],
    labels: Sequence[str],
    told: Mapping[str, Any],
    folder: Path,
    confidence: float,
    split: str,
) -> None:
    """Precision and recall, net benefit, coverage and risk, and the subgroups of the last model."""
    where = f"{split} split"
    precision_recall_figure(models, labels, folder / "precision_recall.png", title=f"Precision and recall, {where}")
    decision_curve_figure(
        {name: one["net_benefit"] for name, one in told.items()},
        folder / "decision_curve.png",
        confidence=confidence,
        title=f"Net benefit, {where}",
    )
    coverage_risk_figure(
        {name: one["selective"] for name, one in told.items()},
        folder / "coverage_risk.png",
        confidence=confidence,
        title=f"Coverage and risk, {where}",
    )
    name, last = list(told.items())[-1]
    subgroup_figure(
        last["subgroups"],
        last["figures"],
        folder / "subgroups.png",
        confidence=confidence,
        title=f"Sites and subgroups, {where}, {name}",
    )
