"""A study for a manifest that has none yet, with the labels of the manifest."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from medopt.config import Data, Prepare, Study
from medopt.core.errors import DataError
from medopt.manifest.table import OPTIONAL, read_header

_NOT_LABELS = frozenset({"image", "patient_id", "split", "fold", *OPTIONAL})


def infer_study(manifest: Path) -> Study:
    """A study with the labels of a manifest, sorted; its `prepare.size` has no meaning.

    Without a column `label`, all columns of zeros and ones are labels of a multi-label study. Raises DataError where
    the manifest has no label, or only one.
    """
    header = read_header(manifest)
    if not any(header):
        raise DataError(f"The manifest {manifest} is empty: it needs a header, and a row for each image.")
    names = ["label"] if "label" in header else [name for name in header if name and name not in _NOT_LABELS]
    values = _values(manifest, names)
    if names == ["label"]:
        labels = _sorted(values["label"])
        if len(labels) < 2:
            what = f"one label only, {labels[0]!r}" if labels else "no label in any row"
            raise DataError(f"The manifest {manifest} has {what}: there is nothing to tell apart.")
        task = "binary" if len(labels) == 2 else "multiclass"
    else:
        labels, task = [name for name in names if values[name] <= {"0", "1"}], "multilabel"
        if len(labels) < 2:
            raise DataError(
                f"The manifest {manifest} has no column label, nor columns of 0 and 1 that would be the labels of a "
                f"multi-label study. Found: {', '.join(header)}."
            )
    name = re.sub(r"[^a-z0-9_-]+", "-", manifest.stem.lower()).strip("-_")[:60] or "study"
    data = Data(manifest=manifest.name, labels=labels, task=task)
    return Study(name=name, question=_question(labels, task), data=data, prepare=Prepare(size=[32, 32]))


def _values(manifest: Path, names: list[str]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = defaultdict(set)
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream, skipinitialspace=True):
                for name in names:
                    values[name].add((row.get(name) or "").strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The manifest {manifest} cannot be read: {error}.") from None
    return values


# In a binary study the second label is the finding: names that usually mean its absence are sorted first.
_ABSENT = re.compile(r"^(0|no|none|neg(ative)?|normal|healthy|benign|control|absent|false)([_ -].*)?$", re.IGNORECASE)


def _sorted(values: Iterable[str]) -> list[str]:
    known = [value for value in values if value]
    numbers = all(value.lstrip("-").isdigit() for value in known)
    return sorted(known, key=lambda value: (not _ABSENT.match(value), int(value) if numbers else 0, value))


def _question(labels: list[str], task: str) -> str:
    if task == "binary":
        return f"Is it {labels[1]}, or {labels[0]}?"
    return f"Which of {', '.join(labels)}{' (each yes or no)' if task == 'multilabel' else ''}?"
