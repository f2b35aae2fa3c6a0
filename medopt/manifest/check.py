"""May these cases be trained on? Patients across splits, absent splits and classes, files that are not there.

All of it from the manifest and file headers alone, so that a million rows take seconds. What needs pixels stands in
`quality` and `duplicates`.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.privacy import pseudonym
from medopt.core.records import SPLITS, Case
from medopt.imaging.scan_path import npz_member, split_part
from medopt.manifest.card import Card

ACCEPTABLE = (
    "patient_overlap",
    "exact_duplicates",
    "near_duplicates",
    "label_conflict",
    "site_predicts_label",
    "minority_modality",
)
"""Findings that a study may accept by name, in `data.accept`: they make a score wrong, but leave it defined."""

ACCEPTED = "accepted by the study"

CONFOUNDED, NOTED = 0.8, 0.3
"""Cramer's V of site and label from which on (lower end of the interval) a set is refused, or noted."""
LEAST_PATIENTS = 20  # under these, sites and labels meet by chance
BLOCKS = 50  # of patients, for the jackknife

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a study's data; a `note` refuses nothing (often because the study accepted it)."""

    name: str
    severity: Literal["refuse", "note"]
    text: str


def check_cases(cases: Sequence[Case], folder: Path, study: Study, card: Card | None = None) -> list[Finding]:
    """Everything that is wrong with the cases of a study whose images lie in `folder`.

    Findings named in `study.data.accept` come back as notes. Raises ConfigError where that names no acceptable finding.
    """
    found = [*_patients(cases), *_splits(cases, study), *_files(cases, folder, study, card), *_sites(cases, study)]
    return accept(found, study)


def accept(findings: Iterable[Finding], study: Study) -> list[Finding]:
    """The findings, those that the study accepts by name as notes.

    Raises ConfigError where `study.data.accept` names no acceptable finding.
    """
    for name in study.data.accept:
        if name not in ACCEPTABLE:
            near = get_close_matches(name, ACCEPTABLE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a study may accept {', '.join(ACCEPTABLE)}."
            raise ConfigError(f"data.accept: {name!r} is not a finding that can be accepted: {hint}")
    return [replace(item, severity="note") if item.name in study.data.accept else item for item in findings]


def told(finding: Finding, study: Study) -> str:
    """A note as reports carry it: whether the study accepted it, and the text."""
    by = f", {ACCEPTED}" if finding.name in study.data.accept else ""
    return f"{finding.name}{by}: {finding.text}"


def refuse(findings: Iterable[Finding], study: Study) -> None:
    """Raise DataError with every finding that is to be refused, if there is one."""
    texts = [f"{item.name}: {item.text}" for item in findings if item.severity == "refuse"]
    if texts:
        raise DataError(f"The data of study {study.name} are refused. " + " ".join(texts))


def shown_name(case: Case) -> str:
    """An image's path as it may be shown: UIDs and the patient's own number in it become pseudonyms."""
    name, mark, member = case.image.partition("#")
    parts = [_shown_part(part, case) for part in name.split("/")]
    return "/".join(parts) + mark + (pseudonym(member) if _is_uid(member) else member)


def _shown_part(part: str, case: Case) -> str:
    stem = part if _is_uid(part) else PurePosixPath(part).stem
    if _is_uid(stem):
        return pseudonym(stem) + part.removeprefix(stem)
    if pseudonym(case.image) == case.patient_id:  # each image stands for a patient: its name is no number of one
        return part
    if case.patient_id in (pseudonym(stem), pseudonym(part)):
        return case.patient_id + (part.removeprefix(stem) if pseudonym(stem) == case.patient_id else "")
    return part


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+){4,}", text) is not None


