"""The stage `baseline`: linear models that training has to beat, of thumbnails, the start's features and covariates.

Before them it looks for shortcuts: what tells the label without the image.

The model of the start's features is where the training of a start begins: a network with a linear layer at its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from medopt.config import Study
from medopt.core.files import file_digest
from medopt.core.records import SPLITS, Estimate, Predictions
from medopt.data.images_seen import refuse_seen
from medopt.evaluation.analysis_results import BaselineResult, BaselinesResult, ShortcutsResult, StartRecord
from medopt.evaluation.comparison import area_difference
from medopt.evaluation.predictions_io import write_predictions
from medopt.evaluation.shortcuts import read_shortcuts, shortcut_findings, shortcut_lines
from medopt.manifest.findings import refuse_findings
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import UNCALIBRATED
from medopt.metrics.delong import auc_with_covariance, mean_auc
from medopt.pipeline.linear_baselines import (
    LinearBaseline,
    Splits,
    covariates_baseline,
    mean_baseline,
    start_baseline,
    thumbnail_baseline,
)
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.pipeline.start import start_file, teacher_studies
from medopt.training.checkpoint import write_tensors
from medopt.training.loop import TEACHERS, architecture_note

BASELINES, IMAGE = "baselines.csv", "image"
START, TEACHER = "start.safetensors", "teacher.safetensors"


@dataclass(frozen=True, slots=True)
class FittedBaseline:
    """One linear model: what it reads, how many features, its penalty's inverse, and its AUC on validation."""

    reads: str
    features: int
    strength: float
    validation_auc: float

    @classmethod
    def of(cls, baseline: LinearBaseline) -> FittedBaseline:
        """What is kept of a fitted model."""
        count = baseline.model.weight.shape[1]
        return cls(baseline.reads, count, baseline.model.strength, baseline.validation_auc)


@dataclass(frozen=True, slots=True)
class Baselines:
    """The linear models by name, thumbnail, covariates, start; and the start, where there is one.

    `weights` is the SHA-256 of the network of the start with its linear layer, "" from scratch; `teacher` that of the
    teacher's, "" without one.
    """

    models: dict[str, FittedBaseline]
    start: StartRecord | None
    weights: str
    teacher: str = ""
    shortcuts: ShortcutsResult | None = None


class BaselineStage(Stage[Baselines]):
    """Fit them on training images, choose their penalty on validation, and predict validation and test."""

    name = "baseline"
    revision = 2  # shortcuts
    inputs = ("prepare",)
    result_type = Baselines

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The predictions of the linear models, and the weights that training begins with."""
        return [folder.path / BASELINES, start_weights(folder), teacher_weights(folder)]

    def run(self, context: RunContext) -> Baselines:
        """Raises ConfigError where the start does not fill the study's network."""
        study, splits, folder = context.study, context.result(PrepareStage).splits, context.folder
        shortcuts = _shortcuts(context)
        fitted, record = [thumbnail_baseline(study, splits, SPLITS)], None
        if study.data.covariates:
            fitted.append(covariates_baseline(study, splits, SPLITS))
        for old in (start_weights(folder), teacher_weights(folder)):
            old.unlink(missing_ok=True)
        if study.model.has_start:
            _refuse_seen(context, study.model.start)
            linear, network, record = start_baseline(study, splits, SPLITS, context.reporter, context.runs)
            notes = {"start": record.digest, **architecture_note(study)}
            write_tensors(start_weights(folder), network.state_dict(), notes)
            fitted.append(linear)
        if study.training.teachers:
            fitted.append(_teacher(context, splits))
        tables = [one.predictions(study, splits, SPLITS[1:]) for one in fitted]
        plain = dict.fromkeys((one.name for one in fitted), UNCALIBRATED)
        write_predictions(folder.path / BASELINES, tables, study.data.labels, study.data.task, plain)
        for one in fitted:
            score = "R2" if study.data.task == "regression" else "AUC"
            context.say(f"a linear model on {one.reads}: validation {score} {one.validation_auc:.4f}")
        digest = file_digest(start_weights(folder)) if record else ""
        teacher = file_digest(teacher_weights(folder)) if study.training.teachers else ""
        return Baselines({one.name: FittedBaseline.of(one) for one in fitted}, record, digest, teacher, shortcuts)


