"""Build a manifest from a source of scans: labels joined, patients as pseudonyms, splits drawn, a card beside it."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from unicodedata import normalize

import numpy as np

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.files import atomic, file_digest
from medopt.core.format import count_text
from medopt.core.privacy import pseudonym
from medopt.core.records import SPLITS
from medopt.core.reporter import Reporter, SilentReporter
from medopt.manifest.annotate import find_patients, label_scans, refuse_ambiguous_series
from medopt.manifest.card import Card, relative_root, write_card
from medopt.manifest.channel_cases import refuse_torn_cases
from medopt.manifest.label_join import JoinedLabels
from medopt.manifest.numbers import quartiles
from medopt.manifest.sources.datalist import write_datalist
from medopt.manifest.sources.dicom import site_of
from medopt.manifest.sources.find_scans import find_scans
from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, class_sort_key, count_by_reason
from medopt.manifest.splits import SplitAssignment, SplitRules, assign_splits, splits_of_folds
from medopt.manifest.table import IMAGE

Row = dict[str, str]
"""One row of a manifest: its cells by column."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build a manifest.

    `labels` is a table of labels, `label_columns` its columns, `key` the column that says which scan a row means.
    `datalist` is where a MONAI datalist is written, too.
    """

    labels: Path | None = None
    label_columns: tuple[str, ...] = ()
    """Empty: the column label, else the only one that is neither a key nor about the patient."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Labels under another name, as {"0": "healthy"}; an empty name leaves their scans out."""
    numbers: bool = False
    """The label is a measurement, for a regression study."""
    key: str = ""
    patient: str = ""
    """Regular expression whose one group is the patient in the path of an image; or `table`."""
    patient_per_image: bool = False
    rules: SplitRules = field(default_factory=SplitRules)
    source: SourceOptions = field(default_factory=SourceOptions)
    datalist: Path | None = None


@dataclass(frozen=True, slots=True)
class BuiltManifest:
    """A manifest that was written, and what the user should know about it.

    `listing` are the scans of the source. `split_method` and `label_source` say in words where splits and labels come
    from. `left_out` are (path, reason); `orphans` are rows of the table of labels without exactly one scan.
    """

    manifest: Path
    card: Path
    listing: ScanListing
    rows: tuple[Row, ...]
    label_columns: tuple[str, ...]
    split_method: str
    label_source: str
    left_out: tuple[tuple[str, str], ...]
    orphans: tuple[str, ...]
    warnings: tuple[str, ...]
    numbers: bool = False


def build_manifest(source: Path, out: Path, options: BuildOptions, reporter: Reporter | None = None) -> BuiltManifest:
    """Build a manifest of `source` and write it as `out`, with a card beside it; a .zip is unpacked beside it.

    `source` is a folder of DICOM, NIfTI or images, a .zip, a MedMNIST .npz or a MONAI datalist. Patients, studies and
    series are pseudonyms in the manifest; image paths start from `listing.root`. Raises DataError and ConfigError with
    the way out wherever it is not clear whose a scan is, what it shows, or which one is meant.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for label in ("benign", "malignant"):
    ...         (Path(folder) / "images" / label).mkdir(parents=True)
    ...         for at in range(4):
    ...             Image.new("L", (8, 8), at).save(Path(folder) / "images" / label / f"{at}.png")
    ...     built = build_manifest(Path(folder) / "images", Path(folder) / "manifest.csv", BuildOptions())
    >>> len(built.rows), built.label_source
    (8, 'the names of the folders')
    """
    _refuse_overwriting(source, out, options)
    source_options = replace(options.source, labelled=options.labels is not None)
    listing = find_scans(source, out.with_name(f"{out.stem}_files"), source_options, reporter or SilentReporter())
    listing, joined = label_scans(
        *(listing, options.labels, options.label_columns, options.key, options.rename), numbers=options.numbers
    )
    if not options.rules.resplit:
        refuse_torn_cases(listing.scans)
    if listing.channel_names and options.datalist is not None:
        raise ConfigError("--datalist writes one image a case; here a case has several.")
    patients, patient_warning = find_patients(listing, joined, options.patient, options.patient_per_image)
    refuse_ambiguous_series(listing.scans, joined)
    rows, columns = _rows(listing, patients), listing.label_columns
    if len(columns) == 1 and len({row["label"] for row in rows}) < 2:
        raise _one_class_error(rows, joined)
    splits = _split(listing.scans, rows, columns, options.rules, numbers=options.numbers)
    for at, row in enumerate(rows):
        row["split"] = str(splits.split[at])
        if splits.fold is not None:
            row["fold"] = str(splits.fold[at])
    rows.sort(key=lambda row: next(cell for cell in row.values() if cell))  # by the first image
    built = BuiltManifest(
        manifest=out,
        card=out.with_suffix(".card.yaml"),
        listing=listing,
        rows=tuple(rows),
        label_columns=columns,
        split_method=splits.how,
        label_source=_label_source(listing, joined, options),
        left_out=listing.left_out,
        orphans=(*joined.orphans, *joined.ambiguous) if joined else (),
        warnings=tuple(
            filter(
                None,
                (
                    *(patient_warning, *listing.notes, *splits.notes),
                    *(() if options.numbers else _missing_class_warnings(rows, columns)),
                ),
            )
        ),
        numbers=options.numbers,
    )
    _write(built, source, options)
    return built