def _patients(cases: Sequence[Case]) -> Iterable[Finding]:
    """Patients who stand in more than one split."""
    seen: dict[str, dict[str, Case]] = defaultdict(dict)
    for case in cases:
        seen[case.patient_id].setdefault(case.split, case)
    overlap = {patient: splits for patient, splits in seen.items() if len(splits) > 1}
    if overlap:
        shown = [
            f"patient {patient} (a pseudonym) in "
            + ", ".join(f"{split} ({shown_name(case)})" for split, case in splits.items())
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
    faults = list(missing_images(cases, folder).values())
    if faults:
        shown = listed(list(dict.fromkeys(faults)))
        elsewhere = "If they lie elsewhere, give the folder above with --data DIR or MEDOPT_DATA."
        way_out = f"{elsewhere} {card.how_to_get(study.name)}" if card else elsewhere
        yield Finding(
            "file_missing",
            "refuse",
            f"{len(faults)} of {len(cases)} images cannot be read below {folder}: {shown}. {way_out}",
        )


def missing_images(cases: Sequence[Case], folder: Path) -> dict[int, str]:
    """What is wrong with the files of images, by the case's index, as far as headers tell."""
    shapes: dict[str, Shapes | str] = {}
    return {index: fault for index, case in enumerate(cases) if (fault := _fault(folder, case, shapes))}


def _fault(folder: Path, case: Case, shapes: dict[str, Shapes | str]) -> str:
    """The image and what is wrong with its file, without reading pixels; empty where nothing is."""
    image = case.image
    member = npz_member(image)
    if member is None:
        fault = _file_fault(folder / image)
        return fault and f"{shown_name(case)} ({fault})"
    if member.file not in shapes:
        shapes[member.file] = _file_fault(folder / member.file) or npz_shapes(folder / member.file)
    arrays = shapes[member.file]
    if isinstance(arrays, str):
        return f"{member.file} ({arrays})"
    if member.array not in arrays:
        return f"{member.file} (has no array {member.array}, but {', '.join(arrays)})"
    count = arrays[member.array][0] if arrays[member.array] else 0
    return "" if member.row < count else f"{image} (the array has {count} images, counted from 0)"


def _file_fault(path: Path) -> str:
    try:
        whole = split_part(path)[0] if "#" in path.name else path  # folder#SeriesInstanceUID
        status = (whole if whole != path and whole.is_dir() else path).stat()
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "empty file" if path.is_file() and not status.st_size else ""


def npz_shapes(path: Path) -> Shapes | str:
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


def _sites(cases: Sequence[Case], study: Study) -> Iterable[Finding]:
    """Labels that the site alone tells: a model could then learn the hospital instead of the finding."""
    several = study.data.task == "multilabel"
    for index, name in enumerate(study.data.labels if several else ["the label"]):
        found = association([case.site for case in cases], [case.label[index] for case in cases], cases)
        if found is None or found[1] < NOTED:
            continue
        value, low, high = found
        sites = len({case.site for case in cases})
        yield Finding(
            "site_predicts_label" if low >= CONFOUNDED else "site_and_label",
            "refuse" if low >= CONFOUNDED else "note",
            f"The site tells {name}: Cramer's V {value:.2f} ({low:.2f}-{high:.2f}) over {sites} sites, so that a model "
            "may learn the hospital instead of the finding. Take cases of each label from each site.",
        )


def association(
    sites: Sequence[str], labels: Sequence[int], cases: Sequence[Case]
) -> tuple[float, float, float] | None:
    """Cramer's V of site and label, corrected for bias (Bergsma 2013), with a 95 % interval.

    None where there is one site, one label or too few patients. The interval is of a jackknife that leaves out
    patients in blocks, for images of one patient are not independent.
    """
    places, names, patients = (_codes(column) for column in (sites, labels, [case.patient_id for case in cases]))
    if not len(places) or not places.max() or not names.max() or patients.max() + 1 < LEAST_PATIENTS:
        return None
    shape = (BLOCKS, int(places.max()) + 1, int(names.max()) + 1)
    tables = np.zeros(shape)
    np.add.at(tables, (patients % BLOCKS, places, names), 1)
    whole = tables.sum(0)
    value = _cramers_v(whole)
    used = [table for table in tables if table.any()]
    left_out = np.array([_cramers_v(whole - table) for table in used])
    error = float(np.sqrt((len(used) - 1) / len(used) * ((left_out - left_out.mean()) ** 2).sum()))
    return value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)


def _codes(column: Sequence[str] | Sequence[int]) -> NDArray[np.int64]:
    """Each value as the number of its first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in column], np.int64)


def _cramers_v(table: NDArray[np.float64]) -> float:
    """From counts (sites, labels)."""
    table = table[np.ix_(table.any(1), table.any(0))]
    n, (rows, columns) = table.sum(), table.shape
    if n < 2 or min(rows, columns) < 2:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / n
    spread = ((table - expected) ** 2 / expected).sum() / n
    corrected = max(0.0, spread - (rows - 1) * (columns - 1) / (n - 1))
    least = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(corrected / least))) if least > 0 else 0.0
