"""predictions.csv: the one table of a run, from which every figure can be computed again.

One row a model and case: model, split, case_id, patient_id, site, subgroup_<variable> for each that is known, label,
logit, probability. A study with several outputs has logit_<name> and probability_<name> for each, a multi-label study
also label_<name>, empty where the label is not known. A regression study has the true number and number_predicted, too;
its label and probability are of a number above the threshold. Logits are written in
the shortest form that reads back as the same number; probabilities are the calibrated ones, for people and other tools.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.config.data import SIDES
from medopt.core.errors import DataError
from medopt.core.files import atomic
from medopt.core.number_scale import NumberScale
from medopt.core.records import SPLITS, UNKNOWN, Predictions, Task, has_one_output
from medopt.metrics.calibration import Calibration

SUBGROUP = "subgroup_"
UNNAMED = ("negative", "positive")  # what a binary table, which does not name its labels, is said to hold
NUMBER, PREDICTED = "number", "number_predicted"
IDENTITY = ("model", "split", "case_id", "patient_id", "site")


def write_predictions(
    path: Path,
    tables: Sequence[Predictions],
    labels: Sequence[str],
    task: Task,
    calibrations: Mapping[str, Calibration],
    scale: NumberScale | None = None,
) -> None:
    """Write all models' predictions into one CSV, whole or not at all.

    `labels` are the class or label names, `calibrations` the calibration of each model by its name, `scale` is that of
    a regression study.
    """
    if any(table.numbers is None for table in tables):
        scale = None
    variables = list(dict.fromkeys(name for table in tables for name in table.subgroups))
    several = [""] if has_one_output(task) else [f"_{name}" for name in labels]
    truth = [f"label{end}" for end in (several if task == "multilabel" else [""])]
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            [
                *IDENTITY,
                *(f"{SUBGROUP}{name}" for name in variables),
                *truth,
                *(f"logit{end}" for end in several),
                *(f"probability{end}" for end in several),
                *((NUMBER, PREDICTED) if scale else ()),
            ]
        )
        for table in tables:
            probability = calibrations[table.model].probabilities(table.logits, task)
            groups = table.subgroups
            columns = (
                _cells(table.labels.reshape(len(table), -1)),
                table.logits,
                probability,
                _numbers_of(table, scale),
            )
            names = zip(
                table.split.tolist(),
                table.case_id.tolist(),
                table.patient_id.tolist(),
                table.site.tolist(),
                *(groups[name].tolist() if name in groups else [""] * len(table) for name in variables),
                strict=True,
            )
            numbers = zip(*(column.tolist() for column in columns), strict=True)
            for identity, (label, logit, calibrated, number) in zip(names, numbers, strict=True):
                writer.writerow([table.model, *identity, *label, *logit, *calibrated, *number])


def _numbers_of(table: Predictions, scale: NumberScale | None) -> NDArray[np.float64]:
    """True and predicted numbers (N, 2) of a regression study, else (N, 0)."""
    if scale is None or table.numbers is None:
        return np.empty((len(table), 0))
    return np.stack([table.numbers, scale.numbers(table.logits[:, 0])], axis=1)


def read_predictions(path: Path) -> list[Predictions]:
    """Read predictions.csv: one table for each model, in the order of the file.

    Raises DataError naming the file, the row (the header is row 1) and the column of what is wrong.
    """
    with _opened(path) as (header, reader):
        rows = list(_rows(path, reader, len(header)))
    columns = dict(zip(header, zip(*rows, strict=True) if rows else ((),) * len(header), strict=True))
    whole = _whole(path, columns)
    models = np.array(columns["model"], dtype=np.str_)
    return [replace(whole.where(models == name), model=name) for name in dict.fromkeys(columns["model"])]


def read_labels(path: Path) -> tuple[Task, list[str]]:
    """The task of a prediction table and its labels, as its header has them; a binary one does not name its labels.

    Raises DataError as `read_predictions` does.
    """
    with _opened(path) as (header, _):
        pass
    names = [name.removeprefix("logit_") for name in _of_kind(header, "logit")]
    if NUMBER in header:
        return "regression", list(SIDES)
    if "label" not in header:
        return "multilabel", names
    return ("binary", list(UNNAMED)) if len(names) == 1 else ("multiclass", names)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """The header, checked, and the rows beneath."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            _check_header(path, header)
            yield header, reader
    except FileNotFoundError:
        raise DataError(f"There is no prediction table {path}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV table: {error}. Write it again with `medopt run`.") from None


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in IDENTITY if name not in header]
    missing += [kind for kind in ("label", "logit", "probability") if not _of_kind(header, kind)]
    if missing:
        raise DataError(f"{path}, row 1: no column {', '.join(missing)}; it holds {', '.join(header) or 'nothing'}.")
    if repeated := [name for name in dict.fromkeys(header) if header.count(name) > 1]:
        raise DataError(
            f"{path}, row 1: the column {', '.join(repeated)} is there twice. Give each label its own name."
        )


