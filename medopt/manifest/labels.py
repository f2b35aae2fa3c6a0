"""A table of labels, and which scan each row means: joined by patient, study, accession number, series or file."""

from __future__ import annotations

import csv
import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.privacy import pseudonym
from medopt.manifest.sources.scan_listing import Scan, stem

Key = Literal["file", "series", "study", "accession", "patient"]
KEYS: tuple[Key, ...] = ("file", "series", "study", "accession", "patient")  # the finest first
# Column names without case and punctuation, and what they may mean.
_COLUMNS: dict[str, tuple[Key, ...]] = {
    **dict.fromkeys(("file", "filename", "filepath", "image", "imagefile", "imagepath", "imageid", "path"), ("file",)),
    **dict.fromkeys(("series", "seriesuid", "seriesinstanceuid", "seriesid"), ("series", "file")),
    **dict.fromkeys(("study", "studyuid", "studyinstanceuid", "studyid"), ("study", "accession")),
    **dict.fromkeys(("accession", "accessionnumber", "accessionno"), ("accession",)),
    **dict.fromkeys(("patient", "patientid", "subject", "subjectid", "participant", "participantid"), ("patient",)),
}
MOST_CLASSES = 50


@dataclass(frozen=True, slots=True)
class LabelTable:
    """A CSV of labels: its columns, and its rows as (row number, cells by column)."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[int, dict[str, str]], ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """What the table says of the scans, by the scan's place in the list.

    `orphans` are rows that no scan answers to and `ambiguous` rows that name several files, as texts that may be shown.
    """

    key: Key
    column: str
    labels: dict[int, tuple[str, ...]]
    patients: dict[int, str]
    orphans: tuple[str, ...]
    ambiguous: tuple[str, ...]


def read_labels(path: Path) -> LabelTable:
    """Read a UTF-8 CSV whose cells are separated by commas, semicolons or tabs.

    Raises DataError naming the file and the row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no table of labels {path}.") from None
    except OSError as error:
        raise DataError(f"The table of labels {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"The table of labels {path} is not UTF-8 text: save it as CSV in UTF-8.") from None
    head = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(keepends=True), delimiter=max(",;\t", key=head.count), strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        columns = tuple(cell.strip() for cell in next(reader, []))
        for number, cells in enumerate(reader, start=2):
            if any(cell.strip() for cell in cells):
                if len(cells) != len(columns):
                    raise DataError(
                        f"The table of labels {path} has {len(cells)} cells in row {number} under a header of "
                        f"{len(columns)}. A separator inside a value needs quotes."
                    )
                rows.append((number, {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}))
    except csv.Error as error:
        raise DataError(f"The table of labels {path} is not a CSV: {error} (line {reader.line_num}).") from None
    if not rows:
        raise DataError(f"The table of labels {path} is empty: it needs a header and a row for each case.")
    if len(set(columns)) < len(columns):
        raise DataError(f"The table of labels {path} has a column twice: keep one of each name.")
    return LabelTable(path, columns, tuple(rows))


def join(table: LabelTable, scans: Sequence[Scan], wanted: Sequence[str], key: str = "") -> Joined:
    """Find the scans of each row. `wanted` are the label columns, `key` the key column, else the one that fits best.

    Of several key columns the one that finds most scans is taken, of equals the finest. Raises DataError where no scan
    is found, where two rows say different things of one scan, and for labels that are none; ConfigError for columns
    that the table does not have.
    """
    columns = [_column(table, name) for name in wanted]
    best: _Match | None = None
    for column, kind in _candidates(table, key):
        match = _Match(table, column, kind, scans)
        if best is None or len(match.scans) > len(best.scans):
            best = match
    if best is None or not best.scans:
        raise _nothing(table, scans, [column for column, _ in _candidates(table, key)])
    return _told(table, best, columns)


class _Match:
    """Which scans each row means by one column."""

    def __init__(self, table: LabelTable, column: str, kind: Key, scans: Sequence[Scan]) -> None:
        self.column, self.kind = column, kind
        index = _Files(scans) if kind == "file" else _Texts(scans, kind)
        self.rows = [(number, cells, index.find(cells[column])) for number, cells in table.rows]
        self.scans = {at for _, _, found in self.rows if found for at in found}

    def shown(self, number: int, cells: dict[str, str]) -> str:
        """A row as it may be shown: files by name, all else by pseudonym."""
        value = cells[self.column]
        if self.kind == "file":
            return f"row {number} ({value.replace(chr(92), '/').rpartition('/')[2] or 'empty'})"
        return f"row {number} ({self.kind} {pseudonym(value)}, a pseudonym)" if value else f"row {number} (empty)"


class _Texts:
    """Scans by one of their identifiers."""

    def __init__(self, scans: Sequence[Scan], kind: Key) -> None:
        self._known: dict[str, list[int]] = defaultdict(list)
        for at, scan in enumerate(scans):
            value = str(getattr(scan, kind))
            for name in {value, value.removeprefix("sub-")}:  # BIDS tables write either
                self._known[name].append(at)

    def find(self, text: str) -> list[int] | None:
        return self._known.get(text, []) if text else []


class _Files:
    """Scans by path, by name or by name without ending; None stands for a name that several scans have."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self._known: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for at, scan in enumerate(scans):
            for path in {scan.image, scan.path, *scan.files} if "#" not in scan.image else {scan.image, *scan.files}:
                plain = _plain(path)
                self._known[plain.rpartition("/")[2]].append((plain, at))

    def find(self, text: str) -> list[int] | None:
        path = text.replace("\\", "/").removeprefix("./")
        plain = _plain(path)
        fits = [
            (known, at)
            for known, at in self._known.get(plain.rpartition("/")[2], [])
            if known == plain or known.endswith(f"/{plain}") or plain.endswith(f"/{known}")
        ]
        exact = {at for known, at in fits if known == plain}
        found = exact or {at for _, at in fits}
        return sorted(found) if len(found) < 2 else None


def _plain(path: str) -> str:
    """A path without the ending of its name, in one case."""
    above, slash, name = path.rpartition("/")
    return f"{above}{slash}{stem(name)}".lower()


def _candidates(table: LabelTable, key: str) -> list[tuple[str, Key]]:
    """Columns that may be the key with what they may mean, the finest meaning first."""
    if key:
        return [(_column(table, key, "--key"), kind) for kind in KEYS]
    found = [(name, kind) for name in table.columns for kind in _COLUMNS.get(_bare(name), ())]
    if not found:
        raise DataError(
            f"The table of labels {table.path} has no column that says which scan a row means. Found: "
            f"{_names(table)}. Known are patient_id, study_uid, accession_number, series_uid and file; say "
            "which column it is with --key COLUMN."
        )
    return sorted(found, key=lambda item: KEYS.index(item[1]))


def _column(table: LabelTable, name: str, option: str = "--label-column") -> str:
    """The table's column of this name, whatever its case."""
    for column in table.columns:
        if column == name or _bare(column) == _bare(name):
            return column
    near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near and _has_header(table) else ""
    raise ConfigError(
        f"The table of labels {table.path} has no column {name}: {hint}it has {_names(table)}. Name the one "
        f"that is meant with {option}."
    )


def _names(table: LabelTable) -> str:
    """The columns as an error may show them: row 1 of a table without a header is data, with a patient in it."""
    return ", ".join(table.columns) if _has_header(table) else "no header that is known, so row 1 is not shown here"


def _has_header(table: LabelTable) -> bool:
    return any(_bare(name) in _COLUMNS or _bare(name) == "label" for name in table.columns)


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower()) or name


