"""From images to patients: one row a patient, for figures of patients instead of images."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import UNKNOWN, Predictions, Task, is_exclusive

Aggregate = Literal["mean", "max"]


def by_patient(predictions: Predictions, task: Task, how: Aggregate) -> Predictions:
    """One row for each patient, in the order of their names: `how` its images' logits are drawn together.

    A patient has a finding where any image has it, and is without it where all images are. Site and subgroups are ""
    where a patient's images differ. Raises DataError where a patient's images have several classes of a multi-class
    study or several numbers, or lie in several splits.
    """
    if len(predictions) == 0:
        return predictions
    _, first, index = np.unique(predictions.patient_id, return_index=True, return_inverse=True)
    _refuse_several(predictions.split, first, index, "splits")
    if predictions.numbers is not None:
        _refuse_several(predictions.numbers, first, index, "numbers")
    if is_exclusive(task):
        _refuse_several(predictions.labels, first, index, "classes")
    order = np.where(predictions.labels == UNKNOWN, 0.5, predictions.labels)  # 1 goes before what is not known
    highest = order[first]
    np.maximum.at(highest, index, order)
    labels = np.where(highest == 0.5, UNKNOWN, highest).astype(np.int64)
    logits = np.full((len(first), predictions.logits.shape[1]), -np.inf if how == "max" else 0.0)
    if how == "max":
        np.maximum.at(logits, index, predictions.logits)
    else:
        np.add.at(logits, index, predictions.logits)
        logits /= np.bincount(index)[:, None]
    found = predictions.where(first)
    return Predictions(
        model=predictions.model,
        case_id=found.patient_id,
        patient_id=found.patient_id,
        site=_common(predictions.site, first, index),
        split=found.split,
        labels=labels,
        logits=logits,
        subgroups={name: _common(column, first, index) for name, column in predictions.subgroups.items()},
        numbers=found.numbers,
    )


def _differs(column: NDArray[np.generic], first: NDArray[np.intp], index: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which patients (P,) have cases that differ in `column` (N,)."""
    return np.bincount(index, weights=column != column[first][index]) > 0


def _common(column: NDArray[np.str_], first: NDArray[np.intp], index: NDArray[np.intp]) -> NDArray[np.str_]:
    return np.where(_differs(column, first, index), "", column[first])


def _refuse_several(column: NDArray[np.generic], first: NDArray[np.intp], index: NDArray[np.intp], what: str) -> None:
    several = int(_differs(column, first, index).sum())
    if several:
        raise DataError(
            f"{several} of {len(first)} patients have images of several {what}, so that there is no one answer for the "
            "patient. Evaluate images instead (--level image)."
        )
