"""Linear models that training has to beat: on thumbnails, on the features of the study's start, on the covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from medopt.config import Study
from medopt.core.records import Predictions, Split
from medopt.core.reporter import Reporter
from medopt.evaluation.analysis_results import StartRecord
from medopt.manifest.covariates import encoder_of
from medopt.metrics.calibration import truth
from medopt.models import build_model
from medopt.models.starts.adapt import fit_start, table_of
from medopt.pipeline.predict import labels_of, predictions_of, validation_score
from medopt.pipeline.start import open_study_start
from medopt.training.covariates import fit_table
from medopt.training.features import pooled_features, put_head, thumbnail_features
from medopt.training.hardware import open_fabric
from medopt.training.job import PreparedSplit
from medopt.training.linear_model import LinearFit, LinearModel, choose_strength

ROWS = 4000
"""Rows that a linear model is fitted on at most; with more training images, so many of them drawn at random."""
Splits = Mapping[Split, PreparedSplit]
Features = dict[Split, NDArray[Any]]
"""Of each split (N, V, F): of an image as it is, and of its mirror where V is 2."""


@dataclass(frozen=True, slots=True)
class LinearBaseline:
    """A fitted linear model: what it reads, the features of each split, and its AUC (of a number R2) on validation."""

    name: str
    reads: str
    model: LinearModel
    features: Features
    validation_auc: float

    def predictions(self, study: Study, splits: Splits, selection: Sequence[Split]) -> Predictions:
        """Its predictions of some splits, each image as it is."""
        parts = [
            predictions_of(study, self.name, split, splits[split], self.model.logits(_plain(self.features, split)))
            for split in selection
        ]
        return Predictions.joined(self.name, parts)


def thumbnail_baseline(study: Study, splits: Splits, selection: Sequence[Split]) -> LinearBaseline:
    """On the gray values of small images."""
    chosen = _chosen(study, splits)
    features: Features = {split: thumbnail_features(chosen[split].files)[:, None] for split in selection}
    return _fitted(study, chosen, features, "thumbnail", "thumbnails")


def covariates_baseline(study: Study, splits: Splits, selection: Sequence[Split]) -> LinearBaseline:
    """On the covariates alone, without the image."""
    linear = fit_table(study, splits["train"].cases, splits["val"].cases)
    features: Features = {split: _table(study, splits[split])[:, None] for split in selection}
    logits, val = linear.logits(_plain(features, "val")), splits["val"]
    auc = validation_score(study, val)(logits, _targets(study, val))
    return LinearBaseline("covariates", "the covariates alone", linear, features, auc)


def start_baseline(
    study: Study, splits: Splits, selection: Sequence[Split], reporter: Reporter, runs: Path
) -> tuple[LinearBaseline, nn.Module, StartRecord]:
    """On the features of the study's start; with the network whose last layer it is, and where the start comes from.

    Raises ConfigError where the start does not fill the study's network.
    """
    opened, network = open_study_start(study, runs=runs), build_model(study)
    if opened.note:
        reporter.message(opened.note)
    loaded = fit_start(opened.start, network, opened.name, partial=study.model.partial)
    network.load_state_dict(loaded.state)
    device = open_fabric(study.training).device
    chosen = _chosen(study, splits)
    advance = reporter.progress(sum(len(chosen[split].files) for split in selection), "features of the start")
    features: Features = {}
    for split in selection:
        files = chosen[split].files
        mirrored = split == "train" and "left_right" in study.augment.flip and 2 * len(files) <= ROWS
        features[split] = pooled_features(network, files, device, mirrored=mirrored, advance=advance)
    reads = "the start's features"
    if study.data.covariates:
        features, reads = _beside(study, chosen, features), f"{reads} and the covariates"
    baseline = _fitted(study, chosen, features, "start", reads)
    put_head(network.to("cpu"), baseline.model)
    entry = opened.entry
    record = StartRecord(
        name=opened.name if entry else Path(opened.name).name,
        digest=opened.digest,
        licence=entry.licence if entry else "not stated",
        trained_on=entry.trained_on if entry else "not stated",
        tensors=dict(table_of(loaded)),
        share=loaded.share,
        note=opened.note,
    )
    return baseline, network, record


def mean_baseline(study: Study, splits: Splits, fitted: Sequence[LinearBaseline]) -> LinearBaseline:
    """The mean of the logits of several linear models: one that reads all their features."""
    weight = np.concatenate([one.model.weight for one in fitted], axis=1) / len(fitted)
    bias = np.mean([one.model.bias for one in fitted], axis=0)
    model = LinearModel(weight, bias, min(one.model.strength for one in fitted))
    features: Features = {
        split: np.concatenate([one.features[split][:, :1] for one in fitted], axis=2) for split in fitted[0].features
    }
    val = splits["val"]
    auc = validation_score(study, val)(model.logits(_plain(features, "val")), _targets(study, val))
    return LinearBaseline("teacher", "", model, features, auc)


def _table(study: Study, part: PreparedSplit) -> NDArray[np.float64]:
    """The encoded covariates (N, F) of a split."""
    encoder = encoder_of(study)
    assert encoder is not None
    return encoder.table(part.cases)


def _beside(study: Study, splits: Splits, features: Features) -> Features:
    """The features with the encoded covariates behind them, the same for each view of an image."""
    found: Features = {}
    for split, values in features.items():
        table = np.repeat(_table(study, splits[split])[:, None], values.shape[1], axis=1)
        found[split] = np.concatenate([values, table], axis=2)
    return found


def _chosen(study: Study, splits: Splits) -> Splits:
    """The splits with at most ROWS training images: no others are looked at."""
    train = splits["train"]
    if len(train.files) <= ROWS:
        return splits
    rows = np.sort(np.random.default_rng(study.seed).choice(len(train.files), ROWS, replace=False))
    return {**splits, "train": PreparedSplit([train.cases[row] for row in rows], [train.files[row] for row in rows])}


def _fitted(study: Study, splits: Splits, features: Features, name: str, reads: str) -> LinearBaseline:
    """Each view of a training image is a row that counts for its share; validation chooses the penalty."""
    train, val, views = splits["train"], splits["val"], features["train"].shape[1]
    rows = features["train"].reshape(len(train.files) * views, -1).astype(np.float64)
    truth_of_rows = np.repeat(_targets(study, train), views, axis=0)
    fit = LinearFit(rows, truth_of_rows, study.data.task, np.full(len(rows), 1 / views))
    score, wanted, seen = validation_score(study, val), _targets(study, val), _plain(features, "val")
    linear, auc = choose_strength(fit, lambda model: score(model.logits(seen), wanted))
    return LinearBaseline(name, reads, linear, features, auc)


def _plain(features: Features, split: Split) -> NDArray[np.float64]:
    """The features (N, F) of the images as they are."""
    plain: NDArray[np.float64] = features[split][:, 0].astype(np.float64)
    return plain


def _targets(study: Study, part: PreparedSplit) -> NDArray[np.float64]:
    if study.data.task == "regression":
        return study.data.number.as_scale().outputs([[case.number] for case in part.cases])
    return truth(labels_of(study, part), study.data.outputs, study.data.task)
