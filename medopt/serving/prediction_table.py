"""The table of answers in service: one row a scan, written by `medopt predict`, read by `medopt drift`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.files import atomic
from medopt.imaging.acquisition import Acquisition
from medopt.release.drift_reference import Observed
from medopt.release.predictor import Answer

DETAILS = (
    *("declined", "refused", "why", "content_distance", "texture_distance"),
    *("modality", "sex", "age", "scanner", "view", "image size"),
)
"""Columns after the probabilities: the reason for which a scan was declined or refused, and `why`, the reason in either
case; how far the scan is from training, how it was acquired."""
NUMBERS = ("number", "number_low", "number_high")
"""Columns of a regression study's release: the number, and the interval that is promised for the true one."""
MISSING = "missing_covariates"
_ACQUIRED = DETAILS.index("modality")


@dataclass(frozen=True, slots=True)
class Row:
    """One scan's answer, or the reason why there is none."""

    path: str
    answer: Answer | None
    refused: str = ""
    facts: Acquisition | None = None


def write_answers(
    path: Path, rows: Iterable[Row], labels: Sequence[str], *, has_number: bool = False, has_covariates: bool = False
) -> list[Row]:
    """Write the rows as CSV: path, decision, a probability for each label, and DETAILS.

    Of a release that `has_number`, behind the probabilities the number and the interval that is promised for it. Of one
    that `has_covariates`, at the end those that counted as missing.

    A declined scan has neither decision nor probability, so that nobody takes what the release declined for an answer.
    The file is opened before the first row is computed, so that no prediction is lost. Returns the rows. Raises
    StorageError.
    """
    written = []
    with atomic(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*_columns(labels, has_number), *([MISSING] if has_covariates else [])])
        for row in rows:
            written.append(row)
            missing = [";".join(row.answer.missing) if row.answer else ""] if has_covariates else []
            writer.writerow([row.path, *_cells(row, labels, has_number), *missing])
    return written


def _cells(row: Row, labels: Sequence[str], has_number: bool) -> list[str]:
    answer, facts = row.answer, row.facts
    given = [""] * (1 + len(labels) + len(NUMBERS) * has_number)
    if answer is None:
        return [*given, "", row.refused, row.refused, *[""] * (len(DETAILS) - 3)]
    if not answer.declined:
        given = [answer.decision, *(f"{answer.probabilities[label]:.6f}" for label in labels)]
        number = answer.number
        if has_number and number is not None:
            given += ["" if one is None else f"{one:.6g}" for one in (number.value, number.low, number.high)]
    distances = [f"{distance:.4g}" for distance in answer.distances or ()] or ["", ""]
    known = [facts.modality, *facts.subgroups().values()] if facts else [""] * (len(DETAILS) - _ACQUIRED)
    return [*given, answer.declined or "", "", answer.declined or "", *distances, *known]


def observed(rows: Sequence[Row], labels: Sequence[str], *, has_number: bool = False) -> Observed:
    """The columns that drift compares, of rows in memory."""
    names = _columns(labels, has_number)
    cells = [[row.path, *_cells(row, labels, has_number)] for row in rows]
    return _observed([dict(zip(names, row, strict=True)) for row in cells], labels, has_number)


def observed_of(rows: Sequence[Mapping[str, str]], labels: Sequence[str], *, has_number: bool = False) -> Observed:
    """The same of rows by their columns' names."""
    return _observed(rows, labels, has_number)


def read_observed(path: Path, labels: Sequence[str], *, has_number: bool = False) -> tuple[int, Observed]:
    """The columns that drift compares, of a table that `medopt predict` wrote; and the number of its scans.

    Raises DataError where it is not such a table, or one of another release.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            rows, header = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Give the CSV that `medopt predict --out` wrote.") from None
    missing = [name for name in _columns(labels, has_number) if name not in header]
    if missing:
        raise DataError(
            f"{path} is not a table of this release's answers: it has no column {', '.join(missing)}. Give the CSV "
            "that `medopt predict --out` of this release and this version wrote."
        )
    return len(rows), _observed(rows, labels, has_number)


def _columns(labels: Sequence[str], has_number: bool) -> list[str]:
    return ["path", "decision", *(f"probability_{label}" for label in labels), *NUMBERS[: 3 * has_number], *DETAILS]


def _observed(rows: Sequence[Mapping[str, str]], labels: Sequence[str], has_number: bool) -> Observed:
    compared = labels[1:] if len(labels) == 2 else labels  # the other one is its complement
    numbers = {f"probability of {label}": _numbers(rows, f"probability_{label}") for label in compared}
    numbers |= {title: _numbers(rows, title.replace(" ", "_")) for title in ("content distance", "texture distance")}
    numbers |= {NUMBERS[0]: _numbers(rows, NUMBERS[0])} if has_number else {}
    groups = {name: [row[name] for row in rows] for name in ("decision", *DETAILS[_ACQUIRED:])}
    return Observed(numbers, {"outcome": [_outcome(row) for row in rows]} | groups)


def _outcome(row: Mapping[str, str]) -> str:
    return "refused" if row["refused"] else "declined" if row["declined"] else "answered"


def _numbers(rows: Sequence[Mapping[str, str]], name: str) -> NDArray[np.float64]:
    try:
        return np.array([float(row[name]) if row[name] else np.nan for row in rows])
    except ValueError as error:
        raise DataError(f"The column {name} holds something that is not a number: {error}.") from None
