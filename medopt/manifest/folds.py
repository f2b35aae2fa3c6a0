"""Cross-validation: the training and validation cases of a manifest, dealt out anew into folds by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medopt.config import Study
from medopt.core.records import Case
from medopt.manifest.splits import draw, group_rows

_DRAW = 0  # folds belong to the data: another seed of the study trains on the very same ones


def with_folds(cases: Sequence[Case], study: Study) -> tuple[Case, ...]:
    """The cases with the splits of the study's fold: `data.fold` validates, the other folds train, test is untouched.

    Folds are stratified by label and site. Raises DataError where a label has fewer patients than there are folds.
    """
    if not study.data.folds:
        return tuple(cases)
    rows = [index for index, case in enumerate(cases) if case.split != "test"]
    patients, sites = (np.array([getattr(cases[row], name) for row in rows]) for name in ("patient_id", "site"))
    truth = np.array([cases[row].label for row in rows])
    labels = truth == 1 if study.data.task == "multilabel" else truth == np.arange(len(study.data.labels))
    groups = group_rows(patients, labels, sites)
    fold = draw(groups, (1.0,) * study.data.folds, _DRAW, study.data.labels)[groups.row]
    found = list(cases)
    for row, number in zip(rows, fold.tolist(), strict=True):
        found[row] = replace(cases[row], split="val" if number == study.data.fold else "train")
    return tuple(found)
