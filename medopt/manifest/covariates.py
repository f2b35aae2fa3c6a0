"""Covariates from cells to numbers: read, fitted on the training cases, encoded; missing, unknown and far-out values.

A number is standardized by the training cases; a category has a column for each of its values. A missing number is 0,
the mean, and a missing category is none of its values. Where training had missing values, a column more says so, and
its coefficient is learned; where it had none, nothing was learned of that, and a release declines such a case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medopt.config import Covariate, Study
from medopt.config.covariates import FittedCovariate
from medopt.config.data import Number
from medopt.core.errors import DataError, listed
from medopt.core.format import count_text
from medopt.core.records import SPLITS, Case
from medopt.imaging.acquisition import age_in_years, sex_name
from medopt.manifest.findings import Finding
from medopt.manifest.label_words import MISSING, label_key
from medopt.manifest.numbers import number_reader

MAX_LEVELS = 20
"""Values of a category at most: with more it is a number, or a text."""
_STAND_IN = re.compile(r"9{2,}|-9+|-1")  # numbers that tables write for a missing value
_number = number_reader(Number())
Value = float | str | None
"""Of a cell: a number, a category's value, or None where it is missing."""


def read_covariate(covariate: Covariate, text: str) -> Value:
    """The value of a cell. Raises ValueError, which does not quote it, where it cannot be one.

    >>> read_covariate(Covariate(column="age"), "045Y"), read_covariate(Covariate(column="sex"), "F")
    (45.0, 'female')
    """
    key = label_key(text)
    if key in MISSING:
        return None
    if covariate.known_kind == "category" or covariate.is_sex:
        if covariate.is_sex and (name := sex_name(text)):
            return name
        if covariate.tag and covariate.is_sex:
            raise ValueError("is not M, F or O, as DICOM writes a sex")
        return key
    if covariate.is_age:
        years = age_in_years(text, unit="Y")
        if not years:
            raise ValueError("is not an age in years, or as DICOM writes it (061Y, 018M)")
        return float(years)
    return _number(text) if covariate.known_kind == "number" else key


@dataclass(frozen=True, slots=True)
class EncodedCase:
    """A case's covariates as numbers (F,), which of them are missing, and why a release declines it ("": it does not).

    Texts hold names and ranges, never a value of the case.
    """

    values: tuple[float, ...]
    missing: tuple[str, ...] = ()
    declined: str = ""


class CovariateEncoder:
    """Cells to numbers, as fitted on the training cases."""

    def __init__(self, covariates: Sequence[Covariate]) -> None:
        """Raises ValueError where the training cases were not looked at."""
        if unfitted := [one.column for one in covariates if one.fitted is None]:
            raise ValueError(f"the covariate {unfitted[0]} is fitted on the training cases, which were not looked at")
        self.covariates = tuple(covariates)
        self.columns = tuple(one.column for one in covariates)

    @property
    def names(self) -> list[str]:
        """What each encoded column is called."""
        return [name for one in self.covariates for name in _names(one)]

    def encode(self, cells: Mapping[str, str]) -> EncodedCase:
        """The covariates of a case by column; a column that is not there is missing.

        Raises DataError, which quotes no value, where a cell cannot be read.
        """
        values, missing, reasons = list[float](), [], []
        for covariate in self.covariates:
            try:
                value = read_covariate(covariate, cells.get(covariate.column, ""))
            except ValueError as error:
                raise DataError(f"The covariate {covariate.column} {error}.") from None
            numbers, is_missing, reason = _encoded(covariate, value)
            values += numbers
            missing += [covariate.column] if is_missing else []
            reasons += [reason] if reason else []
        return EncodedCase(tuple(values), tuple(missing), "; ".join(reasons))

    def table(self, cases: Iterable[Case]) -> NDArray[np.float64]:
        """The encoded covariates (N, F) of cases."""
        rows = [self.encode(dict(zip(self.columns, case.covariates, strict=True))).values for case in cases]
        return np.array(rows, np.float64).reshape(-1, len(self.names))

    def example(self, number: int) -> dict[str, str]:
        """Cells within the training range, others for each number: what golden cases are answered with."""
        cells = {}
        for one in self.covariates:
            fitted = _fitted(one)
            if fitted.levels:
                cells[one.column] = fitted.levels[number % len(fitted.levels)]
            else:
                cells[one.column] = f"{(fitted.low, fitted.high)[number % 2]:.10g}"
        return cells


