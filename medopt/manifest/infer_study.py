"""A study for a manifest that has none yet, with the labels of the manifest."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from medopt.config import Data, Prepare, Study
from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.format import count_text
from medopt.manifest.csv_text import read_csv
from medopt.manifest.label_words import MISSING, absent_first, is_absence, label_key, label_spellings
from medopt.manifest.numbers import looks_like_number
from medopt.manifest.table import IMAGE, RESERVED, UNCERTAIN, read_channels_of, read_header


def infer_study(
    manifest: Path, rename: Mapping[str, str] | None = None, number: str = "", ordered: Sequence[str] = ()
) -> Study:
    """A study with the labels of a manifest, names for healthy first; its `prepare.size` has no meaning.

    `rename` gives labels another name in this study. `number` is a column of measurements; the column label is one
    where it holds many different numbers. `ordered` are the labels as grades, the lowest first. Without a column
    `label`, all columns of zeros and ones (and of -1 and empty cells beside them) are labels of a multi-label study.
    Raises DataError where the manifest has no label, or only one; ConfigError for a column or grades that it has not.
    """
    header = read_header(manifest)
    if not any(header):
        raise DataError(f"The manifest {manifest} is empty: it needs a header, and a row for each image.")
    names = ["label"] if "label" in header else [name for name in header if name and name not in RESERVED]
    values = _values(manifest, [*names, number] if number else names)
    if number and number not in header:
        raise ConfigError(f"--number {number}: the manifest {manifest} has no such column; it has {', '.join(header)}.")
    if number or (names == ["label"] and not ordered and looks_like_number(values["label"])):
        return _study(manifest, header, {"task": "regression", "number": {"column": number or "label"}})
    classes: dict[str, str] = {}
    if names == ["label"]:
        classes = _classes(manifest, values["label"], rename or {})
        labels = _sorted(set(classes.values()))
        if len(labels) < 2:
            what = f"one label only, {labels[0]!r}" if labels else "no label in any row"
            raise DataError(f"The manifest {manifest} has {what}: there is nothing to tell apart.")
        task = "binary" if len(labels) == 2 else "multiclass"
        if ordered:
            labels, task = _in_order(labels, ordered), "ordinal"
    else:
        if rename:
            raise ConfigError("--rename gives labels of the column label another name; here each column is a label.")
        labels, task = [name for name in names if is_finding(values[name])], "multilabel"
        if len(labels) < 2:
            raise DataError(
                f"The manifest {manifest} has no column label, nor columns of 0 and 1 (with -1 for uncertain "
                "and empty cells for missing) that would be the labels of a "
                f"multi-label study. Found: {', '.join(header)}."
            )
    changed = {cell: label for cell, label in classes.items() if cell != label}
    return _study(manifest, header, {"labels": labels, "task": task, "rename": changed})


def _in_order(labels: Sequence[str], ordered: Sequence[str]) -> list[str]:
    """The labels as `ordered` names them; raises ConfigError where it names others."""
    if sorted(labels) != sorted(ordered) or len(labels) < 3:
        raise ConfigError(f"--ordered names three grades or more, all of the manifest's labels: {', '.join(labels)}.")
    return list(ordered)


def _study(manifest: Path, header: Sequence[str], settings: Mapping[str, Any]) -> Study:
    name = re.sub(r"[^a-z0-9_-]+", "-", manifest.stem.lower()).strip("-_")[:60] or "study"
    data = Data(manifest=manifest.name, **settings)
    prepare = Prepare(size=[32, 32])
    if channels := read_channels_of(manifest, header):
        cells = _values(manifest, [f"{IMAGE}:{channel}" for channel in channels])
        empty = any("" in count for count in cells.values())
        prepare = Prepare(size=[32, 32], channels=channels, missing_channel="zeros" if empty else "refuse")
    return Study(name=name, question=_question(data.labels, data.task, data.number.name), data=data, prepare=prepare)


def _values(manifest: Path, names: list[str]) -> dict[str, Counter[str]]:
    values: dict[str, Counter[str]] = defaultdict(Counter)
    lines = read_csv(manifest, "The manifest")
    header = next(lines, (1, []))[1]
    used = [(at, name) for at, name in enumerate(header) if name in names]
    for _, cells in lines:
        for at, name in used:
            values[name][cells[at] if at < len(cells) else ""] += 1
    return values


def is_finding(cells: Iterable[str]) -> bool:
    """Whether these are the cells of a label of a multi-label study: 0, 1, -1 or missing, and not the latter alone."""
    keys = {label_key(cell) for cell in cells} - MISSING - {str(UNCERTAIN), "uncertain"}
    return bool(keys) and keys <= {"0", "1"}


def with_finding(study: Study, positive: str = "") -> Study:
    """The study with the finding as its second label: `positive`, else the one that is no word for healthy.

    Only a binary study has one. Raises DataError where neither or both labels say that the finding is absent,
    ConfigError where `positive` is no label.
    """
    labels = study.data.labels
    if study.data.task != "binary":
        if positive:
            raise ConfigError(f"--positive {positive}: only a study of two labels has a finding; these are {labels}.")
        return study
    if positive:
        chosen = [label for label in labels if label_key(label) == label_key(positive)]
        if not chosen:
            raise ConfigError(
                f"--positive {positive} is not a label of the manifest, which has {labels[0]} and {labels[1]}."
            )
        ordered: list[str] | None = [label for label in labels if label not in chosen] + chosen
    else:
        ordered = absent_first(labels)
    if ordered is None:
        raise DataError(
            f"Which of the labels {labels[0]!r} and {labels[1]!r} is the finding? It decides what sensitivity means, "
            f"and their names do not say it. Give it: --positive {quote(labels[1])}, or --positive {quote(labels[0])}."
        )
    data = study.data.model_copy(update={"labels": ordered})
    return study.model_copy(update={"data": data, "question": _question(ordered, "binary")})


def _sorted(values: Iterable[str]) -> list[str]:
    known = [value for value in values if value]
    numbers = all(value.lstrip("-").isdigit() for value in known)
    ordered = sorted(known, key=lambda value: (not is_absence(value), int(value) if numbers else 0, value))
    return (absent_first(ordered) if len(ordered) == 2 else None) or ordered


def _classes(manifest: Path, count: Mapping[str, int], rename: Mapping[str, str]) -> dict[str, str]:
    """What each cell of the column `label` is called; refuses cells without a label, and one label in two spellings."""
    as_it_is = {cell: cell for cell in count if label_key(cell) == "none"}  # a manifest's cells are its labels
    spellings = label_spellings(count, as_it_is | dict(rename))
    if missing := sorted(cell for cell, name in spellings.classes.items() if not name):
        number = sum(count[cell] for cell in missing)
        raise DataError(
            f"The manifest {manifest} has {count_text(number, 'row')} without a label ("
            f"{', '.join(map(repr, missing))}). "
            "Remove these rows, or write their labels."
        )
    merged = defaultdict(list)
    for cell in sorted(count):
        merged[label_key(cell)].append(cell)
    if twice := [f"{' and '.join(map(repr, cells))}" for cells in merged.values() if len(cells) > 1]:
        raise DataError(f"The manifest {manifest} writes labels in several ways: {listed(twice)}. Write one of them.")
    return {cell: name if rename else cell for cell, name in spellings.classes.items()}


def _question(labels: list[str], task: str, number: str = "") -> str:
    if task == "regression":
        return f"What is the {number}?" if number != "label" else "Which number belongs to the scan?"
    if task == "ordinal":
        return f"Which grade is it: {', '.join(labels)}?"
    if task == "binary":
        return f"Is it {labels[1]}, or {labels[0]}?"
    return f"Which of {', '.join(labels)}{' (each yes or no)' if task == 'multilabel' else ''}?"