def _rows(listing: ScanListing, patients: Sequence[str]) -> list[Row]:
    """The rows of the manifest, without splits."""
    image_names = [f"{IMAGE}:{name}" for name in listing.channel_names] or [IMAGE]
    hide = lru_cache(maxsize=1 << 16)(pseudonym)
    return [
        {
            **dict(zip(image_names, [one.image if one else "" for one in scan.channels or (scan,)], strict=True)),
            "patient_id": hide(normalize("NFC", patient)),
            "study_uid": scan.study and hide(scan.study),
            "series_uid": scan.series and hide(scan.series),
            "site": scan.site or "unknown",
            "age": scan.age,
            "sex": scan.sex,
            **dict(zip(listing.label_columns, scan.labels, strict=True)),
        }
        for scan, patient in zip(listing.scans, patients, strict=True)
    ]


def _refuse_overwriting(source: Path, out: Path, options: BuildOptions) -> None:
    """Refuse to write over a file that is not a manifest, or not the card of one."""
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"--out takes a file named .csv, because its card is named .card.yaml; got {out}.")
    if any(out.resolve() == given.resolve() for given in (source, options.labels, options.datalist) if given):
        raise ConfigError(f"--out {out} is another file of this command already. Give it another name.")
    card = out.with_suffix(".card.yaml")
    for path, mark in ((out, r"^image:|image,patient_id"), (card, "manifest_sha256:")):
        try:
            content = path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError:
            continue
        if not re.search(mark, content.partition("\n")[0] if path == out else content):
            what = "a manifest that medopt built" if path == out else "a manifest's card"
            raise ConfigError(f"{path} is there already and is not {what}; it is not written over. Give another --out.")


def _split(
    scans: Sequence[Scan], rows: Sequence[Row], columns: Sequence[str], rules: SplitRules, *, numbers: bool
) -> SplitAssignment:
    sites = np.array([row["site"] for row in rows])
    if rules.hold_out and rules.hold_out not in sites and site_of(rules.hold_out) in sites:
        rules = replace(rules, hold_out=site_of(rules.hold_out))
    if numbers:
        labels = quartiles([row[columns[0]] for row in rows])[:, None] == np.arange(4)
        names = [f"quarter {at + 1} of the numbers" for at in np.flatnonzero(labels.any(axis=0)).tolist()]
        labels = labels[:, labels.any(axis=0)]
    elif len(columns) == 1:
        classes, code = np.unique([row[columns[0]] for row in rows], return_inverse=True)
        labels = np.zeros((len(rows), len(classes)), dtype=bool)
        labels[np.arange(len(rows)), code] = True
        names = classes.tolist()
    else:
        labels = np.array([[row[column] == value for value in "10" for column in columns] for row in rows])
        names = [f"{column} = {value}" for value in (1, 0) for column in columns]
    patients = np.array([row["patient_id"] for row in rows])
    own = np.array([scan.split for scan in scans])
    folds = np.array([scan.fold for scan in scans], dtype=np.int64)
    if not rules.resplit and (folds >= 0).any() and "val" not in own:
        return splits_of_folds(patients, own, folds, rules.fold)
    if rules.fold and not rules.folds:
        raise ConfigError(f"--fold {rules.fold} needs --folds K: this source has no folds of its own.")
    return assign_splits(patients, labels, sites, own, rules, names)


