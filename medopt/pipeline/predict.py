"""Prediction tables of a run: an engine's logits of a split, with what is known of its cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.covariates import CovariateTerm
from medopt.core.records import UNKNOWN, Case, Predictions, Split, label_table
from medopt.data.cache import load_facts
from medopt.imaging.acquisition import Acquisition, age_band, sex_name
from medopt.inference.engines import Engine, run_files
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.weighted import auc
from medopt.pipeline.covariate_terms import covariate_logits
from medopt.training.job import PreparedSplit, Score


def predict(
    study: Study, kind: str, split: Split, part: PreparedSplit, engine: Engine, term: CovariateTerm | None
) -> Predictions:
    """A model's predictions of one split, in the order of its cases.

    An engine sees images alone: `term` is what the covariates add to its logits; None where the study has none.
    """
    logits = run_files(engine, part.files) + covariate_logits(study, term, part.cases)
    return predictions_of(study, kind, split, part, logits)


def predictions_of(
    study: Study, kind: str, split: Split, part: PreparedSplit, logits: NDArray[np.float64]
) -> Predictions:
    """The table of logits (N, K) of one split."""

    def column(values: Sequence[str]) -> NDArray[np.str_]:
        return np.array(values, dtype=np.str_)

    return Predictions(
        model=kind,
        case_id=column([case.case_id for case in part.cases]),
        patient_id=column([case.patient_id for case in part.cases]),
        site=column([case.site for case in part.cases]),
        split=column([split] * len(part.cases)),
        labels=labels_of(study, part),
        logits=logits,
        numbers=numbers_of(part) if study.data.task == "regression" else None,
    )


def labels_of(study: Study, part: PreparedSplit) -> NDArray[np.int64]:
    """(N,) class indices, or (N, K) zeros, ones and UNKNOWN for a multi-label study."""
    table = label_table(part.cases)
    labels = np.where(np.isnan(table), UNKNOWN, table).astype(np.int64)
    return labels if study.data.task == "multilabel" else labels[:, 0]


def numbers_of(part: PreparedSplit) -> NDArray[np.float64]:
    """The true numbers (N,) of a regression study's cases."""
    return np.array([case.number for case in part.cases], np.float64)


def subgroups(part: PreparedSplit) -> dict[str, NDArray[np.str_]]:
    """The group (N,) of each case by variable, empty where it is unknown; only variables of two groups or more.

    What the manifest says goes before what the scan's header says. Raises StorageError where a cached image vanished.
    """
    told = [_groups(case, load_facts(file)) for case, file in zip(part.cases, part.files, strict=True)]
    names = dict.fromkeys(name for groups in told for name in groups)
    columns = {name: np.array([groups.get(name, "") for groups in told], dtype=np.str_) for name in names}
    return {name: column for name, column in columns.items() if len(set(column[column != ""])) > 1}


def _groups(case: Case, facts: Acquisition) -> dict[str, str]:
    given = dict(case.groups)
    common = {"sex": sex_name(given.pop("sex", "")), "age": age_band(given.pop("age", ""))}
    return given | facts.subgroups() | {name: group for name, group in common.items() if group}


def validation_score(study: Study, validation: PreparedSplit) -> Score:
    """The function that training judges an epoch by: AUC on validation, R2 of a number; NaN where it is not defined."""

    def explained(outputs: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
        spread = float(np.square(targets - targets.mean()).sum())
        return 1 - float(np.square(outputs - targets).sum()) / spread if spread > 0 else float("nan")

    def score(logits: NDArray[np.float64], _targets: NDArray[np.float64]) -> float:
        blank = predictions_of(study, "float", "val", validation, logits)
        scored = CalibratedPredictions(blank, study.data.task)
        return float(auc(scored.score, scored.truth)[0]) if np.isfinite(logits).all() else float("nan")

    return explained if study.data.task == "regression" else score
