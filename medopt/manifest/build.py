"""From a source of scans to a manifest: labels joined, patients as pseudonyms, splits drawn, a card beside it."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.files import atomic
from medopt.core.privacy import pseudonym
from medopt.core.reporter import Reporter, SilentReporter
from medopt.manifest.build_card import BuildFacts, write_card
from medopt.manifest.labels import Joined, join, read_labels
from medopt.manifest.patients import find_patients
from medopt.manifest.sources.datalist import write_datalist
from medopt.manifest.sources.dicom import site_of
from medopt.manifest.sources.find_scans import find_scans
from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, by_number
from medopt.manifest.splits import Assigned, SplitRules, assign_splits, splits_of_folds
from medopt.manifest.table import OPTIONAL

RESERVED = frozenset({"image", "patient_id", "split", "fold", *OPTIONAL})


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a person may say about a manifest to be built."""

    labels: Path | None = None
    label_columns: tuple[str, ...] = ("label",)
    key: str = ""
    patient: str = ""
    """Regular expression with one group, on the image's path."""
    patient_per_image: bool = False
    rules: SplitRules = field(default_factory=SplitRules)
    source: SourceOptions = field(default_factory=SourceOptions)
    datalist: Path | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A manifest that was written: its rows by column, and what a person should know of it."""

    manifest: Path
    card: Path
    found: ScanListing
    rows: tuple[dict[str, str], ...]
    label_columns: tuple[str, ...]
    how_split: str
    how_labelled: str
    left_out: tuple[tuple[str, str], ...]
    orphans: tuple[str, ...]
    warnings: tuple[str, ...]


def build_manifest(source: Path, out: Path, options: BuildOptions, reporter: Reporter | None = None) -> Built:
    """Build a manifest of `source` and write it as `out`, with a card beside it; a .zip is unpacked beside it, too.

    Patients, studies and series are pseudonyms in it; image paths start from `found.root`. Raises DataError and
    ConfigError with the way out wherever it is not clear whose a scan is, what it shows, or which one is meant.
    """
    _free(source, out, options)
    reading = replace(options.source, labelled=options.labels is not None)
    found = find_scans(source, out.with_name(f"{out.stem}_files"), reading, reporter or SilentReporter())
    found, joined = _labelled(found, options)
    patients, guessed = find_patients(found, joined, options.patient, options.patient_per_image)
    _refuse_ambiguous(found.scans, joined)
    columns = found.own_labels
    rows = _rows(found.scans, patients, columns)
    if len(columns) == 1 and len({row["label"] for row in rows}) < 2:
        raise _one_class(rows, joined)
    assigned = _split(found.scans, rows, columns, options.rules)
    for at, row in enumerate(rows):
        row["split"] = str(assigned.split[at])
        if assigned.fold is not None:
            row["fold"] = str(assigned.fold[at])
    rows.sort(key=lambda row: row["image"])
    built = Built(
        manifest=out,
        card=out.with_suffix(".card.yaml"),
        found=found,
        rows=tuple(rows),
        label_columns=columns,
        how_split=assigned.how,
        how_labelled=_how_labelled(found, joined, options),
        left_out=found.left_out,
        orphans=(*joined.orphans, *joined.ambiguous) if joined else (),
        warnings=(*((guessed,) if guessed else ()), *found.notes, *assigned.notes, *_lacking(rows, columns)),
    )
    _write(built, source, options)
    return built


def _rows(scans: Sequence[Scan], patients: Sequence[str], columns: Sequence[str]) -> list[dict[str, str]]:
    """The manifest's rows, without splits."""
    known = lru_cache(maxsize=1 << 16)(pseudonym)
    return [
        {
            "image": scan.image,
            "patient_id": known(patient),
            "study_uid": scan.study and known(scan.study),
            "series_uid": scan.series and known(scan.series),
            "site": scan.site or "unknown",
            "age": scan.age,
            "sex": scan.sex,
            **dict(zip(columns, scan.labels, strict=True)),
        }
        for scan, patient in zip(scans, patients, strict=True)
    ]


def _free(source: Path, out: Path, options: BuildOptions) -> None:
    """Refuse to write over something that is no manifest, or no manifest's card."""
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"--out takes a file named .csv, since its card is named .card.yaml; got {out}.")
    if any(out.resolve() == given.resolve() for given in (source, options.labels, options.datalist) if given):
        raise ConfigError(f"--out {out} is another file of this command already. Give it a name of its own.")
    card = out.with_suffix(".card.yaml")
    for path, first in ((out, "image,patient_id"), (card, "manifest_sha256:")):
        try:
            content = path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError:
            continue
        if first not in (content.partition("\n")[0] if path == out else content):
            what = "a manifest that medopt built" if path == out else "a manifest's card"
            raise ConfigError(f"{path} is there already and is not {what}; it is not written over. Give another --out.")