def _nothing(table: LabelTable, scans: Sequence[Scan], columns: Iterable[str]) -> DataError:
    has = [kind for kind in KEYS if kind == "file" or any(getattr(scan, kind) for scan in scans)]
    names = listed([scan.path for scan in scans], 3)
    return DataError(
        f"No row of {table.path} means a scan of this source. Tried: {', '.join(dict.fromkeys(columns))}. The "
        f"scans are known by {', '.join(has)}, their files are: {names}. Check that the table belongs to these scans, "
        "that a spreadsheet did not take leading zeros off, or name the key column with --key."
    )


@dataclass(slots=True)
class _Collected:
    labels: dict[int, tuple[str, ...]] = field(default_factory=dict)
    patients: dict[int, str] = field(default_factory=dict)
    said: dict[int, int] = field(default_factory=dict)


def _told(table: LabelTable, match: _Match, columns: Sequence[str]) -> Joined:
    patient = next((name for name in table.columns if "patient" in _COLUMNS.get(_bare(name), ())), "")
    got, orphans, ambiguous, conflicts = _Collected(), [], [], []
    for number, cells, found in match.rows:
        if found is None:
            ambiguous.append(match.shown(number, cells))
            continue
        if not found:
            orphans.append(match.shown(number, cells))
        label = _label(table, number, [cells[column] for column in columns], columns)
        for at in found:
            if label and got.labels.setdefault(at, label) != label:
                conflicts.append(f"rows {got.said[at]} and {number}")
            if label:
                got.said.setdefault(at, number)
            if patient and cells[patient]:
                got.patients.setdefault(at, cells[patient])
    if conflicts:
        shown = listed(list(dict.fromkeys(conflicts)))
        raise DataError(
            f"The table of labels {table.path} gives two labels for one {match.kind}: {shown}. "
            "Correct the table, or join by something finer (series_uid or file)."
        )
    if len(columns) == 1 and len(set(got.labels.values())) > MOST_CLASSES:
        count = len(set(got.labels.values()))
        raise DataError(
            f"The column {columns[0]} of {table.path} has {count} different values, which are no "
            "classes. Turn a measurement into classes first, or name another column with --label-column."
        )
    return Joined(match.kind, match.column, got.labels, got.patients, tuple(orphans), tuple(ambiguous))


def _label(table: LabelTable, number: int, values: list[str], columns: Sequence[str]) -> tuple[str, ...]:
    """The labels of a row; empty where none is given. Of several columns each must be 0 or 1."""
    if not any(values):
        return ()
    if len(columns) == 1:
        return (values[0],)
    read = {"0": "0", "0.0": "0", "1": "1", "1.0": "1"}
    for value, column in zip(values, columns, strict=True):
        if value not in read:
            raise DataError(
                f"The table of labels {table.path}, row {number}, column {column}: the value is not 0 or 1. Where "
                "several label columns are given, each says whether its finding is there."
            )
    return tuple(read[value] for value in values)
