"""Labels and patients for the scans of a source: nothing is guessed silently where a score depends on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

from medopt.core.errors import ConfigError, DataError, listed
from medopt.core.privacy import UNKNOWN_PATIENT, pseudonym, public_path
from medopt.manifest.channel_cases import cases_of_table
from medopt.manifest.label_join import JoinedLabels, join_labels, labels_of_rows
from medopt.manifest.label_table import read_labels
from medopt.manifest.label_words import LabelSpellings, label_spellings
from medopt.manifest.sources.scan_listing import Scan, ScanListing, compile_pattern
from medopt.manifest.table import RESERVED, read_channels_of

FROM_TABLE = "table"
"""In place of a regular expression: the table of labels alone says whose a scan is."""
_ASSUMED = (
    "each image is treated as its own patient. Images of one patient may then be in several splits, and scores may be "
    "too good. medopt manifest check looks for near-duplicates."
)


def label_scans(
    listing: ScanListing,
    table: Path | None,
    label_columns: Sequence[str],
    key: str,
    rename: Mapping[str, str] | None = None,
    *,
    numbers: bool = False,
) -> tuple[ScanListing, JoinedLabels | None]:
    """The scans that have a label, by a table or by the source itself; the others go to `left_out`.

    A table with columns image:NAME makes cases of several images of the scans. Spellings of one class become one;
    `numbers` says that the label is a measurement.
    Raises DataError where nothing gives a label, ConfigError for columns that the table does not have and for names in
    `rename` that are no label.
    """
    if numbers and (table is None or rename or len(label_columns) > 1):
        raise ConfigError("--numbers: one column of the table of --labels is a measurement, with no --rename.")
    if table is None:
        return _labelled_by_source(listing, rename), None
    read = read_labels(table)
    label_columns, note = (label_columns, "") if label_columns else read.default_label(key)
    columns = _manifest_columns(label_columns)
    if rename and len(columns) > 1:
        raise ConfigError("--rename gives classes of one column another name; here each column is a label.")
    if names := read_channels_of(table, read.columns):
        if listing.channel_names:
            raise ConfigError("Series rules and table both say what the images of a case are: give one of them.")
        if key:
            raise ConfigError("--key: a table with columns image:NAME says by them which scans a row means.")
        named = [read.column(name) for name in label_columns]
        listing, rows = cases_of_table(listing, read, names)
        joined = labels_of_rows(read, rows, named, rename or {}, numbers=numbers)
    else:
        joined = join_labels(read, listing.scans, label_columns, key, rename, numbers=numbers)
    if not joined.labels:
        raise DataError(f"No scan has a label: {table} leaves the cells of {', '.join(columns)} empty.")
    places = [at for at in range(len(listing.scans)) if at in joined.labels]
    scans = tuple(replace(listing.scans[at], labels=joined.labels[at]) for at in places)
    unlabelled = [(scan, joined.missing.get(at)) for at, scan in enumerate(listing.scans) if at not in joined.labels]
    left_out = [
        (scan.path, f"the label is missing: {word!r}" if word else "no label in the table") for scan, word in unlabelled
    ]
    listing = replace(
        listing,
        scans=scans,
        left_out=(*listing.left_out, *left_out),
        label_columns=columns,
        notes=(*listing.notes, *filter(None, [note]), *joined.notes),
    )
    patients = {new: joined.patients[at] for new, at in enumerate(places) if at in joined.patients}
    return listing, replace(joined, patients=patients)


def _labelled_by_source(listing: ScanListing, rename: Mapping[str, str] | None) -> ScanListing:
    if not listing.label_columns:
        raise DataError(
            f"The {listing.kind} source {listing.root} gives no labels. {listing.no_labels}Give a table with --labels "
            "labels.csv, with a column label and one of patient_id, study_uid, accession_number, series_uid or file. "
            "Folders are labels where each class has one: --class-folders for DICOM and NIfTI."
        )
    spellings = LabelSpellings({})
    if len(listing.label_columns) == 1:
        spellings = label_spellings([scan.labels[0] for scan in listing.scans if scan.labels], rename)
    elif rename:
        raise ConfigError("--rename gives classes of one column another name; here each column is a label.")
    labelled, without = [], []
    for scan in listing.scans:
        labels = tuple(spellings.classes.get(label, label) for label in scan.labels)
        if any(labels):
            labelled.append(replace(scan, labels=labels))
        else:
            without.append((scan.path, f"the label is missing: {scan.labels[0]!r}" if labels else "no label"))
    notes = (*listing.notes, *spellings.notes)
    return replace(listing, scans=tuple(labelled), left_out=(*listing.left_out, *without), notes=notes)


def _manifest_columns(label_columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that the manifest has for these label columns of a table."""
    if len(label_columns) == 1:
        return ("label",)
    if reserved := [name for name in label_columns if name.lower() in RESERVED]:
        raise ConfigError(f"--label-column {reserved[0]} is a column of every manifest: rename it in the table.")
    return tuple(label_columns)


