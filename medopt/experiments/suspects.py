"""The images of runs whose labels are probably wrong, by models that were not trained on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, DataError
from medopt.core.records import UNKNOWN, Case, Predictions, has_one_output
from medopt.evaluation.label_suspects import Suspect, Suspects
from medopt.manifest.table import read_manifest
from medopt.metrics.label_issues import label_issues
from medopt.metrics.weighted import Floats, Index
from medopt.pipeline.reevaluate import open_table, scored_of

MANIFEST = "manifest.csv"


@dataclass(frozen=True, slots=True)
class JudgedRuns:
    """The suspects of runs, with the study and the cases of the first, by which images are found."""

    suspects: Suspects
    study: Study
    cases: dict[str, Case]


def find_suspects(folders: Sequence[Path], model: str = "float") -> JudgedRuns:
    """Judge the labels of the validation and test images of runs of one study: those of folds judge every image.

    Where several runs did not train on an image, their calibrated probabilities are averaged. Raises DataError where
    the runs do not belong together.
    """
    study, cases = load_study(folders[0] / "study.yaml"), dict[str, Case]()
    parts, probabilities = [], []
    for folder in folders:
        if not (folder / MANIFEST).is_file() or not (folder / "study.yaml").is_file():
            raise DataError(f"{folder} is not the folder of a finished run: there is no {MANIFEST} or study.yaml.")
        table = open_table(folder)
        own = load_study(folder / "study.yaml")
        if (own.data.task, own.data.labels) != (study.data.task, study.data.labels):
            raise ConfigError(f"{folder} and {folders[0]} do not answer one question: their labels differ.")
        for case in read_manifest(folder / MANIFEST, own, from_run=True):
            cases.setdefault(case.case_id, case)
        chosen = next((one for one in table.tables if one.model == model), None)
        if chosen is None:
            raise DataError(f"{table.path} has no model {model}; it has {', '.join(o.model for o in table.tables)}.")
        scored = scored_of(table, chosen)[0]
        rows = scored.predictions.split != "train"
        parts.append(scored.predictions.where(rows))
        probabilities.append(scored.probability[rows])
    judged, probability = _averaged(Predictions.joined(model, parts), np.concatenate(probabilities))
    suspects, labels = _suspects(judged, probability, study, cases)
    result = Suspects(
        study=study.name,
        model=model,
        runs=tuple(folder.name for folder in folders),
        images=len(cases),
        judged=len(judged),
        labels=labels,
        suspects=tuple(suspects),
    )
    return JudgedRuns(result, study, cases)


def _averaged(table: Predictions, probability: Floats) -> tuple[Predictions, Floats]:
    """One row a case, with the mean probability of the runs; raises DataError where they have other labels."""
    _, first, index = np.unique(table.case_id, return_index=True, return_inverse=True)
    labels = table.labels.reshape(len(table), -1)
    if (labels != labels[first][index]).any():
        raise DataError("The runs give some images other labels. Give runs of one manifest.")
    sums = np.zeros((len(first), probability.shape[1]))
    np.add.at(sums, index, probability)
    return table.where(first), sums / np.bincount(index)[:, None]


def _suspects(
    judged: Predictions, probability: Floats, study: Study, cases: dict[str, Case]
) -> tuple[list[Suspect], int]:
    """The suspected labels in order, and how many labels were judged."""
    task, names = study.data.task, study.data.labels
    columns: list[tuple[str, list[str], Floats, Index]] = []
    if task == "multilabel":
        for at, name in enumerate(names):
            known = np.flatnonzero(judged.labels[:, at] != UNKNOWN)
            one = probability[known, at]
            columns.append((name, ["0", "1"], np.stack([1 - one, one], axis=1), known))
    else:
        table = np.hstack([1 - probability, probability]) if has_one_output(task) else probability
        columns.append(("label", list(names), table, np.arange(len(judged))))
    found = []
    for column, labels, table, rows in columns:
        given = judged.labels[rows, names.index(column)] if task == "multilabel" else judged.labels[rows]
        issues = label_issues(table, given)
        for at in np.flatnonzero(issues.rank).tolist():
            case = cases[str(judged.case_id[rows[at]])]
            own, other = int(given[at]), int(issues.suggested[at])
            found.append(
                Suspect(
                    rank=0,
                    image=case.image,
                    case_id=case.case_id,
                    split=str(judged.split[rows[at]]),
                    column=column,
                    given=labels[own],
                    suggested=labels[other],
                    probability_given=float(table[at, own]),
                    probability_suggested=float(table[at, other]),
                    margin=float(issues.margin[at]),
                )
            )
    found.sort(key=lambda one: one.margin)
    return [one.model_copy(update={"rank": rank}) for rank, one in enumerate(found, 1)], sum(len(c[3]) for c in columns)