def _labelled(found: ScanListing, options: BuildOptions) -> tuple[ScanListing, Joined | None]:
    """The scans that have a label. Those without one are left out."""
    if options.labels is None:
        if not found.own_labels:
            raise DataError(
                f"The {found.kind} source {found.root} says nothing of labels. Give a table with --labels labels.csv, "
                "with a column label and one of patient_id, study_uid, accession_number, series_uid or file. Folders "
                "are labels where each class has one: --class-folders for DICOM and NIfTI."
            )
        kept = [scan for scan in found.scans if scan.labels]
        bare = [(scan.path, "no label") for scan in found.scans if not scan.labels]
        return replace(found, scans=tuple(kept), left_out=(*found.left_out, *bare)), None
    columns = _label_columns(options)
    joined = join(read_labels(options.labels), found.scans, options.label_columns, options.key)
    if not joined.labels:
        raise DataError(f"No scan has a label: {options.labels} leaves the cells of {', '.join(columns)} empty.")
    kept = [replace(scan, labels=joined.labels[at]) for at, scan in enumerate(found.scans) if at in joined.labels]
    bare = [(scan.path, "no label in the table") for at, scan in enumerate(found.scans) if at not in joined.labels]
    places = [at for at in range(len(found.scans)) if at in joined.labels]
    patients = {new: joined.patients[at] for new, at in enumerate(places) if at in joined.patients}
    left_out = (*found.left_out, *bare)
    return replace(found, scans=tuple(kept), left_out=left_out, own_labels=columns), replace(joined, patients=patients)


def _label_columns(options: BuildOptions) -> tuple[str, ...]:
    if len(options.label_columns) == 1:
        return ("label",)
    if taken := [name for name in options.label_columns if name.lower() in RESERVED]:
        raise ConfigError(f"--label-column {taken[0]} is a manifest's own column: rename it in the table.")
    return options.label_columns


def _refuse_ambiguous(scans: Sequence[Scan], joined: Joined | None) -> None:
    """Several 3-D series of a study under a label of the whole study: which one is meant has to be said."""
    key = joined.key if joined else "folder"
    if key in ("series", "file"):
        return
    studies: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.volume and scan.study:
            studies[scan.study].append(scan)
    several = [members for members in studies.values() if len(members) > 1]
    if several:
        kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
        for scan in (scan for members in several for scan in members):
            kinds[scan.description or "no description", scan.orientation].append(scan.frames)
        shown = [
            f"'{name}'{orientation and ', '}{orientation}, {_range(frames)} in {len(frames)} series"
            for (name, orientation), frames in sorted(kinds.items())
        ]
        raise DataError(
            f"{len(several)} of {len(studies)} studies have several series, and the labels are by {key}, so it is not "
            f"said which series is meant: {listed(shown, 12)}. Choose with --description REGEX, or with "
            "--series-rules STUDY.yaml (medopt series DIR lists what there is), or give labels by series_uid or file."
        )


def _range(frames: Sequence[int]) -> str:
    low, high = min(frames), max(frames)
    return f"{low} frames" if low == high else f"{low} to {high} frames"


def _split(
    scans: Sequence[Scan], rows: Sequence[dict[str, str]], columns: Sequence[str], rules: SplitRules
) -> Assigned:
    sites = np.array([row["site"] for row in rows])
    if rules.hold_out and rules.hold_out not in sites and site_of(rules.hold_out) in sites:
        rules = replace(rules, hold_out=site_of(rules.hold_out))
    if len(columns) == 1:
        names, code = np.unique([row[columns[0]] for row in rows], return_inverse=True)
        labels = np.zeros((len(rows), len(names)), dtype=bool)
        labels[np.arange(len(rows)), code] = True
        shown = names.tolist()
    else:
        ones = np.array([[row[column] == "1" for column in columns] for row in rows])
        labels = np.hstack([ones, ~ones])
        shown = [f"{column} = {value}" for value in (1, 0) for column in columns]
    patients = np.array([row["patient_id"] for row in rows])
    own = np.array([scan.split for scan in scans])
    folds = np.array([scan.fold for scan in scans], dtype=np.int64)
    if not rules.resplit and (folds >= 0).any() and "val" not in own:
        return splits_of_folds(patients, own, folds, rules.fold)
    if rules.fold and not rules.folds:
        raise ConfigError(f"--fold {rules.fold} needs --folds K: this source has no folds of its own.")
    return assign_splits(patients, labels, sites, own, rules, shown)


def _one_class(rows: Sequence[dict[str, str]], joined: Joined | None) -> DataError:
    lost = [*joined.orphans, *joined.ambiguous] if joined else []
    hint = f" {len(lost)} rows of the table found no scan, or not one alone: {listed(lost)}." if lost else ""
    return DataError(
        f"All {len(rows)} scans have the label {rows[0]['label']!r}. There is nothing to tell apart: two classes are "
        f"needed.{hint}"
    )


def _lacking(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> list[str]:
    """Classes that a split lacks although others have them; `medopt manifest check` refuses such a study."""
    told = []
    for column in columns:
        seen = {(row["split"], row[column]) for row in rows}
        for split in sorted({split for split, _ in seen}):
            lacks = sorted({value for _, value in seen} - {value for at, value in seen if at == split}, key=by_number)
            if lacks:
                named = lacks if len(columns) == 1 else [f"{column} = {value}" for value in lacks]
                told.append(f"The split {split} has no case of {listed(named)}.")
    return told


def _how_labelled(found: ScanListing, joined: Joined | None, options: BuildOptions) -> str:
    if joined is not None and options.labels is not None:
        return f"{options.labels.name}, joined by {joined.key} (column {joined.column})"
    return "the names of the folders" if found.own_labels and found.kind in ("DICOM", "NIfTI", "images") else found.kind


def _write(built: Built, source: Path, options: BuildOptions) -> None:
    """The manifest, its card and the datalist, each whole or not at all."""
    header = list(built.rows[0])
    with atomic(built.manifest) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(built.rows)
    facts = BuildFacts(source, built.found.kind, built.how_labelled, built.how_split, built.warnings, built.left_out)
    write_card(built.card, built.manifest, facts, built.rows, built.label_columns)
    if options.datalist is not None:
        write_datalist(options.datalist, built.rows, built.label_columns)
