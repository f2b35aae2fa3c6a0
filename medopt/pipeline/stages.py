"""What each stage does with the run so far. A stage reads files of earlier ones, writes its own, and returns facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.compression.export import export_onnx
from medopt.compression.quantize import choose_calibration, quantize_int8, refuse_overlap
from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.records import KINDS, SPLITS, Predictions, Split
from medopt.core.reporter import Reporter
from medopt.data.cache import PreparedImages
from medopt.inference.cpu_features import unfit
from medopt.inference.engines import load_batch, open_engine
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.calibration import refuse_few
from medopt.metrics.weighted import auc
from medopt.pipeline.judge import FLOAT, NARROW, QUANTIZED, GateResult
from medopt.pipeline.predict import labels_of, predict, predictions_of, subgroups
from medopt.pipeline.run_folder import RunFolder
from medopt.training.job import PreparedSplit
from medopt.training.loop import load_best

Sets = Mapping[Split, PreparedSplit]


def refuse_early(study: Study, sets: Sets) -> None:
    """Raise ConfigError before training where what comes after it could not be done.

    Validation is too small for the calibration that is asked for, or this machine cannot judge what the release is for.
    """
    if reason := unfit(study.compression.profile):
        raise ConfigError(
            f"compression.profile {study.compression.profile} cannot be judged on this machine: {reason}. Run it where "
            "the release will run, or take --set compression.profile=cpu."
        )
    if study.evaluation.calibration == "isotonic":
        refuse_few(labels_of(study, sets["val"]), study.data.outputs, study.data.task)


def validation_score(study: Study, sets: Sets) -> Any:
    """The function that training judges an epoch by: AUC on validation, NaN where it is not defined."""

    def score(logits: NDArray[np.float64], _targets: NDArray[np.float64]) -> float:
        blank = predictions_of(study, "float", "val", sets["val"], logits)
        scored = CalibratedPredictions(blank, study.data.task)
        return float(auc(scored.score, scored.target)[0]) if np.isfinite(logits).all() else float("nan")

    return score


def compress(
    study: Study, sets: Sets, weights: Path, folder: RunFolder, reporter: Reporter, pruned: Path | None = None
) -> dict[str, Any]:
    """Export the best weights to float ONNX, and quantize that to int8, calibrated on training images only.

    Where there are `pruned` weights, int8 is made of these, by way of models/pruned.onnx.
    """
    files = calibration_files(study, sets)
    source, opset = folder.models / FLOAT, study.compression.opset
    parity = export_onnx(load_best(study, weights), load_batch(files[:8]), source, opset)
    if pruned is not None:
        source = folder.models / NARROW
        parity = max(parity, export_onnx(load_best(study, pruned), load_batch(files[:8]), source, opset))
    quantize_int8(source, folder.models / QUANTIZED, PreparedImages(files), study.compression.profile)
    size = " x ".join(map(str, study.prepare.size))
    reporter.message(
        f"exported (largest logit difference {parity:.1e}), int8 for {study.compression.profile} calibrated on "
        f"{len(files)} training images of {size}"
    )
    return {"parity": parity, "calibrated_on": [file.name for file in files]}


def calibration_files(study: Study, sets: Sets) -> list[Path]:
    """The prepared training images that int8 is calibrated on: at random, none that validation or test has, too."""
    files, others = sets["train"].files, [file for split in SPLITS[1:] for file in sets[split].files]
    chosen = [
        files[index] for index in choose_calibration(files, others, study.compression.calibration_images, study.seed)
    ]
    refuse_overlap(chosen, others)
    return chosen


def predict_splits(study: Study, sets: Sets, folder: RunFolder, judged: GateResult) -> list[Predictions]:
    """Validation and test predictions of both models, each in the engine that will serve it."""
    tables, parts = [], [sets[split] for split in SPLITS[1:]]
    groups = subgroups(
        PreparedSplit([c for part in parts for c in part.cases], [f for part in parts for f in part.files])
    )
    for kind in KINDS:
        engine = open_engine(judged.engines[kind][0], folder.models / f"{kind}.onnx", study.compression.cores)
        predicted = [predict(study, kind, split, sets[split], engine) for split in SPLITS[1:]]
        tables.append(replace(Predictions.joined(kind, predicted), subgroups=groups))
    return tables