def encoder_of(study: Study) -> CovariateEncoder | None:
    """The encoder of a study whose training cases were looked at; None where it has no covariates."""
    return CovariateEncoder(study.data.covariates) if study.data.covariates else None


def _fitted(covariate: Covariate) -> FittedCovariate:
    assert covariate.fitted is not None
    return covariate.fitted


def _names(covariate: Covariate) -> list[str]:
    fitted, name = _fitted(covariate), covariate.column
    own = [f"{name} {level}" for level in fitted.levels] if covariate.kind == "category" else [name]
    return [*own, *([f"{name} missing"] if fitted.has_missing else [])]


def _encoded(covariate: Covariate, value: Value) -> tuple[list[float], bool, str]:
    """Numbers of a value, whether it counts as missing, and why a release declines it."""
    fitted, name, reason = _fitted(covariate), covariate.column, ""
    if isinstance(value, float):
        reach = fitted.high - fitted.low
        numbers, is_missing = [(value - fitted.mean) / fitted.spread], False
        if not fitted.low - reach <= value <= fitted.high + reach:
            reason = f"{name} is far outside the {fitted.low:g} to {fitted.high:g} of training"
    elif covariate.kind == "category":
        numbers, is_missing = [float(value == level) for level in fitted.levels], value not in fitted.levels
    else:
        numbers, is_missing = [0.0], True
    if is_missing and not fitted.has_missing:
        what = "is missing" if value is None else "has a value that training did not have"
        reason = f"{name} {what}, and training had no case without it"
    return numbers + [float(is_missing)] * fitted.has_missing, is_missing, reason


def with_covariates(study: Study, cases: Sequence[Case]) -> Study:
    """The study with its covariates fitted on its training cases.

    Raises DataError where a column cannot be a covariate.
    """
    if not study.data.covariates:
        return study
    fitted = [
        _fit(one, [case.covariates[at] for case in cases if case.split == "train"])
        for at, one in enumerate(study.data.covariates)
    ]
    return study.model_copy(update={"data": study.data.model_copy(update={"covariates": fitted})})


def _fit(covariate: Covariate, cells: Sequence[str]) -> Covariate:
    known = [cell for cell in cells if label_key(cell) not in MISSING]
    if not known:
        raise DataError(f"The covariate {covariate.column} is missing in all training cases.")
    kind = covariate.known_kind or ("number" if _all_numbers(covariate, known) else "category")
    covariate = covariate.model_copy(update={"kind": kind})
    has_missing, values = len(known) < len(cells), [_of_training(covariate, cell) for cell in known]
    if kind == "category":
        counts = Counter(map(str, values))
        if len(counts) > MAX_LEVELS:
            raise DataError(
                f"The covariate {covariate.column} has {len(counts)} different values in training; a category has "
                f"{MAX_LEVELS} at most. Say kind: number where all its cells are numbers, or leave the column out."
            )
        levels = sorted(counts, key=lambda level: (-counts[level], level))
        return covariate.model_copy(update={"fitted": FittedCovariate(levels=levels, has_missing=has_missing)})
    numbers = np.array(values, np.float64)
    _refuse_stand_ins(covariate, numbers)
    fitted = FittedCovariate(
        mean=float(numbers.mean()),
        spread=float(numbers.std()) or 1.0,
        low=float(numbers.min()),
        high=float(numbers.max()),
        has_missing=has_missing,
    )
    return covariate.model_copy(update={"fitted": fitted})


def _of_training(covariate: Covariate, cell: str) -> Value:
    try:
        return read_covariate(covariate, cell)
    except ValueError as error:
        raise DataError(f"The covariate {covariate.column}: a cell of the training cases {error}.") from None


