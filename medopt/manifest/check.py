"""May these cases be trained on? Patients in several splits; splits, classes or files that are absent; site and label.

Only the manifest and file headers are read, so a million rows take seconds. `quality` and `duplicates` check pixels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from medopt.config import Study
from medopt.core.errors import DataError, listed
from medopt.core.format import count_text
from medopt.core.records import SPLITS, Case, Label
from medopt.imaging.raster import npz_shapes
from medopt.imaging.scan_path import npz_member, split_part
from medopt.manifest.card import Card
from medopt.manifest.covariates import covariate_findings
from medopt.manifest.findings import Finding, accept_findings, display_name
from medopt.manifest.table import single_images

CONFOUNDED, NOTED = 0.8, 0.3
"""Lowest Cramer's V of site and label (lower end of the interval) at which a study is refused, or gets a note."""
MIN_PATIENTS = 20  # with fewer, an association is chance
SMALL, SMALL_CLASS = 30, 10
"""A validation or test split with fewer patients, or fewer of a label, says little about a model."""
BLOCKS = 50  # of patients, for the jackknife

ArrayShapes = dict[str, tuple[int, ...]]


class Association(NamedTuple):
    """Cramer's V, 0 to 1, with a 95 % interval."""

    value: float
    low: float
    high: float


def check_cases(cases: Sequence[Case], folder: Path, study: Study, card: Card | None = None) -> list[Finding]:
    """Everything that is wrong with the cases of a study whose images are below `folder`.

    Findings named in `study.data.accept` come back as notes. `card` says where absent images can be had. Raises
    ConfigError where `study.data.accept` names a finding that cannot be accepted.

    >>> cases = read_manifest(Path("manifest.csv"), study)              # doctest: +SKIP
    >>> refuse_findings(check_cases(cases, Path("data"), study), study) # doctest: +SKIP
    """
    findings = [
        *_patient_findings(cases),
        *_split_findings(cases, study),
        *_file_findings(cases, folder, study, card),
        *_site_findings(cases, study),
        *_unknown_label_findings(cases, study),
        *covariate_findings(cases, study),
    ]
    return accept_findings(findings, study)


def _patient_findings(cases: Sequence[Case]) -> Iterable[Finding]:
    """Patients in more than one split."""
    first: dict[str, str] = {}
    several = {case.patient_id for case in cases if first.setdefault(case.patient_id, case.split) != case.split}
    if several:
        overlap: dict[str, dict[str, Case]] = defaultdict(dict)
        for case in cases:
            if case.patient_id in several:
                overlap[case.patient_id].setdefault(case.split, case)
        texts = [
            f"patient {patient} (a pseudonym) in "
            + ", ".join(f"{split} ({display_name(case)})" for split, case in splits.items())
            for patient, splits in overlap.items()
        ]
        yield Finding(
            "patient_overlap",
            "refuse",
            f"{len(overlap)} of {len(first)} patients are in more than one split, so that scores are too good: "
            f"{listed(texts)}. Put all images of a patient into one split.",
        )


def _split_findings(cases: Sequence[Case], study: Study) -> Iterable[Finding]:
    """Splits without a case, and classes without a case in a split that has some."""
    for split in SPLITS:
        labels = [case.label for case in cases if case.split == split]
        if not labels:
            text = f"No case is in the split {split}. Train, val and test are all needed."
            yield Finding("split_absent", "refuse", text)
        elif absent := _absent_classes(labels, study):
            yield Finding(
                "class_absent",
                "refuse",
                f"The split {split} ({len(labels)} cases) has no case of {listed(absent)}, so no AUC can be computed "
                "there. Draw the splits again, stratified by label, or take the class out of data.labels.",
            )