def _shortcuts(context: RunContext) -> ShortcutsResult:
    """What the images tell of the label without being looked at; raises DataError where the study refuses that."""
    found = read_shortcuts(context.cases.cases, context.cases.root, context.study, context.reporter)
    for line in shortcut_lines(found):
        context.say(line)
    refuse_findings(shortcut_findings(found, context.study), context.study)
    return found


def _refuse_seen(context: RunContext, start: str) -> None:
    """Raise DataError where the file of a start says that it has seen one of the study's test images."""
    if path := start_file(start, context.runs):
        cases = context.cases
        test = [case for case in cases.cases if case.split == "test"]
        refuse_seen(path, test, cases.root, context.reporter)


def _teacher(context: RunContext, splits: Splits) -> LinearBaseline:
    """The teachers: each start with a linear layer, whose networks are kept for the training; their mean answers."""
    models, records, fitted = [], [], []
    tensors: dict[str, Tensor] = {}
    for number, study in enumerate(teacher_studies(context.study, context.runs)):
        _refuse_seen(context, study.model.start)
        linear, network, record = start_baseline(study, splits, SPLITS, context.reporter, context.runs)
        models.append(study.model.model_dump(mode="json"))
        tensors |= {f"{number}.{name}": value for name, value in network.state_dict().items()}
        records.append(record)
        fitted.append(linear)
    notes = {"start": [record.digest for record in records], TEACHERS: models}
    write_tensors(teacher_weights(context.folder), tensors, notes)
    linear = fitted[0] if len(fitted) == 1 else mean_baseline(context.study, splits, fitted)
    whose = "the teacher's" if len(fitted) == 1 else f"{len(fitted)} teachers'"
    names = ", ".join(record.name for record in records)
    return replace(linear, name="teacher", reads=f"{whose} features ({names})")


def teacher_weights(folder: RunFolder) -> Path:
    """The network of the teacher."""
    return folder.best_weights.with_name(TEACHER)


def start_weights(folder: RunFolder) -> Path:
    """The network of the start with a linear layer at its end."""
    return folder.best_weights.with_name(START)


def baselines_result(
    study: Study,
    network: Predictions,
    linear: Mapping[str, Predictions],
    fitted: Baselines,
    image: Predictions | None = None,
) -> BaselinesResult:
    """The linear models on the test split, each beside the trained network: paired on the same patients.

    `image` are the predictions of a network with covariates from its image alone.
    """
    task, confidence = study.data.task, study.evaluation.confidence
    trained = CalibratedPredictions(network, task)
    models = {}
    for name, table in linear.items():
        one = fitted.models[name]
        models[name] = BaselineResult(
            reads=one.reads,
            features=one.features,
            strength=one.strength,
            validation_auc=one.validation_auc if np.isfinite(one.validation_auc) else None,
            **_beside(CalibratedPredictions(table, task), trained, confidence),
        )
    if image is not None:
        compared = _beside(CalibratedPredictions(image, task), trained, confidence)
        models[IMAGE] = BaselineResult(
            reads="the same network without its covariates", features=0, strength=None, validation_auc=None, **compared
        )
    return BaselinesResult(models=models, start=fitted.start, shortcuts=fitted.shortcuts)


def _beside(baseline: CalibratedPredictions, trained: CalibratedPredictions, confidence: float) -> dict[str, Estimate]:
    """A model's AUC, and by how much the trained network's is higher."""
    own = baseline.judged
    auc = mean_auc(auc_with_covariance(own.score, own.truth, own.patients), len(own.predictions), confidence)
    return {"auc": auc, "gain": area_difference(own, trained, confidence)[0]}