def _all_numbers(covariate: Covariate, cells: Iterable[str]) -> bool:
    if covariate.is_sex:
        return False
    as_number = covariate.model_copy(update={"kind": "number"})
    try:
        for cell in dict.fromkeys(cells):
            read_covariate(as_number, cell)
    except ValueError:
        return False
    return True


def _refuse_stand_ins(covariate: Covariate, numbers: NDArray[np.float64]) -> None:
    """Raise DataError where numbers such as 999 or -9 lie far from all others: they stand for a missing value."""
    odd = np.array([bool(_STAND_IN.fullmatch(f"{number:.10g}")) for number in numbers])
    rest = numbers[~odd]
    if not odd.any() or not len(rest):
        return
    reach = float(np.ptp(rest))
    far = odd & ((numbers < rest.min() - reach) | (numbers > rest.max() + reach))
    if far.any():
        texts = [f"{value:g}" for value in np.unique(numbers[far])]
        raise DataError(
            f"The covariate {covariate.column} holds {listed(texts)} in {count_text(int(far.sum()), 'training case')}, "
            f"and from {rest.min():g} to {rest.max():g} in all others. Where that stands for a missing value, leave "
            "these cells empty."
        )


def covariate_findings(cases: Sequence[Case], study: Study) -> Iterator[Finding]:
    """What is to be known of each covariate: its kind, missing cells, one value alone, values that training lacks.

    Numbers far outside the range of training are refused: their unit is another one, or they stand for something else.
    Raises DataError where a column cannot be a covariate.
    """
    if not study.data.covariates or not any(case.split == "train" for case in cases):
        return
    study = with_covariates(study, cases)
    for at, covariate in enumerate(study.data.covariates):
        fitted, name = _fitted(covariate), covariate.column
        cells = [(case.split, case.covariates[at]) for case in cases]
        yield Finding("covariates", "note", f"{name}: a {_told(covariate)}; {_missing_text(cells)}.")
        if len(fitted.levels) == 1 or (covariate.kind == "number" and fitted.low == fitted.high):
            yield Finding("covariate_constant", "note", f"{name} has one value alone in training, which tells nothing.")
        encoder = CovariateEncoder([covariate])
        later = [encoder.encode({name: cell}) for split, cell in cells if split != "train"]
        if far := sum("far outside" in one.declined for one in later):
            yield Finding(
                "covariate_range",
                "refuse",
                f"{name} is far outside the {fitted.low:g} to {fitted.high:g} of training in "
                f"{count_text(far, 'validation or test case')}: another unit, or a number for something else. Mend "
                "these cells.",
            )
        unlearned = sum("training" in one.declined and "far outside" not in one.declined for one in later)
        unknown = sum(bool(one.missing) for one in later) - sum(
            label_key(cell) in MISSING for split, cell in cells if split != "train"
        )
        if unknown or unlearned:
            yield Finding("covariate_unknown", "note", _unknown_text(name, unknown, unlearned))


def _told(covariate: Covariate) -> str:
    fitted = _fitted(covariate)
    if covariate.kind == "category":
        return f"category ({', '.join(fitted.levels)})"
    return f"number, {fitted.low:g} to {fitted.high:g} in training"


def _missing_text(cells: Sequence[tuple[str, str]]) -> str:
    missing = Counter(split for split, cell in cells if label_key(cell) in MISSING)
    if not missing:
        return "missing in no case"
    counts = ", ".join(f"{split} {missing[split]}" for split in SPLITS if missing[split])
    return f"missing in {missing.total()} of {count_text(len(cells), 'case')} ({counts})"


def _unknown_text(name: str, unknown: int, unlearned: int) -> str:
    texts = []
    if unknown:
        texts.append(f"{name} has values that training lacks in {count_text(unknown, 'validation or test case')}, "
                     "where it counts as missing.")  # fmt: skip
    if unlearned:
        texts.append(
            f"Training has no case without {name}, so nothing is learned of a missing value: "
            f"{count_text(unlearned, 'validation or test case')} without it count with the mean, and a release "
            "declines such cases."
        )
    return " ".join(texts)
