"""A prediction table evaluated again: with its study's settings, on images or patients, from the table alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medopt.config import Evaluation, Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, DataError
from medopt.core.number_scale import NumberScale
from medopt.core.records import KINDS, Predictions, Split, Task, has_one_output, is_exclusive
from medopt.core.result import Result
from medopt.evaluation.evaluate import evaluate_model, resampling
from medopt.evaluation.patients import by_patient
from medopt.evaluation.predictions_io import read_labels, read_predictions
from medopt.evaluation.run_metrics import METRICS_FILE, ModelResult, RunMetrics
from medopt.evaluation.validation_fit import fit_on, margin_of
from medopt.figures.decisions import (
    coverage_risk_figure,
    decision_curve_figure,
    precision_recall_figure,
    subgroup_figure,
)
from medopt.figures.performance import confusion_figure, reliability_figure, roc_figure
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.thresholds import MEDIAN, OperatingPoint

NO_VALIDATION = "no validation rows: probabilities are those of the network, and the threshold is 0.5"
TABLE, STUDY = "predictions.csv", "study.yaml"


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A prediction table with all that its figures depend on."""

    path: Path
    tables: Sequence[Predictions]
    task: Task
    labels: Sequence[str]
    settings: Evaluation
    seed: int
    shift: tuple[float, ...] = ()
    """What class weights and balanced sampling added to each output's logits, as the run beside the table knows."""
    scale: NumberScale | None = None
    """Of a regression study: how its outputs become numbers."""


class EvaluatedModel(ModelResult):
    """The results of one model of a table, how its cases were decided, and notes on where that comes from."""

    operating_point: OperatingPoint
    decided: str
    notes: tuple[str, ...]


class EvaluatedTable(Result):
    """Every figure of one split of a prediction table, by model; `aggregate` says how images became patients."""

    table: str
    split: Split
    level: Literal["patient", "image"]
    aggregate: str | None
    confidence: float
    models: dict[str, EvaluatedModel]


def open_table(path: Path, study_file: Path | None = None, changes: Mapping[str, Any] | None = None) -> OpenTable:
    """Read a prediction table, or that of a run folder, and the settings that belong to it.

    `changes` are settings of `evaluation` that differ. Raises DataError for the table, ConfigError for the settings.
    """
    path = path / TABLE if path.is_dir() else path
    task, labels = read_labels(path)
    beside = path.parent / STUDY
    if study_file is None and not beside.is_file():
        settings, seed, scale = Evaluation(), 0, None
        if task == "regression":
            raise ConfigError(f"{path} holds numbers, whose scale is in the study file: give it with --study.")
    else:
        study = load_study(study_file or beside)
        settings, seed, scale = study.evaluation, study.seed, _scale(study, study_file or beside)
        if study.data.task != task or (not has_one_output(task) and list(study.data.labels) != list(labels)):
            raise ConfigError(
                f"{study_file or beside} is a {study.data.task} study of {', '.join(study.data.labels)}, and {path} "
                f"holds {task} predictions of {', '.join(labels)}. Give the study that it belongs to with --study."
            )
        labels = study.data.labels
    try:
        settings = Evaluation.model_validate(settings.model_dump() | dict(changes or {}))
    except ValueError as error:
        raise ConfigError(f"The settings cannot be used: {error.errors()[0]['msg']}.") from None  # type: ignore[attr-defined]
    if settings.prevalence is not None and not has_one_output(task):
        raise ConfigError(f"--prevalence is the share of one finding; {path} holds {task} predictions.")
    metrics = path.parent / METRICS_FILE
    is_runs_own = path.name == TABLE and metrics.is_file()  # other tables hold calibrated logits, or a group's
    shift = RunMetrics.read(metrics).prior_shift if is_runs_own else ()
    return OpenTable(path, read_predictions(path), task, labels, settings, seed, shift, scale)


def _scale(study: Study, path: Path) -> NumberScale | None:
    """That of a regression study; raises ConfigError where its run has not filled it in."""
    try:
        return study.number_scale
    except ValueError as error:
        raise ConfigError(f"{path}: {error}. Give the study.yaml of the run's folder with --study.") from None


