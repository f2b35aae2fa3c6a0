"""A manifest CSV becomes cases: patients are pseudonyms from the first moment, and what is unclear is refused."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from medopt.config import Study
from medopt.core.errors import DataError, listed
from medopt.core.files import atomic
from medopt.core.privacy import pseudonym
from medopt.core.records import SPLITS, Case
from medopt.imaging.scan_path import below, npz_member

OPTIONAL = ("site", "study_uid", "series_uid", "age", "sex", "case_id")
GROUPS = ("sex", "age")
NO_PATIENT = frozenset(
    {"", "na", "n/a", "nan", "none", "null", "unknown", "anonymous", "anonymized", "anonymised", "?", "-"}
)
"""What stands in a patient column where nobody knows the patient."""

Cells = dict[str, str]


def read_manifest(path: str | Path, study: Study, *, of_run: bool = False) -> tuple[Case, ...]:
    """Read a manifest for a study: a UTF-8 CSV with the columns image, patient_id, label and split.

    A multi-label study has one 0/1 column a label instead of `label`. `site`, `study_uid`, `series_uid` and `case_id`
    are read where present; `age`, `sex` and the columns that `data.subgroups` names become the case's groups. Other
    columns may stand there and are not used. `case_id` is the image's pseudonym where the manifest gives none. A
    manifest `of_run` is one that `write_run_manifest` wrote: its identifiers are pseudonyms already. Raises DataError
    naming the file, the rows and the columns.

    >>> import medopt
    >>> manifest = medopt.draw_study("phantom-data/phantom", patients=30)
    >>> study = medopt.Study(
    ...     name="nodules",
    ...     question="Is there a nodule?",
    ...     data={"manifest": "manifest.csv", "labels": ["no_nodule", "nodule"]},
    ...     prepare={"size": [96, 96]},
    ... )
    >>> cases = medopt.read_manifest(manifest, study)
    >>> len(cases), cases[0].label, cases[0].split
    (35, (0,), 'test')
    """
    path = Path(path)
    labels = _label_columns(study)
    read_label = _label_reader(study)
    faults = _Faults(path)
    grouping = dict.fromkeys((*GROUPS, *study.data.subgroups))
    hide = str if of_run else pseudonym
    cases = []
    for number, cells in _rows(path, [*required_columns(study), *study.data.subgroups], faults):
        image = faults.read(number, "image", cells, _image)
        given = cells.get("case_id") or image or ""
        case = Case(
            case_id=hide(given),
            patient_id=hide(faults.read(number, "patient_id", cells, _patient) or ""),
            image=image or "",
            label=tuple(faults.read(number, column, cells, read_label) for column in labels),
            split=faults.read(number, "split", cells, _split),
            site=cells.get("site") or "unknown",
            study_uid=cells.get("study_uid", ""),
            series_uid=cells.get("series_uid", ""),
            groups=tuple((name, cells[name]) for name in grouping if cells.get(name)),
        )
        faults.patients.add(case.patient_id)
        faults.once(number, "image", case.image, f"({case.image})")
        if "case_id" in cells:
            faults.once(number, "case_id", case.case_id)
        cases.append(case)
    faults.refuse()
    if not cases:
        raise DataError(f"The manifest {path} is empty: it needs a row for each image below its header.")
    return tuple(cases)


def required_columns(study: Study) -> list[str]:
    """The columns that a manifest of this study must have."""
    return ["image", "patient_id", *_label_columns(study), "split"]


def _label_columns(study: Study) -> list[str]:
    return study.data.labels if study.data.task == "multilabel" else ["label"]


@dataclass(slots=True)
class _Faults:
    """The cells of a manifest that cannot be used. What is told of them never shows a patient's identifier."""

    path: Path
    patients: set[str] = field(default_factory=set)
    found: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    first: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, number: int, column: str, text: str, reason: str) -> None:
        self.found.setdefault(column, []).append((number, text, reason))

    def read(self, number: int, column: str, cells: Cells, reader: Callable[[str], Any]) -> Any:
        """What `reader` makes of a cell, or None where it refuses with a ValueError."""
        try:
            return reader(cells[column])
        except ValueError as error:
            self.add(number, column, cells[column], str(error))

    def once(self, number: int, column: str, value: str, shown: str = "") -> None:
        """Note a value that an earlier row has."""
        earlier = self.first.setdefault((column, value), number)
        if value and earlier != number:
            self.add(number, column, "", f"the same as row {earlier} {shown}".rstrip())

    def refuse(self) -> None:
        """Raise DataError with what was found, by column."""
        if self.found:
            columns = [
                f"{column}: {listed([self._told(*fault) for fault in faults])}."
                for column, faults in self.found.items()
            ]
            raise DataError(f"The manifest {self.path} cannot be used. " + " ".join(columns))

    def _told(self, number: int, text: str, reason: str) -> str:
        if text and pseudonym(text) in self.patients:
            return f"row {number}: (the value is a patient_id too and is not shown) {reason}"
        return f"row {number}: {text!r} {reason}" if text else f"row {number}: {reason}"


