"""Images to learn from without labels: a manifest of which only `image` is needed, or a folder of scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args
from unicodedata import normalize

from medopt.core.errors import DataError, listed
from medopt.core.privacy import UNKNOWN_PATIENT, pseudonym
from medopt.core.records import Case, Label, Split, Task
from medopt.core.reporter import Reporter
from medopt.imaging.scan_path import npz_member, safe_relative_path
from medopt.manifest.csv_text import read_csv
from medopt.manifest.infer_study import is_finding
from medopt.manifest.label_words import label_key, label_spellings
from medopt.manifest.sources.find_scans import find_scans
from medopt.manifest.sources.scan_listing import SourceOptions, count_by_reason
from medopt.manifest.table import RESERVED, channels_of


@dataclass(frozen=True, slots=True)
class UnlabelledImages:
    """Images below `root`. Those without a label have none: `()`; without a split, all are in `train`.

    labels: names of the classes, or of the findings of a multi-label manifest; empty where there are no two.
    """

    cases: tuple[Case, ...]
    labels: tuple[str, ...] = ()
    task: Task = "binary"
    root: Path = Path()

    def of_split(self, split: Split) -> list[Case]:
        """The images of one split."""
        return [case for case in self.cases if case.split == split]


def read_images(manifest: Path) -> UnlabelledImages:
    """The images of a manifest, a UTF-8 CSV with the column image; patients, splits and labels where it has them.

    Without a patient each image is another patient's. Raises DataError naming the rows that cannot be used.
    """
    lines = read_csv(manifest, "The manifest")
    header = next(lines, (1, []))[1]
    if names := [] if "image" in header else channels_of(header):
        raise DataError(
            f"The manifest {manifest} has several images a case ({', '.join(names)}), and pretraining learns from "
            "single images: write them below each other, in one column image."
        )
    if "image" not in header:
        raise DataError(
            f"The manifest {manifest} has no column image; its first row has {', '.join(header) or 'none'}."
        )
    numbered = [(number, dict(zip(header, cells, strict=False))) for number, cells in lines]
    refused = [f"row {number}: {reason}" for number, row in numbered if (reason := _fault(row))]
    rows = [row for _, row in numbered]
    if refused or not rows:
        raise DataError(
            f"The manifest {manifest} cannot be used. {listed(refused) or 'It has no row below its header.'}"
        )
    columns = ["label"] if "label" in header else [name for name in header if _is_finding(name, rows)]
    if columns == ["label"]:
        classes = label_spellings([row.get("label", "") for row in rows]).classes
        rows = [row | {"label": classes[row.get("label", "")]} for row in rows]
    named = sorted({row["label"] for row in rows if row["label"]}) if columns == ["label"] else columns
    labels = tuple(named) if len(named) > 1 else ()
    task: Task = "multilabel" if columns != ["label"] else "binary" if len(labels) == 2 else "multiclass"
    return UnlabelledImages(tuple(_case(row, columns, labels) for row in rows), labels, task if labels else "binary")


def find_images(folder: Path, unpacked: Path, reporter: Reporter) -> UnlabelledImages:
    """The scans of a folder, a .zip (unpacked into `unpacked`), a MedMNIST archive or a datalist, with their labels.

    Raises DataError where there is no scan in it.
    """
    listing = find_scans(folder, unpacked, SourceOptions(), reporter)
    for reason, count, first in count_by_reason(listing.left_out):
        reporter.message(f"left out {count}: {reason} ({listed(first, 3)})")
    columns = list(listing.label_columns)
    single = len(columns) == 1
    classes = label_spellings([scan.labels[0] for scan in listing.scans if scan.labels]).classes if single else {}
    named = sorted({name for name in classes.values() if name}) if single else columns
    labels = tuple(named) if len(named) > 1 else ()
    cases = []
    for scan in listing.scans:
        cells = dict(zip(columns, (classes.get(cell, cell) for cell in scan.labels), strict=False))
        row = {"image": scan.image, "patient_id": scan.patient, "split": scan.split, "site": scan.site, **cells}
        cases.append(_case({"label": "", **row} if single else row, ["label"] if single else columns, labels))
    if not cases:
        raise DataError(f"{folder} holds no scan that could be learned from.")
    task: Task = "multilabel" if not single else "binary" if len(labels) == 2 else "multiclass"
    return UnlabelledImages(tuple(cases), labels, task if labels else "binary", listing.root)


def _fault(row: Mapping[str, str]) -> str:
    if not row.get("image"):
        return "the cell image is empty"
    if row.get("split", "") not in ("", *get_args(Split)):
        return f"the split {row['split']!r} is none of {', '.join(get_args(Split))}"
    try:
        npz_member(safe_relative_path(row["image"]))
    except ValueError as error:
        return str(error)
    return ""


def _is_finding(name: str, rows: Sequence[Mapping[str, str]]) -> bool:
    return bool(name) and name not in RESERVED and is_finding(row.get(name, "") for row in rows)


def _finding(cell: str) -> Label:
    """0 or 1; None where it is uncertain or missing."""
    return {"0": 0, "1": 1}.get(label_key(cell))


def _case(row: Mapping[str, str], columns: Sequence[str], labels: tuple[str, ...]) -> Case:
    cells = [row.get(name, "") for name in columns]
    patient = normalize("NFC", row.get("patient_id", ""))  # as in a manifest with labels
    label: tuple[Label, ...] = ()
    if labels and any(cells):
        label = (labels.index(cells[0]),) if columns == ["label"] else tuple(map(_finding, cells))
    return Case(
        case_id=pseudonym(row["image"]),
        patient_id=pseudonym(row["image"] if patient.lower() in UNKNOWN_PATIENT else patient),
        image=row["image"],
        label=label,
        split=cast(Split, row.get("split") or "train"),
        site=row.get("site") or "unknown",
    )