def find_patients(
    listing: ScanListing, joined: JoinedLabels | None, pattern: str, one_per_image: bool
) -> tuple[list[str], str]:
    """The patient of each scan, and a warning where images had to count as patients.

    `pattern` (--patient) decides alone; else the source and the table of labels together; else each image counts as one
    (--patient-per-image). Raises DataError where a patient is unknown and where source and table contradict each other,
    ConfigError for a pattern that is not a regular expression with one group.
    """
    from_table = joined.patients if joined else {}
    if pattern == FROM_TABLE:
        patients = [from_table.get(at, "") for at in range(len(listing.scans))]
    elif pattern:
        return _patients_by_pattern(listing.scans, pattern), ""
    else:
        _refuse_mixed_cases(listing.scans)
        ignored = one_per_image and listing.patients_unknown  # folders that count as patients otherwise
        patients = _reconciled(["" if ignored else scan.patient for scan in listing.scans], from_table)
    pairs = list(zip(listing.scans, patients, strict=True))
    unknown = [public_path(scan.path) for scan, patient in pairs if patient.lower() in UNKNOWN_PATIENT]
    if not unknown:
        return patients, ""
    all_unknown = len(unknown) == len(patients)
    may_count_images = listing.patients_unknown and joined is None and all_unknown
    if not (one_per_image or may_count_images):
        raise DataError(
            f"The patient of {len(unknown)} of {len(patients)} scans is not known: {listed(unknown, 3)}. A patient in "
            "two splits makes every score too good. Give a column patient_id in the table of labels; or --patient with "
            "a regular expression whose group is the patient in the path, as in --patient '(P\\d+)_'; or, where each "
            "image is of another patient, --patient-per-image."
        )
    patients = [scan.image if patient.lower() in UNKNOWN_PATIENT else patient for scan, patient in pairs]
    some = f"The patients of {len(unknown)} of {len(patients)} scans are not known"
    return patients, f"{'No patient IDs found' if all_unknown else some}: {_ASSUMED}"


def _refuse_mixed_cases(scans: Sequence[Scan]) -> None:
    """Refuse cases whose images are of several patients by their headers."""
    mixed = [scan for scan in scans if len({_known(image.patient) for image in scan.images} - {""}) > 1]
    if mixed:
        raise DataError(
            f"The images of {len(mixed)} of {len(scans)} cases are of several patients by their headers, such as those "
            f"of {listed([public_path(scan.images[0].path) for scan in mixed], 3)}. Correct the table of cases. Where "
            f"the header's identifier stands for no patient, --patient {FROM_TABLE} takes the table's."
        )