def small_split_findings(cases: Sequence[Case], study: Study) -> list[Finding]:
    """Notes on a validation or test split of few patients, with the interval that a figure measured on it would have.

    Images of one patient are not independent, so patients are counted.
    """
    findings = []
    for split in ("val", "test"):
        inside = [case for case in cases if case.split == split]
        patients = {case.patient_id for case in inside}
        of_class = {name: len(people) for name, people in _patients_by_class(inside, study).items() if people}
        if not of_class or (len(patients) >= SMALL and min(of_class.values()) >= SMALL_CLASS):
            continue
        rarest = min(of_class, key=lambda name: of_class[name])
        low, high = _wilson(0.8, of_class[rarest])
        counts = ", ".join(f"{name} {count}" for name, count in of_class.items())
        text = (
            f"The split {split} has {count_text(len(patients), 'patient')} ({counts}): too few to judge a model by. "
            f"Where 80 % of {count_text(of_class[rarest], 'patient')} with {rarest} are found, the 95 % interval goes "
            f"from {100 * low:.0f} % to {100 * high:.0f} %. At least {SMALL} patients, {SMALL_CLASS} of each label, "
            "give a first impression."
        )
        findings.append(Finding("small_split", "note", text))
    return findings


def _patients_by_class(cases: Sequence[Case], study: Study) -> dict[str, set[str]]:
    """The patients of each label; of a multi-label study, of each label present and absent."""
    names = study.data.labels
    if study.data.task != "multilabel":
        return {name: {case.patient_id for case in cases if case.class_index == at} for at, name in enumerate(names)}
    return {
        f"{name} = {value}": {case.patient_id for case in cases if case.label[at] == value}
        for at, name in enumerate(names)
        for value in (0, 1)
    }


