"""Read a manifest CSV as cases: patients become pseudonyms at once, and what is unclear is refused."""

from __future__ import annotations

import difflib
import gc
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any
from unicodedata import normalize

from medopt.config import Study
from medopt.config.data import CHANNEL_NAME, MAX_CHANNELS
from medopt.core.errors import DataError
from medopt.core.privacy import UNKNOWN_PATIENT, pseudonyms
from medopt.core.records import SPLITS, Case, Label
from medopt.imaging.scan_path import npz_member, safe_relative_path
from medopt.manifest.cell_faults import CellFaults, Cells
from medopt.manifest.covariates import read_covariate
from medopt.manifest.csv_text import read_csv
from medopt.manifest.label_words import MISSING, label_key
from medopt.manifest.numbers import number_reader, sided

OPTIONAL = ("site", "study_uid", "series_uid", "age", "sex", "case_id")
RESERVED = frozenset({"image", "patient_id", "split", "fold", *OPTIONAL})
"""Columns of a manifest that cannot be names of labels."""
IMAGE = "image"
UNCERTAIN = -1
"""A cell of a label column that says neither yes nor no."""
GROUPS = ("sex", "age")

BLOCK = 4096  # rows that are read at once


def read_manifest(path: str | Path, study: Study, *, from_run: bool = False) -> tuple[Case, ...]:
    """Read a manifest for a study: a UTF-8 CSV with the columns image, patient_id, label and split.

    A study with named channels has a column image:NAME for each instead of `image`.
    A regression study has the column that `data.number` names, a number in every row, in place of `label`; the
    label of its cases says on which side of the threshold they lie. A multi-label study has one 0/1 column for each
    label instead of `label`: an empty cell is a label that is not known, -1 an uncertain one, which
    `data.uncertain` says how to take. `site`, `study_uid`, `series_uid` and `case_id` are read where present;
    `age`, `sex` and the columns that `data.subgroups` names become the groups of the case, those of
    `data.covariates` its covariates; others are ignored. `case_id` is the pseudonym of the image path where the
    manifest gives none. With `from_run`, the manifest is one that `write_run_manifest` wrote: its identifiers are
    pseudonyms already. Raises DataError naming the file, the rows and the columns.

    >>> import tempfile
    >>> from medopt.config import Data, Prepare
    >>> study = Study(
    ...     name="lesions", question="Malignant?", prepare=Prepare(size=[64, 64]),
    ...     data=Data(manifest="manifest.csv", labels=["benign", "malignant"]),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "manifest.csv"
    ...     _ = file.write_text("image,patient_id,label,split\\na.png,P1,malignant,train\\n")
    ...     (case,) = read_manifest(file, study)
    >>> case.image, case.label, case.split
    ('a.png', (1,), 'train')
    """
    path, hide = Path(path), list if from_run else pseudonyms
    faults, cases, rows = CellFaults(path), list[Case](), array("q")
    reader, columns = _CaseReader(study, hide, faults), image_columns(study)
    with _without_collector():
        for numbers, cells in _blocks(path, [*required_columns(study), *study.data.subgroups], faults):
            cases += reader.cases(numbers, cells)
            rows.extend(numbers)
    faults.add_repeated(rows, columns, cases, lambda case: case.channels or (case.image,), shown=True)
    if "case_id" in faults.header:
        faults.add_repeated(rows, ["case_id"], cases, lambda case: (case.case_id,))
    faults.refuse({case.patient_id for case in cases} if faults.by_column else set())
    if not cases:
        raise DataError(f"The manifest {path} is empty: it needs a row for each image below its header.")
    return sided(cases, study.data.number) if study.data.task == "regression" else tuple(cases)