def evaluate_table(
    table: OpenTable, split: Split, models: Sequence[str] | None = None, patients: bool = False
) -> EvaluatedTable:
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
        result = evaluate_model(part, table.labels, table.settings, table.seed)
        found[one.model] = EvaluatedModel(
            **dict(result), operating_point=part.operating_point, decided=_decided(part), notes=tuple(notes)
        )
    return EvaluatedTable(
        table=table.path.name,
        split=split,
        level="patient" if patients else "image",
        aggregate=f"{table.settings.aggregate} of their images' logits" if patients else None,
        confidence=table.settings.confidence,
        models=found,
    )


def scored_of(
    table: OpenTable, predictions: Predictions, patients: bool = False
) -> tuple[CalibratedPredictions, list[str]]:
    """A model's rows with calibration and operating point, and what is to be said of where these come from."""
    if patients:
        predictions = by_patient(predictions, table.task, table.settings.aggregate)
    validation = predictions.of_split("val")
    if len(validation):
        fitted = fit_on(validation, table.settings, table.task, shift=table.shift)
        scale, coverage = table.scale, table.settings.confidence
        margin = None if scale is None else margin_of(validation, scale, coverage)
        return replace(fitted, predictions=predictions, scale=scale, margin=margin), []
    beside = table.path.parent / METRICS_FILE
    kind = next((kind for kind in KINDS if kind == predictions.model), None)
    if kind and beside.is_file():
        metrics = RunMetrics.read(beside)
        calibration, point = metrics.calibration[kind].calibration, metrics.operating_point[kind]
        note = f"no validation rows: calibration and operating point are those of {METRICS_FILE}"
        margin = metrics.margin[kind] if metrics.margin else None
        return CalibratedPredictions(predictions, table.task, calibration, point, table.scale, margin), [note]
    if table.task == "ordinal":
        return CalibratedPredictions(predictions, table.task, operating_point=OperatingPoint(None, MEDIAN)), [
            NO_VALIDATION
        ]
    half = None if is_exclusive(table.task) else 0.5
    threshold = (0.5,) * predictions.logits.shape[1] if table.task == "multilabel" else half
    point = OperatingPoint(threshold, "fixed")
    return CalibratedPredictions(predictions, table.task, operating_point=point, scale=table.scale), [NO_VALIDATION]


def _decided(scored: CalibratedPredictions) -> str:
    """How cases were decided, in a few words."""
    point = scored.operating_point
    if point.threshold is None:
        return f"{'the median grade' if point.rule == MEDIAN else 'most probable'}, {scored.calibration}"
    return f"from {', '.join(f'{cut:.3f}' for cut in point.thresholds)} ({point.rule}), {scored.calibration}"


def draw(table: OpenTable, evaluated: EvaluatedTable, folder: Path) -> None:
    """The pictures of what `evaluate_table` gave."""
    patients = evaluated.level == "patient"
    models = [scored_of(table, one, patients)[0] for one in table.tables if one.model in evaluated.models]
    models = [one.where(one.predictions.split == evaluated.split) for one in models]
    labels, split, confidence = table.labels, evaluated.split, evaluated.confidence
    options = resampling(table.settings, table.seed)
    roc_figure(models, labels, folder / "roc.png", **options, title=f"ROC, {split} split")
    reliability_figure(models, labels, folder / "reliability.png", confidence=confidence)
    confusion_figure(models, labels, folder / "confusion.png", title=f"Confusion, {split} split")
    draw_decisions(models, labels, evaluated.models, folder, confidence, split)


def draw_decisions(
    models: Sequence[CalibratedPredictions],
    labels: Sequence[str],
    results: Mapping[str, ModelResult],
    folder: Path,
    confidence: float,
    split: str,
) -> None:
    """Precision and recall, net benefit, coverage and risk, and the subgroups of the last model."""
    where = f"{split} split"
    precision_recall_figure(models, labels, folder / "precision_recall.png", title=f"Precision and recall, {where}")
    decision_curve_figure(
        {name: one.net_benefit for name, one in results.items()},
        folder / "decision_curve.png",
        confidence=confidence,
        title=f"Net benefit, {where}",
    )
    coverage_risk_figure(
        {name: one.selective for name, one in results.items()},
        folder / "coverage_risk.png",
        confidence=confidence,
        title=f"Coverage and risk, {where}",
    )
    name, last = list(results.items())[-1]
    subgroup_figure(
        last.subgroups,
        last.figures,
        folder / "subgroups.png",
        confidence=confidence,
        title=f"Sites and subgroups, {where}, {name}",
    )