def _one_class_error(rows: Sequence[Row], joined: JoinedLabels | None) -> DataError:
    orphans = [*joined.orphans, *joined.ambiguous] if joined else []
    hint = f" {len(orphans)} rows of the table match no scan, or several: {listed(orphans)}." if orphans else ""
    return DataError(
        f"All {len(rows)} scans have the label {rows[0]['label']!r}. There is nothing to tell apart: two classes are "
        f"needed.{hint}"
    )


def _missing_class_warnings(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    """Classes that a split lacks although others have them; `medopt manifest check` refuses such a study."""
    warnings = []
    for column in columns:
        present = {(row["split"], row[column]) for row in rows if row[column] not in ("", "-1") or len(columns) == 1}
        classes = {value for _, value in present}
        for split in sorted({split for split, _ in present}):
            missing = sorted(classes - {value for at, value in present if at == split}, key=class_sort_key)
            if missing:
                names = missing if len(columns) == 1 else [f"{column} = {value}" for value in missing]
                warnings.append(f"The split {split} has no case of {listed(names)}.")
    return warnings


def _label_source(listing: ScanListing, joined: JoinedLabels | None, options: BuildOptions) -> str:
    if joined is not None and options.labels is not None:
        how = f"joined by {joined.key} (column {joined.column})"
        how = "a row a case" if joined.column.startswith(f"{IMAGE}:") else how
        return f"{options.labels.name}, {how}"
    from_folders = listing.label_columns and listing.kind in ("DICOM", "NIfTI", "images")
    return "the names of the folders" if from_folders else listing.kind


def _write(built: BuiltManifest, source: Path, options: BuildOptions) -> None:
    """The manifest, its card and the datalist, each whole or not at all."""
    header = list(built.rows[0])
    with atomic(built.manifest) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(built.rows)
    write_card(built.card, _card(built, source))
    if options.datalist is not None:
        write_datalist(options.datalist, built.rows, built.label_columns)


def _card(built: BuiltManifest, source: Path) -> Card:
    """The card of a manifest that was written already; it holds no absolute path and no identifier."""
    rows = built.rows
    patients, sites = len({row["patient_id"] for row in rows}), len({row["site"] for row in rows})
    counts = Counter(row["split"] for row in rows)
    splits = ", ".join(f"{split} {counts[split]}" for split in SPLITS)
    notes = [
        f"Labels: {built.label_source}.",
        f"Split: {built.split_method}.",
        f"{count_text(len(rows), 'row')} of {count_text(patients, 'patient')} at {count_text(sites, 'site')}; "
        f"{splits}. "
        "Patients, studies and series are pseudonyms.",
        *built.warnings,
        *(f"Left out: {count_text(count, 'file')}, {reason}." for reason, count, _ in count_by_reason(built.left_out)),
    ]
    return Card(
        title=built.manifest.stem,
        source=f"{source.name or source.resolve().name} ({built.listing.kind})",
        licence="Not stated. Write here under which licence the images are, before they are passed on.",
        citation="None given.",
        labels=_number_meaning(rows) if built.numbers else _label_meanings(rows, built.label_columns),
        notes=notes,
        manifest_sha256=file_digest(built.manifest),
        root=relative_root(built.listing.root, built.manifest),
    )


def _number_meaning(rows: Sequence[Row]) -> dict[str, str]:
    """The range of the label, where it is a measurement."""
    low, middle, high = np.quantile([float(row["label"]) for row in rows], [0, 0.5, 1]).tolist()
    return {"label": f"a number from {low:g} to {high:g}, median {middle:g}"}


def _label_meanings(rows: Sequence[Row], columns: Sequence[str]) -> dict[str, str]:
    if len(columns) > 1:
        return {column: _finding_counts([row[column] for row in rows]) for column in columns}
    counts = Counter(row[columns[0]] for row in rows)
    return {name: count_text(counts[name], "row") for name in sorted(counts, key=class_sort_key)}


def _finding_counts(cells: Sequence[str]) -> str:
    """How often a finding is there, uncertain and missing, in words."""
    counts = Counter(cells)
    parts = [f"{name} in {counts[cell]}" for cell, name in (("-1", "uncertain"), ("", "missing")) if counts[cell]]
    return ", ".join([f"1 in {counts['1']} rows", *parts, "else 0"])