def _of_kind(header: Iterable[str], kind: str) -> list[str]:
    return [name for name in header if name == kind or name.startswith(f"{kind}_")]


def _rows(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[list[str]]:
    for number, row in enumerate(reader, start=2):
        if len(row) != width:
            raise DataError(
                f"{path}, row {number}: {len(row)} fields where the header has {width}. Was the file cut off?"
            )
        yield row


def _whole(path: Path, columns: Mapping[str, Sequence[str]]) -> Predictions:
    """All models' rows in one table, every value checked."""
    texts = {name: np.array(columns[name], dtype=np.str_) for name in IDENTITY}
    _refuse(path, "split", ~np.isin(texts["split"], SPLITS), columns, f"one of {', '.join(SPLITS)}")
    labels = np.stack([_label_numbers(path, name, columns) for name in _of_kind(columns, "label")], axis=1)
    logits = np.stack([_numbers(path, name, columns) for name in _of_kind(columns, "logit")], axis=1)
    classes = 2 if labels.shape[1] > 1 or logits.shape[1] == 1 else logits.shape[1]
    for name, column in zip(_of_kind(columns, "label"), labels.T, strict=True):
        unknown = (column == UNKNOWN) & (name != "label")
        _refuse(
            path, name, ~(np.isin(column, np.arange(classes)) | unknown), columns, f"a whole number below {classes}"
        )
    for name in _of_kind(columns, "probability"):
        column = _numbers(path, name, columns)
        _refuse(path, name, (column < 0) | (column > 1), columns, "a probability")
    pairs = list(zip(columns["model"], columns["case_id"], strict=True))
    first = {pair: row for row, pair in reversed(list(enumerate(pairs)))}
    repeated = np.array([first[pair] != row for row, pair in enumerate(pairs)], dtype=bool)
    _refuse(path, "case_id", repeated, columns, "one row for each case of a model", show=False)
    truth = labels.astype(np.int64)
    return Predictions(
        model="",
        case_id=texts["case_id"],
        patient_id=texts["patient_id"],
        site=texts["site"],
        split=texts["split"],
        labels=truth[:, 0] if "label" in columns else truth,
        logits=logits,
        numbers=_numbers(path, NUMBER, columns) if NUMBER in columns else None,
        subgroups={
            name.removeprefix(SUBGROUP): np.array(column, dtype=np.str_)
            for name, column in columns.items()
            if name.startswith(SUBGROUP)
        },
    )


def _cells(labels: NDArray[np.int64]) -> NDArray[np.object_]:
    """Labels (N, K) as cells: empty where one is not known."""
    cells = labels.astype(object)
    cells[labels == UNKNOWN] = None
    return cells


def _label_numbers(path: Path, name: str, columns: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    """A column of labels, UNKNOWN where the cell of one of several labels is empty."""
    if name == "label" or "" not in columns[name]:
        return _numbers(path, name, columns)
    return _numbers(path, name, {**columns, name: [cell or str(UNKNOWN) for cell in columns[name]]})


def _numbers(path: Path, name: str, columns: Mapping[str, Sequence[str]]) -> NDArray[np.float64]:
    """A column of finite numbers."""
    try:
        values = np.array(columns[name], dtype=np.float64)
    except ValueError:
        values = np.array([_number(text) for text in columns[name]])
    _refuse(path, name, ~np.isfinite(values), columns, "a finite number")
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan


def _refuse(
    path: Path,
    name: str,
    wrong: NDArray[np.bool_],
    columns: Mapping[str, Sequence[str]],
    expected: str,
    show: bool = True,
) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        value = f"{columns[name][row]!r} where" if show else "repeated;"
        raise DataError(
            f"{path}, row {row + 2}, column {name}: {value} {expected} was expected ({int(wrong.sum())} such rows). "
            "Write the table again with `medopt run`; it is not meant to be edited."
        )
