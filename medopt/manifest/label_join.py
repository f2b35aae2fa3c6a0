"""Join a table of labels to scans by patient, study, accession number, series or file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from unicodedata import normalize

from medopt.core.errors import DataError, listed
from medopt.core.privacy import pseudonym, public_path
from medopt.manifest.label_table import KEYS, Key, LabelTable
from medopt.manifest.label_words import MISSING, LabelSpellings, label_key, label_spellings
from medopt.manifest.numbers import number_spellings
from medopt.manifest.sources.scan_listing import Scan, scan_stem

MAX_CLASSES = 50


@dataclass(frozen=True, slots=True)
class JoinedLabels:
    """What the table says about the scans, by the index of the scan.

    `key` and `column` say how rows and scans were matched. `orphans` are rows without a scan and `ambiguous` rows that
    name several files, as texts without identifiers. `missing` are scans whose label is a word for no label, and
    `notes` say which spellings of labels were taken for one.
    """

    key: Key
    column: str
    labels: dict[int, tuple[str, ...]]
    patients: dict[int, str]
    orphans: tuple[str, ...]
    ambiguous: tuple[str, ...]
    missing: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def join_labels(
    table: LabelTable,
    scans: Sequence[Scan],
    label_columns: Sequence[str],
    key: str = "",
    rename: Mapping[str, str] | None = None,
    *,
    numbers: bool = False,
) -> JoinedLabels:
    """Match the rows of a table to scans by the column `key`, else by the column that matches most scans.

    Of columns that match equally many scans the finest key is taken. `rename` gives labels another name; `numbers`
    says that the label is a measurement. Raises
    DataError where no scan matches, where two rows give one scan different labels, and where the labels are not
    classes; ConfigError for columns that the table does not have.

    >>> from pathlib import Path
    >>> table = LabelTable(Path("labels.csv"), ("file", "label"), ((2, {"file": "a", "label": "benign"}),))
    >>> join_labels(table, [Scan("images/a.png", ("images/a.png",))], ["label"]).labels
    {0: ('benign',)}
    """
    columns = [table.column(name) for name in label_columns]
    best: RowMatches | None = None
    for column, candidate in table.key_columns(key):
        index = FileIndex(scans) if candidate == "file" else _IdentifierIndex(scans, candidate)
        match = RowMatches(candidate, column, tuple(index.find(cells[column]) for _, cells in table.rows))
        if best is None or len(match.scans) > len(best.scans):
            best = match
    if best is None or not best.scans:
        raise _no_match_error(table, scans, [column for column, _ in table.key_columns(key)])
    return labels_of_rows(table, best, columns, rename or {}, numbers=numbers)


@dataclass(frozen=True, slots=True)
class RowMatches:
    """The scans that each row of a table means, by index and by one column; None where a row may mean several."""

    key: Key
    column: str
    places: tuple[Sequence[int] | None, ...]

    @property
    def scans(self) -> set[int]:
        """The scans that a row means."""
        return {at for matches in self.places if matches for at in matches}

    def row_text(self, number: int, cells: Mapping[str, str]) -> str:
        """A row in words, without identifiers: files by name, all else by pseudonym."""
        value = cells[self.column]
        if self.key == "file":
            return f"row {number} ({value.replace(chr(92), '/').rpartition('/')[2] or 'empty'})"
        return f"row {number} ({self.key} {pseudonym(value)}, a pseudonym)" if value else f"row {number} (empty)"


class _IdentifierIndex:
    """Scans by one of their identifiers."""

    def __init__(self, scans: Sequence[Scan], key: Key) -> None:
        self._by_name: dict[str, list[int]] = defaultdict(list)
        for at, scan in enumerate(scans):
            value = normalize("NFC", str(getattr(scan, key)))
            for name in {value, value.removeprefix("sub-")}:  # tables of BIDS have either form
                self._by_name[name].append(at)

    def find(self, text: str) -> list[int] | None:
        return self._by_name.get(text, []) if text else []


class FileIndex:
    """Scans by path, by name or by name without suffix; None for a name that several scans have."""

    def __init__(self, scans: Sequence[Scan]) -> None:
        self._by_name: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for at, scan in enumerate(scans):
            for path in {scan.image, scan.path, *scan.files} if "#" not in scan.image else {scan.image, *scan.files}:
                plain = _plain(path)
                self._by_name[plain.rpartition("/")[2]].append((plain, at))

    def find(self, text: str) -> list[int] | None:
        """The scans that a path or a name means; None where a name is that of several."""
        path = text.replace("\\", "/").removeprefix("./")
        plain = _plain(path)
        similar = [
            (known, at)
            for known, at in self._by_name.get(plain.rpartition("/")[2], [])
            if known == plain or known.endswith(f"/{plain}") or plain.endswith(f"/{known}")
        ]
        exact = {at for known, at in similar if known == plain}
        matches = exact or {at for _, at in similar}
        return sorted(matches) if len(matches) < 2 else None


def _plain(path: str) -> str:
    """A path without the suffix of a scan, in lower case."""
    above, slash, name = normalize("NFC", path).rpartition("/")
    return f"{above}{slash}{scan_stem(name)}".lower()


def _no_match_error(table: LabelTable, scans: Sequence[Scan], columns: Iterable[str]) -> DataError:
    known = [key for key in KEYS if key == "file" or any(getattr(scan, key) for scan in scans)]
    names = listed([public_path(scan.path) for scan in scans], 3)
    return DataError(
        f"No row of {table.path} means a scan of this source. Tried: {', '.join(dict.fromkeys(columns))}. The "
        f"scans are known by {', '.join(known)}, their files are: {names}. Check that the table belongs to these scans "
        "and that a spreadsheet did not remove leading zeros, or name the key column with --key."
    )


def labels_of_rows(
    table: LabelTable, match: RowMatches, columns: Sequence[str], rename: Mapping[str, str], *, numbers: bool = False
) -> JoinedLabels:
    """The labels and the patients that the rows of a table give to the scans that they mean; raises as `join_labels`.

    `columns` are the label columns by their names in the table.
    """
    patient_column = table.patient_column("" if match.key != "patient" else match.column)
    spellings = LabelSpellings({})
    if len(columns) == 1:
        found = [cells[columns[0]] for _, cells in table.rows]
        spellings = number_spellings(found, columns[0]) if numbers else label_spellings(found, rename)
    labels: dict[int, tuple[str, ...]] = {}
    missing: dict[int, str] = {}
    patients: dict[int, str] = {}
    labelled_by: dict[int, int] = {}  # the first row that labels a scan
    orphans, ambiguous, conflicts, torn = [], [], [], []
    for (number, cells), matches in zip(table.rows, match.places, strict=True):
        if matches is None:
            ambiguous.append(match.row_text(number, cells))
            continue
        if not matches:
            orphans.append(match.row_text(number, cells))
        label = _row_labels(table, number, [cells[column] for column in columns], columns, spellings)
        for at in matches:
            if not label and cells[columns[0]]:
                missing[at] = cells[columns[0]]
            if label and labels.setdefault(at, label) != label:
                conflicts.append(f"rows {labelled_by[at]} and {number}")
            if label:
                labelled_by.setdefault(at, number)
            patient = cells[patient_column] if patient_column else ""
            if patient and patients.setdefault(at, patient) != patient:
                torn.append(f"row {number}")
    if torn:
        raise DataError(
            f"The table of labels {table.path}, column {patient_column}: {listed(torn)} give a scan another patient "
            "than an earlier row does. Correct the table."
        )
    _refuse_labels(table, match.key, columns, conflicts, set() if numbers else set(labels.values()))
    return JoinedLabels(
        match.key, match.column, labels, patients, tuple(orphans), tuple(ambiguous), missing, spellings.notes
    )


def _refuse_labels(
    table: LabelTable, key: Key, columns: Sequence[str], conflicts: Sequence[str], labels: set[tuple[str, ...]]
) -> None:
    """Refuse two labels for one scan, and measurements in place of classes."""
    if conflicts:
        raise DataError(
            f"The table of labels {table.path} gives two labels for one {key}: "
            f"{listed(list(dict.fromkeys(conflicts)))}. Correct the table, or join by series_uid or file."
        )
    if len(columns) == 1 and len(labels) > MAX_CLASSES:
        raise DataError(
            f"The column {columns[0]} of {table.path} has {len(labels)} different values, which are not classes. Where "
            "it is a measurement that the model is to predict, say --numbers; or name another column with "
            "--label-column."
        )


_FINDING = {"0": "0", "1": "1", "-1": "-1", "false": "0", "true": "1", "no": "0", "yes": "1", "uncertain": "-1"}


def _row_labels(
    table: LabelTable, number: int, values: list[str], columns: Sequence[str], spellings: LabelSpellings
) -> tuple[str, ...]:
    """The labels of a row; empty where the cells mean that there are none.

    Of several columns each must be 0, 1, -1 (uncertain) or missing, which becomes an empty cell.
    """
    if len(columns) == 1:
        name = spellings.classes[values[0]]
        return (name,) if name else ()
    keys = [label_key(value) for value in values]
    if all(key in MISSING for key in keys):
        return ()
    for key, column in zip(keys, columns, strict=True):
        if key not in _FINDING and key not in MISSING:
            raise DataError(
                f"The table of labels {table.path}, row {number}, column {column}: the value is not 0 or 1, nor "
                "-1 (uncertain) or empty (missing). Where several label columns are given, each says whether its "
                "finding is present."
            )
    return tuple(_FINDING.get(key, "") for key in keys)
