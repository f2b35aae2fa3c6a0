"""The cells of a manifest that cannot be used, gathered column by column, and the error that names them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from medopt.core.errors import DataError, listed
from medopt.core.privacy import pseudonym
from medopt.core.records import Case

Cells = dict[str, Sequence[str]]
"""Of some rows the cells of each column, in the order of the rows."""


@dataclass(slots=True)
class CellFaults:
    """The cells of a manifest that cannot be used. Their texts never show the identifier of a patient."""

    path: Path
    header: Sequence[str] = ()
    by_column: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)

    def add(self, number: int, column: str, text: str, reason: str) -> None:
        """Note that the cell `text` of row `number` cannot be used."""
        self.by_column.setdefault(column, []).append((number, text, reason))

    def read(
        self, numbers: Sequence[int], column: str, cells: Cells, reader: Callable[[str], Any], instead: Any = None
    ) -> list[Any]:
        """`reader` of a column's cells; where it raises ValueError, the cell is a fault and its result `instead`."""
        try:
            return list(map(reader, cells[column]))
        except ValueError:
            return [self._read_one(*each, column, reader, instead) for each in zip(numbers, cells[column], strict=True)]

    def _read_one(self, number: int, cell: str, column: str, reader: Callable[[str], Any], instead: Any) -> Any:
        try:
            return reader(cell)
        except ValueError as error:
            self.add(number, column, cell, str(error))
            return instead

    def add_repeated(
        self,
        numbers: Sequence[int],
        columns: Sequence[str],
        cases: Sequence[Case],
        cells: Callable[[Case], Sequence[str]],
        *,
        shown: bool = False,
    ) -> None:
        """Add a fault where a case has a cell of an earlier one, or twice the same; `shown`: it may be shown.

        `numbers` are the rows of the cases, `cells` gives those of a case in these columns.
        """
        values = [value for case in cases for value in cells(case) if value]
        if len(set(values)) == len(values):
            return
        first: dict[str, tuple[int, str]] = {}
        for number, case in zip(numbers, cases, strict=True):
            for column, value in zip(columns, cells(case), strict=True):
                before, other = first.setdefault(value, (number, column))
                if value and (before, other) != (number, column):
                    where = f"row {before}" if other == column else f"row {before}, column {other}"
                    self.add(number, column, "", f"the same as {where}{f' ({value})' if shown else ''}")

    def refuse(self, patients: set[str]) -> None:
        """Raise DataError with the faults of each column, if there are any; no identifier of `patients` is shown."""
        if self.by_column:
            found = {column: sorted(faults, key=itemgetter(0)) for column, faults in self.by_column.items()}
            columns = [
                f"{column}: {listed([self._text(*fault, patients) for fault in faults])}."
                for column, faults in sorted(found.items(), key=lambda item: item[1][0][0])
            ]
            raise DataError(f"The manifest {self.path} cannot be used. " + " ".join(columns))

    def _text(self, number: int, text: str, reason: str, patients: set[str]) -> str:
        if text and pseudonym(text) in patients:
            return f"row {number}: (the value is a patient_id too and is not shown) {reason}"
        return f"row {number}: {text!r} {reason}" if text else f"row {number}: {reason}"