@contextmanager
def _without_collector() -> Iterator[None]:
    """No search for cycles while cases are made, which have none: among a million it takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _CaseReader:
    """Reads rows as cases column by column, some thousands at a time: a million rows take half the time so.

    Equal texts of such a block become one object, and so do equal labels: cases take two thirds of the memory.
    """

    def __init__(self, study: Study, hide: Callable[[Iterable[str]], list[str]], faults: CellFaults) -> None:
        self.study, self.hide, self.faults = study, hide, faults
        self.is_number = study.data.task == "regression"
        self.labels, self.images, self.groups = label_columns(study), image_columns(study), group_columns(study)
        self.read_label, self.read_image = _reader_of(study), _image_reader(study)
        self.read_patient = cache(lambda text: hide([_patient(text)])[0])  # each of whom has several rows
        of_uncertain = {"negative": 0, "positive": 1}.get(study.data.uncertain)
        self.label_of = cache(lambda cells: tuple(of_uncertain if one == UNCERTAIN else one for one in cells))
        self.uncertain_of = cache(lambda cells: tuple(at for at, one in enumerate(cells) if one == UNCERTAIN))

    def cases(self, numbers: Sequence[int], cells: Cells) -> Iterator[Case]:
        """The cases of some rows; what cannot be read is a fault."""
        once: dict[Any, Any] = {}
        none: Iterable[Any] = repeat(())

        def shared(name: str) -> list[str]:
            return [once.setdefault(cell, cell) for cell in cells[name]] if name in cells else [""] * len(numbers)

        def rows(columns: list[Any]) -> Iterable[Any]:
            return zip(*columns, strict=True) if columns else none

        covariates, read = self.study.data.covariates, self.faults.read
        for one in covariates:
            read(numbers, one.column, cells, partial(read_covariate, one))
        first, images = self._images(numbers, cells)
        own = (
            (one or image for one, image in zip(cells["case_id"], first, strict=True)) if "case_id" in cells else first
        )
        label = list(rows([read(numbers, column, cells, self.read_label) for column in self.labels]))
        groups = [[(name, cell) if cell else () for cell in shared(name)] for name in self.groups if name in cells]
        return map(
            Case,
            self.hide(own),
            read(numbers, "patient_id", cells, self.read_patient, ""),
            first,
            repeat((0,)) if self.is_number else map(self.label_of, label),
            read(numbers, "split", cells, _split),
            [site or "unknown" for site in shared("site")],
            shared("study_uid"),
            shared("series_uid"),
            (once.setdefault(pairs, pairs) for row in rows(groups) for pairs in [tuple(filter(None, row))]),
            none if self.is_number else map(self.uncertain_of, label),
            rows(images if len(images) > 1 else []),
            [number for (number,) in label] if self.is_number else repeat(None),
            rows([shared(one.column) for one in covariates]),
        )

    def _images(self, numbers: Sequence[int], cells: Cells) -> tuple[list[str], list[list[str]]]:
        """The first image of each case, and all of them by column."""
        images = [self.faults.read(numbers, column, cells, self.read_image, "") for column in self.images]
        first = images[0] if len(images) == 1 else [next(filter(None, some), "") for some in zip(*images, strict=True)]
        for number, image in zip(numbers, first, strict=True):
            if not image:
                self.faults.add(number, self.images[0], "", "the case has no image")
        return first, images


def required_columns(study: Study) -> list[str]:
    """The columns that a manifest of this study must have."""
    covariates = [one.column for one in study.data.covariates]
    return list(dict.fromkeys([*image_columns(study), "patient_id", *label_columns(study), "split", *covariates]))


def image_columns(study: Study) -> list[str]:
    """The columns of a manifest that hold the images of this study: image, or image:NAME for each named channel."""
    return [f"{IMAGE}:{name}" for name in study.prepare.channel_names] or [IMAGE]


def group_columns(study: Study) -> list[str]:
    """The columns that define subgroups: never one that holds what is asked for."""
    named = dict.fromkeys((*GROUPS, *study.data.subgroups))
    return [name for name in named if name not in label_columns(study)]


def single_images(case: Case) -> list[Case]:
    """Each image of a case of several that is there, as a case of its own; else the case itself."""
    return [replace(case, image=image, channels=()) for image in case.channels if image] or [case]


def channels_of(header: Iterable[str]) -> list[str]:
    """The names of the channels whose columns, image:NAME, stand in a header."""
    return [name.removeprefix(f"{IMAGE}:") for name in header if name.startswith(f"{IMAGE}:")]


def read_channels_of(path: Path, header: Iterable[str]) -> list[str]:
    """The names of the channels in the header of a table; raises DataError for names that a study cannot have."""
    names = channels_of(header)
    reason = ""
    if bad := [name for name in names if not re.fullmatch(CHANNEL_NAME, name)]:
        form = "at most 31 letters, digits, - and _, the first of them a letter or a digit"
        reason = f"{bad[0]!r} cannot be the name of an image; use {form}"
    elif len({name.lower() for name in names}) < len(names):
        reason = "two of the names are the same, or differ in capitals alone"
    elif len(names) == 1:
        reason = "a case of several images needs two columns or more. If a case is one image, call the column image"
    elif len(names) > MAX_CHANNELS:
        reason = f"a case has at most {MAX_CHANNELS} images"
    if reason:
        columns = ", ".join(f"{IMAGE}:{name}" for name in names)
        raise DataError(f"{path}, row 1: the columns {columns} cannot be used: {reason}.")
    return names


def label_columns(study: Study) -> list[str]:
    """The columns of a manifest that hold the labels of this study."""
    if study.data.task == "regression":
        return [study.data.number.column]
    return study.data.labels if study.data.task == "multilabel" else ["label"]


def read_header(path: Path) -> list[str]:
    """The names of the columns of a manifest. Raises DataError where it is not a CSV in UTF-8."""
    return next(read_csv(path, "The manifest"), (1, []))[1]


def _blocks(path: Path, required: list[str], faults: CellFaults) -> Iterator[tuple[list[int], Cells]]:
    """Rows, some thousands at a time: their numbers as in a spreadsheet, and their cells by column.

    Blank rows are skipped; one that is longer or shorter than the header is a fault.
    """
    lines = read_csv(path, "The manifest")
    faults.header = header = next(lines, (1, []))[1]
    _check_header(path, header, required)
    known = {*required, *OPTIONAL}
    used = [(at, name) for at, name in enumerate(header) if name in known]
    while block := list(islice(lines, BLOCK)):
        whole = [line for line in block if len(line[1]) == len(header)]
        for number, cells in block if len(whole) < len(block) else ():
            if len(cells) != len(header):
                reason = f"{len(cells)} cells under a header of {len(header)}; a comma inside a value needs quotes"
                if len(cells) == 1:
                    reason += ", and rows need the separator of the header: save it with commas"
                faults.add(number, "whole row", "", reason)
        if whole:
            columns = list(zip(*(cells for _, cells in whole), strict=True))
            yield [number for number, _ in whole], {name: columns[at] for at, name in used}


def _check_header(path: Path, header: list[str], required: list[str]) -> None:
    needed = ", ".join(required)
    if not any(header):
        raise DataError(f"The manifest {path} is empty: it needs the columns {needed}, and a row for each image.")
    plain = {_normalized(name): name for name in (*required, *OPTIONAL)}
    renamed = [f"{n!r}: did you mean {plain[_normalized(n)]}?" for n in header if plain.get(_normalized(n), n) != n]
    if renamed:
        raise DataError(
            f"The manifest {path} has columns under another name. {' '.join(renamed)} Rename them in row 1."
        )
    missing = [name for name in required if name not in header]
    if f"{IMAGE}" in missing and (named := channels_of(header)):
        raise DataError(
            f"The manifest {path} has several images a case ({', '.join(named)}): write prepare.channels: "
            f"[{', '.join(named)}] into the study file."
        )
    if len(missing) == len(required):  # row 1 may be data with a patient in it: it is not shown
        raise DataError(f"The manifest {path} has no header: row 1 must name the columns {needed}.")
    if missing:
        raise DataError(
            f"The manifest {path} has no column {', '.join(missing)}. Found: {', '.join(header)}. Needed: {needed}. "
            "Nothing replaces a patient_id: a patient in two splits makes every score too good."
        )
    repeated = sorted({name for name in header if name in plain.values() and header.count(name) > 1})
    if repeated:
        raise DataError(f"The manifest {path} has the column {', '.join(repeated)} more than once: keep one.")


def _normalized(name: str) -> str:
    """The name of a column without case and punctuation, so that `Patient ID` equals `patient_id`."""
    return re.sub(r"[\W_]+", "", name.lower()) or name


def _patient(text: str) -> str:
    if text.lower() in UNKNOWN_PATIENT:
        raise ValueError("no patient is given, so a patient in two splits could not be detected")
    return normalize("NFC", text)


def _image(text: str) -> str:
    if not text:
        raise ValueError("the cell is empty")
    image = safe_relative_path(text)
    npz_member(image)
    return image


def _image_reader(study: Study) -> Callable[[str], str]:
    """Reads the path of an image; of a case of several one may be missing where the study says so."""
    may_miss = study.prepare.missing_channel == "zeros"
    return lambda text: _image(text) if text or not may_miss else ""


def _choice(text: str, choices: Iterable[str]) -> int:
    """The index of `text` in the known names; raises ValueError with the nearest one."""
    names = list(choices)
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


def _finding_reader() -> Callable[[str], Label]:
    """Reads cells of zeros and ones, in any form of the number; UNCERTAIN, and None where a label is missing."""

    def read(text: str) -> Label:
        key = label_key(text).replace("uncertain", str(UNCERTAIN))
        return None if key in MISSING else (0, 1, UNCERTAIN)[_choice(key, ("0", "1", str(UNCERTAIN)))]

    return cache(read)


def _reader_of(study: Study) -> Callable[[str], Any]:
    """Reads the cells of a study's labels, or of its number."""
    if study.data.task == "regression":
        return number_reader(study.data.number)
    return _finding_reader() if study.data.task == "multilabel" else _label_reader(study)


def _label_reader(study: Study) -> Callable[[str], int]:
    known = tuple(study.data.labels)
    rename: Mapping[str, str] = study.data.rename
    return cache(lambda text: _choice(rename.get(text) or text, known))  # few different texts in many rows
