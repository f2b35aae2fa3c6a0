"""May these cases be trained on? Patients across splits, absent splits and classes, files that are not there."""

from __future__ import annotations

import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from numpy.lib import format as npy

from medopt.config import Study
from medopt.errors import ConfigError, DataError, listed
from medopt.manifest.card import Card
from medopt.manifest.paths import npz_member
from medopt.records import SPLITS, Case

ACCEPTABLE = ("patient_overlap",)
"""Findings that a study may accept by name, in `data.accept`: they make a score too good, but leave it defined."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a study's data; a `note` was accepted by the study and goes into its report."""

    name: str
    severity: Literal["refuse", "note"]
    text: str


def check_cases(cases: Sequence[Case], folder: Path, study: Study, card: Card | None = None) -> list[Finding]:
    """Everything that is wrong with the cases of a study whose images lie in `folder`.

    Findings named in `study.data.accept` come back as notes. Raises ConfigError where that names no acceptable finding.
    """
    for name in study.data.accept:
        if name not in ACCEPTABLE:
            near = get_close_matches(name, ACCEPTABLE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a study may accept {', '.join(ACCEPTABLE)}."
            raise ConfigError(f"data.accept: {name!r} is not a finding that can be accepted: {hint}")
    found = [*_patients(cases), *_splits(cases, study), *_files(cases, folder, study, card)]
    return [replace(item, severity="note") if item.name in study.data.accept else item for item in found]


def refuse(findings: Iterable[Finding], study: Study) -> None:
    """Raise DataError with every finding that is to be refused, if there is one."""
    texts = [f"{item.name}: {item.text}" for item in findings if item.severity == "refuse"]
    if texts:
        raise DataError(f"The data of study {study.name} are refused. " + " ".join(texts))


def _patients(cases: Sequence[Case]) -> Iterable[Finding]:
    """Patients who stand in more than one split."""
    seen: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        seen[case.patient_id].setdefault(case.split, case.image)
    overlap = {patient: splits for patient, splits in seen.items() if len(splits) > 1}
    if overlap:
        shown = [
            f"patient {patient} (a pseudonym) in " + ", ".join(f"{split} ({image})" for split, image in splits.items())
            for patient, splits in overlap.items()
        ]
        yield Finding(
            "patient_overlap",
            "refuse",
            f"{len(overlap)} of {len(seen)} patients stand in more than one split, so that scores are too good: "
            f"{listed(shown)}. Put all images of a patient into one split.",
        )


def _splits(cases: Sequence[Case], study: Study) -> Iterable[Finding]:
    """Splits without a case, and classes without a case in a split that has some."""
    for split in SPLITS:
        inside = [case.label for case in cases if case.split == split]
        if not inside:
            yield Finding(
                "split_absent", "refuse", f"No case is in the split {split}. Train, val and test are all needed."
            )
            continue
        absent = _absent_classes(inside, study)
        if absent:
            yield Finding(
                "class_absent",
                "refuse",
                f"The split {split} ({len(inside)} cases) has no case of {listed(absent)}, so that no AUC can be had "
                "there. Split anew, stratified by label, or take the class out of data.labels.",
            )


def _absent_classes(inside: list[tuple[int, ...]], study: Study) -> list[str]:
    names = study.data.labels
    if study.data.task == "multilabel":
        columns = zip(names, zip(*inside, strict=True), strict=True)
        return [f"{name} = {value}" for name, column in columns for value in (0, 1) if value not in column]
    present = Counter(label[0] for label in inside)
    return [name for index, name in enumerate(names) if not present[index]]


def _files(cases: Sequence[Case], folder: Path, study: Study, card: Card | None) -> Iterable[Finding]:
    """Images that are not where the manifest says."""
    shapes: dict[str, Shapes | str] = {}
    faults = [fault for case in cases if (fault := _fault(folder, case.image, shapes))]
    if faults:
        shown = listed(list(dict.fromkeys(faults)))
        elsewhere = "If they lie elsewhere, give the folder above with --data DIR or MEDOPT_DATA."
        way_out = f"{elsewhere} {card.how_to_get(study.name)}" if card else elsewhere
        yield Finding(
            "file_missing",
            "refuse",
            f"{len(faults)} of {len(cases)} images cannot be read below {folder}: {shown}. {way_out}",
        )


def _fault(folder: Path, image: str, shapes: dict[str, Shapes | str]) -> str:
    """The image and what is wrong with its file, without reading pixels; empty where nothing is."""
    member = npz_member(image)
    if member is None:
        place = folder / image
        series_of = folder / image.rpartition("#")[0]  # folder#SeriesInstanceUID
        fault = _file_fault(series_of if "#" in image and series_of.is_dir() else place)
        return fault and f"{image} ({fault})"
    if member.file not in shapes:
        shapes[member.file] = _file_fault(folder / member.file) or _npz_shapes(folder / member.file)
    arrays = shapes[member.file]
    if isinstance(arrays, str):
        return f"{member.file} ({arrays})"
    if member.array not in arrays:
        return f"{member.file} (has no array {member.array}, but {', '.join(arrays)})"
    count = arrays[member.array][0] if arrays[member.array] else 0
    return "" if member.row < count else f"{image} (the array has {count} images, counted from 0)"


def _file_fault(path: Path) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "empty file" if path.is_file() and not status.st_size else ""


def _npz_shapes(path: Path) -> Shapes | str:
    """Shapes of an `.npz` file's arrays from their headers alone, or why they cannot be had."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
                    shapes[name.removesuffix(".npy")] = read(stream)[0]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return f"not an .npz file: {error}"
    return shapes