def _wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of a share of `count` independent cases."""
    centre, scale = share + z**2 / (2 * count), 1 + z**2 / count
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _absent_classes(labels: list[tuple[Label, ...]], study: Study) -> list[str]:
    names = study.data.labels
    if study.data.task == "multilabel":
        columns = zip(names, zip(*labels, strict=True), strict=True)
        return [f"{name} = {value}" for name, column in columns for value in (0, 1) if value not in column]
    present = Counter(label[0] for label in labels)
    return [name for index, name in enumerate(names) if not present[index]]


def _file_findings(cases: Sequence[Case], folder: Path, study: Study, card: Card | None) -> Iterable[Finding]:
    """Images that are not where the manifest says."""
    faults = list(missing_images(cases, folder).values())
    if faults:
        texts = listed(list(dict.fromkeys(faults)))
        elsewhere = "If they are elsewhere, give the folder above with --data DIR or MEDOPT_DATA."
        way_out = f"{elsewhere} {card.how_to_get(study.name)}" if card else elsewhere
        yield Finding(
            "file_missing",
            "refuse",
            f"{len(faults)} of {len(cases)} images cannot be read below {folder}: {texts}. {way_out}",
        )


def missing_images(cases: Sequence[Case], folder: Path) -> dict[int, str]:
    """What is wrong with the files of images, by the index of the case, as far as headers say."""
    shapes: dict[str, ArrayShapes | str] = {}
    faults: dict[int, str] = {}
    for index, case in enumerate(cases):
        for image in single_images(case):
            if fault := _image_fault(folder, image, shapes):
                faults.setdefault(index, fault)
    return faults


def _image_fault(folder: Path, case: Case, shapes: dict[str, ArrayShapes | str]) -> str:
    """The image and what is wrong with its file, without reading pixels; empty where nothing is wrong."""
    image = case.image
    member = npz_member(image)
    if member is None:
        fault = _file_fault(folder / image)
        return fault and f"{display_name(case)} ({fault})"
    if member.file not in shapes:
        shapes[member.file] = _npz_shapes_or_fault(folder / member.file)
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
        forms = [path.with_name(normalize(form, path.name)) for form in ("NFC", "NFD")]
        other = any(one.exists() for one in forms)
        return "not there, but under the same name in another Unicode form: write that one" if other else "not there"
    except OSError as error:
        return error.strerror or type(error).__name__
    return "empty file" if path.is_file() and not status.st_size else ""


def _npz_shapes_or_fault(path: Path) -> ArrayShapes | str:
    try:
        return _file_fault(path) or npz_shapes(path)
    except DataError as error:
        return str(error)


def _site_findings(cases: Sequence[Case], study: Study) -> Iterable[Finding]:
    """Labels that the site alone predicts: a model could then learn the hospital instead of the finding."""
    names = study.data.labels if study.data.task == "multilabel" else ["the label"]
    for index, name in enumerate(names):
        known = [case for case in cases if case.label[index] is not None]
        labels = [label for case in known if (label := case.label[index]) is not None]
        association = site_label_association([case.site for case in known], labels, known)
        if association is None or association.low < NOTED:
            continue
        value, low, high = association
        sites = len({case.site for case in cases})
        yield Finding(
            "site_predicts_label" if low >= CONFOUNDED else "site_and_label",
            "refuse" if low >= CONFOUNDED else "note",
            f"The site predicts {name}: Cramer's V {value:.2f} ({low:.2f}-{high:.2f}) over {sites} sites, so that "
            "a model may learn the hospital instead of the finding. Take cases of each label from each site.",
        )


def _unknown_label_findings(cases: Sequence[Case], study: Study) -> Iterable[Finding]:
    """A note that counts the labels that are uncertain or missing, and the cases without any."""
    texts = []
    for at, name in enumerate(study.data.labels if study.data.task == "multilabel" else ()):
        uncertain = sum(at in case.uncertain for case in cases)
        missing = sum(case.label[at] is None and at not in case.uncertain for case in cases)
        counts = [f"{count} {word}" for count, word in ((uncertain, "uncertain"), (missing, "missing")) if count]
        texts += [f"{name} {' and '.join(counts)}"] if counts else []
    if texts:
        policy = study.data.uncertain
        meaning = "unknown" if policy == "ignore" else policy
        empty = sum(all(label is None for label in case.label) for case in cases)
        text = (
            f"Unknown labels of {count_text(len(cases), 'case')}: {listed(texts, 20)}. Missing labels are left out of "
            f"the loss and of every figure; uncertain labels count as {meaning} (data.uncertain: {policy})."
        )
        without = f" {count_text(empty, 'case')} without any known label." if empty else ""
        yield Finding("unknown_labels", "note", text + without)


def site_label_association(sites: Sequence[str], labels: Sequence[int], cases: Sequence[Case]) -> Association | None:
    """Cramer's V of site and label, corrected for bias (Bergsma 2013), with a 95 % interval.

    None where there is one site, one label or too few patients. The interval comes from a jackknife that leaves out
    blocks of patients, because images of one patient are not independent.
    """
    site, label, patient = (_codes(column) for column in (sites, labels, [case.patient_id for case in cases]))
    if not len(site) or not site.max() or not label.max() or patient.max() + 1 < MIN_PATIENTS:
        return None
    tables = np.zeros((BLOCKS, int(site.max()) + 1, int(label.max()) + 1))
    np.add.at(tables, (patient % BLOCKS, site, label), 1)
    whole = tables.sum(0)
    value = _cramers_v(whole)
    used = [table for table in tables if table.any()]
    left_out = np.array([_cramers_v(whole - table) for table in used])
    error = float(np.sqrt((len(used) - 1) / len(used) * ((left_out - left_out.mean()) ** 2).sum()))
    return Association(value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def _codes(column: Sequence[str] | Sequence[int]) -> NDArray[np.int64]:
    """Each value (N,) as a number, counted in the order of first appearance."""
    known: dict[object, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in column], np.int64)


def _cramers_v(table: NDArray[np.float64]) -> float:
    """Cramer's V of a table of counts (sites, labels)."""
    table = table[np.ix_(table.any(1), table.any(0))]
    n, (rows, columns) = table.sum(), table.shape
    if n < 2 or min(rows, columns) < 2:
        return 0.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / n
    phi_squared = ((table - expected) ** 2 / expected).sum() / n
    corrected = max(0.0, phi_squared - (rows - 1) * (columns - 1) / (n - 1))
    smaller_side = min(rows - (rows - 1) ** 2 / (n - 1), columns - (columns - 1) ** 2 / (n - 1)) - 1
    return float(min(1.0, np.sqrt(corrected / smaller_side))) if smaller_side > 0 else 0.0