def read_header(path: Path) -> list[str]:
    """The names of a manifest's columns. Raises DataError where it cannot be read as UTF-8 text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return [cell.strip() for cell in next(csv.reader(stream), [])]
    except OSError as error:
        raise DataError(f"The manifest {path} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"The manifest {path} is not a CSV in UTF-8.") from None


def _rows(path: Path, required: list[str], faults: _Faults) -> Iterator[tuple[int, Cells]]:
    """The rows as dictionaries of stripped cells, numbered as a spreadsheet does; blank rows are skipped."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(path, header, required)
            known = {*required, *OPTIONAL}
            kept = [(at, name) for at, name in enumerate(header) if name in known]
            for number, cells in enumerate(reader, start=2):
                if len(cells) == len(header) and any(cells):
                    yield number, {name: cells[at].strip() for at, name in kept}
                elif any(cells):
                    reason = f"{len(cells)} cells under a header of {len(header)}; a comma inside a value needs quotes"
                    faults.add(number, "whole row", "", reason)
    except OSError as error:
        raise DataError(f"The manifest {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(
            f"The manifest {path} is not UTF-8 text: save it as CSV in UTF-8, not as a spreadsheet."
        ) from None
    except csv.Error as error:
        raise DataError(f"The manifest {path} is not a CSV: {error} (line {reader.line_num}).") from None


def _check_header(path: Path, header: list[str], required: list[str]) -> None:
    wanted = ", ".join(required)
    if not any(header):
        raise DataError(f"The manifest {path} is empty: it needs the columns {wanted}, and a row for each image.")
    if len(header) == 1 and re.search(r"[;\t]", header[0]):
        raise DataError(f"The manifest {path} separates its columns with semicolons or tabs: save it with commas.")
    plain = {_plain(name): name for name in (*required, *OPTIONAL)}
    renamed = [f"{n!r}: did you mean {plain[_plain(n)]}?" for n in header if plain.get(_plain(n), n) != n]
    if renamed:
        raise DataError(
            f"The manifest {path} has columns under another name. {' '.join(renamed)} Rename them in row 1."
        )
    missing = [name for name in required if name not in header]
    if len(missing) == len(required):  # row 1 may be data, with a patient in it: show none of it
        raise DataError(f"The manifest {path} has no header: row 1 must name the columns {wanted}.")
    if missing:
        raise DataError(
            f"The manifest {path} has no column {', '.join(missing)}. Found: {', '.join(header)}. Needed: {wanted}. "
            "Nothing stands in for a patient_id: a patient in two splits makes every score too good."
        )
    twice = sorted({name for name in header if name in plain.values() and header.count(name) > 1})
    if twice:
        raise DataError(f"The manifest {path} has the column {', '.join(twice)} more than once: keep one.")


def _plain(name: str) -> str:
    """A column's name without case and punctuation: `Patient ID` and `patient_id` are the same."""
    return re.sub(r"[\W_]+", "", name.lower()) or name


def _patient(text: str) -> str:
    if text.lower() in NO_PATIENT:
        raise ValueError("no patient is given, so that a patient in two splits could not be found")
    return text


def _image(text: str) -> str:
    if not text:
        raise ValueError("the cell is empty")
    image = below(text)
    npz_member(image)
    return image


def _choice(text: str, known: Iterable[str]) -> int:
    """Where `text` stands among the known names."""
    names = list(known)
    if text in names:
        return names.index(text)
    if not text:
        raise ValueError(f"the cell is empty; known are {', '.join(names)}")
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(text.lower(), lower, n=1, cutoff=0.4)
    raise ValueError(
        "is not known: " + (f"did you mean {lower[near[0]]}? " if near else "") + f"known are {', '.join(names)}"
    )


@cache
def _split(text: str) -> str:
    return SPLITS[_choice(text, SPLITS)]


def _label_reader(study: Study) -> Callable[[str], int]:
    known = ("0", "1") if study.data.task == "multilabel" else tuple(study.data.labels)
    return cache(lambda text: _choice(text, known))  # few texts, many rows


def write_run_manifest(path: Path, cases: Iterable[Case], study: Study) -> None:
    """Write the manifest that a run used: pseudonyms for patients and UIDs, labels by name, whole or not at all.

    Raises StorageError where the disk is full or the folder may not be written to.
    """
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        labels = _label_columns(study)
        grouping = [*GROUPS, *(name for name in study.data.subgroups if name not in GROUPS)]
        known = ["case_id", "image", "patient_id", "site", *labels, "split", "study_uid", "series_uid"]
        writer.writerow([*known, *grouping])
        for case in cases:
            named = case.label if study.data.task == "multilabel" else [study.data.labels[case.label[0]]]
            uids = [_hidden(uid) for uid in (case.study_uid, case.series_uid)]
            groups = [dict(case.groups).get(name, "") for name in grouping]
            writer.writerow([case.case_id, case.image, case.patient_id, case.site, *named, case.split, *uids, *groups])


def manifest_digest(cases: Iterable[Case]) -> str:
    """SHA-256 of what the cases say, whatever their order."""
    content = attrgetter(*(column.name for column in fields(Case) if column.name != "groups"))
    found = hashlib.sha256()
    for row in sorted((*content(case), *case.groups) for case in cases):
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


def training_digest(cases: Iterable[Case], *, of_run: bool = False) -> str:
    """SHA-256 of what training reads of the cases: all but their subgroups, with UIDs as pseudonyms.

    The cases `of_run` are those of a run's own manifest, whose UIDs are pseudonyms already.
    """
    hide = str if of_run else _hidden
    return manifest_digest(
        replace(case, groups=(), study_uid=hide(case.study_uid), series_uid=hide(case.series_uid)) for case in cases
    )


def _hidden(uid: str) -> str:
    return pseudonym(uid) if uid else ""
