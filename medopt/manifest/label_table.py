"""A table of labels: a CSV whose columns say which scan a row means, and what its labels are."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from medopt.core.errors import ConfigError, DataError
from medopt.manifest.csv_text import read_csv
from medopt.manifest.table import IMAGE, channels_of

Key = Literal["file", "series", "study", "accession", "patient"]
KEYS: tuple[Key, ...] = ("file", "series", "study", "accession", "patient")  # from fine to coarse
# Column names without case and punctuation, and the keys that they may be.
_COLUMNS: dict[str, tuple[Key, ...]] = {
    **dict.fromkeys(("file", "filename", "filepath", "image", "imagefile", "imagepath", "imageid", "path"), ("file",)),
    **dict.fromkeys(("series", "seriesuid", "seriesinstanceuid", "seriesid"), ("series", "file")),
    **dict.fromkeys(("study", "studyuid", "studyinstanceuid", "studyid"), ("study", "accession")),
    **dict.fromkeys(("accession", "accessionnumber", "accessionno"), ("accession",)),
    **dict.fromkeys(("patient", "patientid", "subject", "subjectid", "participant", "participantid"), ("patient",)),
}
_NOT_LABELS = frozenset(("age", "sex", "gender", "site", "split", "fold", "birthdate", "studydate", "date", "caseid"))


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A CSV of labels: its columns, and its rows as (row number, cells by column)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]

    def column(self, name: str, option: str = "--label-column") -> str:
        """The column of this name, ignoring case and punctuation.

        Raises ConfigError naming the nearest column and the command-line option.
        """
        for column in self.columns:
            if column == name or _normalized(column) == _normalized(name):
                return column
        near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near and self._has_header() else ""
        raise ConfigError(
            f"The table of labels {self.path} has no column {name}: {hint}it has {self._column_names()}. Name the one "
            f"that is meant with {option}."
        )

    def default_label(self, key: str = "") -> tuple[tuple[str, ...], str]:
        """The label column where none was named, and a note: `label`, else the only column that may be one."""
        if any(_normalized(name) == "label" for name in self.columns):
            return ("label",), ""
        key_column = self.column(key, "--key") if key else ""
        images = {f"{IMAGE}:{channel}" for channel in channels_of(self.columns)}
        others = [
            name
            for name in self.columns
            if name != key_column and name not in images and _normalized(name) not in {*_COLUMNS, *_NOT_LABELS}
        ]
        if len(others) != 1 or not self._has_header():
            return ("label",), ""
        return (
            (others[0],),
            f"The labels are taken from the column {others[0]}: the table has no column label, and this is the only "
            "one that fits.",
        )

    def patient_column(self, key: str = "") -> str:
        """The first column that gives the patient, beside the column `key` if there is another; empty for none."""
        columns = [name for name in self.columns if "patient" in _COLUMNS.get(_normalized(name), ())]
        return next((name for name in columns if name != key), key)

    def key_columns(self, name: str = "") -> list[tuple[str, Key]]:
        """The column `name`, else all columns that may be the key, with the key that they may be, from fine to coarse.

        Raises DataError where no column may be the key.
        """
        if name:
            return [(self.column(name, "--key"), key) for key in KEYS]
        columns = [(column, key) for column in self.columns for key in _COLUMNS.get(_normalized(column), ())]
        if not columns:
            raise DataError(
                f"The table of labels {self.path} has no column that says which scan a row means. Found: "
                f"{self._column_names()}. Known are patient_id, study_uid, accession_number, series_uid and file; say "
                "which column it is with --key COLUMN."
            )
        return sorted(columns, key=lambda item: KEYS.index(item[1]))

    def _column_names(self) -> str:
        """The columns as an error may show them: without a header, row 1 is data with a patient in it."""
        return ", ".join(self.columns) if self._has_header() else "no header that is known, so row 1 is not shown here"

    def _has_header(self) -> bool:
        return any(_normalized(name) in _COLUMNS or _normalized(name) == "label" for name in self.columns)


def read_labels(path: Path) -> LabelTable:
    """Read a UTF-8 CSV whose cells are separated by commas, semicolons or tabs; texts in the composed form of Unicode.

    Raises DataError naming the file and the row.
    """
    if not path.exists():
        raise DataError(f"There is no table of labels {path}.")
    lines = read_csv(path, "The table of labels")
    columns = tuple(normalize("NFC", cell) for cell in next(lines, (1, []))[1])
    rows: list[tuple[int, dict[str, str]]] = []
    for number, cells in lines:
        if len(cells) != len(columns):
            raise DataError(
                f"The table of labels {path} has {len(cells)} cells in row {number} under a header of "
                f"{len(columns)}. A separator inside a value needs quotes."
            )
        values = (normalize("NFC", cell) for cell in cells)
        rows.append((number, {name: cell for name, cell in zip(columns, values, strict=True) if name}))
    if not rows:
        raise DataError(f"The table of labels {path} is empty: it needs a header and a row for each case.")
    named = [name for name in columns if name]
    if len(set(named)) < len(named):
        raise DataError(f"The table of labels {path} has a column twice: keep one of each name.")
    return LabelTable(path, tuple(named), tuple(rows))


def _normalized(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower()) or name
