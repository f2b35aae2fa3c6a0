"""The numbers of a regression study's manifest: read, put on either side of the threshold, and their scale."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.config.data import Number
from medopt.core.errors import DataError, listed
from medopt.core.records import Case
from medopt.manifest.label_words import MISSING, LabelSpellings, label_key


def number_reader(number: Number) -> Callable[[str], float]:
    """Reads a cell of the number's column; ValueError says why it cannot be used."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            comma = ": write a point in place of the comma" if re.fullmatch(r"-?\d+,\d+", text) else ""
            raise ValueError(f"is not a number{comma}" if text else "the cell is empty; a number is needed") from None
        if not math.isfinite(value):
            raise ValueError("is not a finite number")
        if number.scale == "log" and value <= 0:
            raise ValueError("is not above 0, as data.number.scale: log needs it")
        return value

    return read


def number_spellings(cells: Iterable[str], column: str) -> LabelSpellings:
    """The number of each cell of a column of measurements, "" where it is a word for a missing one.

    Raises DataError naming the cells that are no numbers.
    """
    read, found, wrong = number_reader(Number()), {}, []
    for cell in dict.fromkeys(cells):
        try:
            found[cell] = "" if label_key(cell) in MISSING else f"{read(cell):.10g}"
        except ValueError as error:
            wrong.append(f"{cell!r} {error}")
    if wrong:
        raise DataError(f"--numbers: the column {column} holds measurements, but {listed(wrong, 5)}.")
    return LabelSpellings(found)


def quartiles(cells: Sequence[str]) -> NDArray[np.int64]:
    """The quarter (N,) that each number lies in, 0 to 3: by which splits of a number are stratified."""
    values = np.array(cells, np.float64)
    return np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values)


def looks_like_number(cells: Mapping[str, int]) -> bool:
    """Whether a column holds measurements and no classes, by the counts of its cells.

    All are numbers, and there are more than 20 different ones, or more than 10 that are not all whole.

    >>> looks_like_number({str(grade): 9 for grade in range(5)}), looks_like_number({f"{at}.5": 1 for at in range(30)})
    (False, True)
    """
    read, values = number_reader(Number()), set()
    for cell in cells:
        try:
            values.add(read(cell))
        except ValueError:
            return False
    return len(values) > (20 if all(value.is_integer() for value in values) else 10)


def sided(cases: Sequence[Case], number: Number) -> tuple[Case, ...]:
    """The cases with the side of the threshold as their label: 1 above it, 0 up to it."""
    limit = threshold_of(cases, number)
    return tuple(replace(case, label=(int(case.number is not None and case.number > limit),)) for case in cases)


def threshold_of(cases: Iterable[Case], number: Number) -> float:
    """The threshold that a study names, else the median of its training cases."""
    if number.threshold is not None:
        return number.threshold
    known = [case.number for case in cases if case.split == "train" and case.number is not None]
    return float(np.median(known)) if known else 0.0


def with_number_scale(study: Study, cases: Iterable[Case]) -> Study:
    """The study with the threshold and the spread that its training cases give, where it does not name them.

    Raises DataError where all training cases have one number, so that nothing can be learned.
    """
    if study.data.task != "regression":
        return study
    cases, number = list(cases), study.data.number
    known = np.array([case.number for case in cases if case.split == "train"], np.float64)
    spread = float(np.std(np.log(known) if number.scale == "log" else known)) if len(known) else 0.0
    if number.spread is None and not spread > 0:
        raise DataError(f"All training cases have one {number.name}: there is nothing to learn.")
    found = {"threshold": threshold_of(cases, number), "spread": number.spread or spread}
    data = study.data.model_copy(update={"number": number.model_copy(update=found)})
    return study.model_copy(update={"data": data})