def _reconciled(from_source: Sequence[str], from_table: Mapping[int, str]) -> list[str]:
    """The patient of each scan by both: all identifiers of a source that the table gives to one person are that person.

    Raises DataError where one identifier of the source belongs to several persons of the table.
    """
    source = [_known(patient) for patient in from_source]
    table = [_known(from_table.get(at, "")) for at in range(len(source))]
    persons: dict[str, set[str]] = defaultdict(set)
    names: dict[str, set[str]] = defaultdict(set)
    for name, person in zip(source, table, strict=True):
        if name and person:
            persons[name].add(_plain_patient(person))
            names[_plain_patient(person)].add(name)
    if torn := [name for name, of_name in persons.items() if len(of_name) > 1]:
        counts = f"{pseudonym(torn[0])} (a pseudonym) belongs to {len(persons[torn[0]])}"
        raise DataError(
            f"Patients of the source that are several in the table of labels, {len(torn)}: {counts}. Images of one "
            "patient could then be in several splits. Correct the column of patients in the table. Where the source's "
            f"identifier stands for no patient (each file has the same), --patient {FROM_TABLE} takes the table's."
        )
    patients = []
    for name, person in zip(source, table, strict=True):
        group = _plain_patient(person) if person else next(iter(persons.get(name, ())), "")
        alone = len(names.get(group, ())) == 1
        patients.append(next(iter(names[group])) if alone else group or name)
    return patients


def _known(patient: str) -> str:
    """A patient as one spelling (Unicode NFC); empty where the text says that the patient is not known."""
    plain = normalize("NFC", patient.strip())
    return "" if plain.lower() in UNKNOWN_PATIENT else plain


def _plain_patient(patient: str) -> str:
    return patient.removeprefix("sub-")  # tables of BIDS have either form


def _patients_by_pattern(scans: Sequence[Scan], text: str) -> list[str]:
    """The patient in the path of each scan; in the paths of all images of a case it has to be the same."""
    pattern = compile_pattern(text, "--patient")
    if pattern.groups != 1:
        raise ConfigError(
            f"--patient {text!r} needs one group in brackets, around the patient; it has {pattern.groups}."
        )
    paths = [[image.path for image in scan.images] for scan in scans]
    matches = [[(path, pattern.search(path)) for path in images] for images in paths]
    if without := [public_path(path) for images in matches for path, match in images if not (match and match[1])]:
        count = sum(map(len, paths))
        raise DataError(
            f"--patient {text!r} finds no patient in {len(without)} of {count} paths: {listed(without, 3)}."
        )
    found = [{match[1] for _, match in images if match} for images in matches]
    if torn := [public_path(images[0]) for images, patients in zip(paths, found, strict=True) if len(patients) > 1]:
        raise DataError(
            f"--patient {text!r} finds another patient in the paths of one case, in {len(torn)} of {len(scans)} cases: "
            f"those of {listed(torn, 3)}. Correct the table of cases, or the expression."
        )
    return [patients.pop() for patients in found]


def refuse_ambiguous_series(scans: Sequence[Scan], joined: JoinedLabels | None) -> None:
    """Refuse several 3-D series of a study under one label of the whole study: the user has to choose one."""
    key = joined.key if joined else "folder"
    if key in ("series", "file"):
        return
    studies: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if scan.volume and scan.study:
            studies[scan.study].append(scan)
    ambiguous = [members for members in studies.values() if len(members) > 1]
    if ambiguous:
        frames: dict[tuple[str, str], list[int]] = defaultdict(list)
        for scan in (scan for members in ambiguous for scan in members):
            frames[scan.description or "no description", scan.orientation].append(scan.frames)
        texts = [
            f"'{name}'{orientation and ', '}{orientation}, {_range_text(counts)} in {len(counts)} series"
            for (name, orientation), counts in sorted(frames.items())
        ]
        raise DataError(
            f"{len(ambiguous)} of {len(studies)} studies have several series, and the labels are by {key}, so it is "
            f"not said which series is meant: {listed(texts, 12)}. Choose with --description REGEX, or with "
            "--series-rules STUDY.yaml (medopt series DIR lists what there is), or give labels by series_uid or file."
        )


def _range_text(frames: Sequence[int]) -> str:
    low, high = min(frames), max(frames)
    return f"{low} frames" if low == high else f"{low} to {high} frames"
