"""A DICOM tree: one row per 3-D series and one per projection image, whatever the names of the files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.privacy import pseudonym
from medopt.core.reporter import Reporter
from medopt.imaging.acquisition import AGE_KEYWORDS, patient_age
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.series_index import VOLUMES, Series, SeriesIndex, index_folder
from medopt.imaging.series_rules import SeriesSelection, select_series
from medopt.manifest.sources.scan_listing import (
    Scan,
    ScanListing,
    SourceOptions,
    case_of,
    count_by_reason,
    unwritable_reason,
)

_IDENTITY = ("PatientID", "StudyInstanceUID", "AccessionNumber", "PatientSex", "NumberOfFrames")
_CLIP = "several frames in one file without a position of each: a clip, not a volume"


def find_dicom(root: Path, options: SourceOptions, reporter: Reporter) -> ScanListing:
    """The scans of a folder that a scanner or a PACS exported.

    Localizers, secondary captures and CT, MR and PET series computed from others are left out, unless the options keep
    them. Of an exposure FOR PROCESSING and FOR PRESENTATION one is taken.
    Raises DataError where nothing is left.
    """
    index = index_folder(root, reporter)
    rules = options.rules
    selection = select_series(index.series, rules, may_miss=options.may_miss) if rules else None
    if selection:
        selection.require_one_each()
    folders = _Folders(index)
    scans: list[Scan] = []
    left_out = [(_relative(root, path), reason) for path, reason in index.other_files]
    burned_in = 0
    modalities: Counter[str] = Counter()
    intents = {series.intent for series in index.series if not _exclusion_reason(series, options, selection)}
    both = {"PRESENTATION", "PROCESSING"} <= intents and not selection
    intent = options.presentation_intent.upper() or ("PRESENTATION" if both else "")
    for series in index.series:
        reason = _exclusion_reason(series, options, selection)
        if not reason and intent and series.intent not in ("", intent):
            reason = f"FOR {series.intent} (--presentation-intent {series.intent.lower()} takes these)"
        if reason:
            left_out.append((_relative(root, series.files[0]), reason))
            continue
        burned_in += series.burned_in
        for scan in [_volume_scan(series, folders)] if series.volume else _image_scans(series, root):
            reason = _CLIP if not scan.volume and scan.frames > 1 else unwritable_reason(scan.image)
            if scan.image.count("#") > 1:
                reason = "its folder has # in its name, which has to separate the folder from the UID of the series"
            if reason:
                left_out.append((scan.path, reason))
            else:
                scans.append(scan)
                modalities[series.modality or "not said"] += 1
    if not scans:
        reasons = "; ".join(f"{reason} ({count})" for reason, count, _ in count_by_reason(left_out))
        raise DataError(f"No scan of {root} is left for a manifest. Left out: {reasons}.")
    notes = []
    if burned_in:
        notes.append(f"{burned_in} series say that text is burned into their pixels; it may name a patient.")
    if len(modalities) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in modalities.most_common())
        notes.append(f"The scans are of several modalities: {counts}. --modality keeps one.")
    listing = ScanListing("DICOM", root, tuple(_with_sites(scans, index, options)), tuple(left_out), notes=tuple(notes))
    return _cases(listing, selection, tuple(rules.channels)) if selection and rules and rules.channels else listing


def _cases(listing: ScanListing, selection: SeriesSelection, names: tuple[str, ...]) -> ScanListing:
    """A case for each study, of the scans of the series that the rules chose for its images.

    Raises DataError where one of them cannot be written into a manifest.
    """
    by_file = {scan.files[0]: scan for scan in listing.scans}
    cases = []
    for chosen in selection.cases:
        files = {name: _relative(listing.root, series.files[0]) for name, series in chosen.items()}
        if absent := [name for name, file in files.items() if file not in by_file]:
            reason = dict(listing.left_out).get(files[absent[0]], "it was left out")
            study = pseudonym(next(iter(chosen.values())).study_uid)
            raise DataError(f"The image {absent[0]} of study {study} (a pseudonym) cannot be used: {reason}.")
        cases.append(case_of(tuple(by_file[files[name]] if name in files else None for name in names)))
    return replace(listing, scans=tuple(cases), channel_names=names)


def _exclusion_reason(series: Series, options: SourceOptions, selection: SeriesSelection | None) -> str:
    """Why a series is left out; empty where it is not. Where there are rules, they alone decide."""
    if selection:
        return "" if series in selection.chosen else f"the rules of data.series: {selection.reasons[series.uid]}"
    kept = options.keep_derived
    checks = (
        (
            options.modality and series.modality.upper() != options.modality.upper(),
            f"the modality is not {options.modality}",
        ),
        (not options.matches(series.description, series.protocol), "the description does not match --description"),
        (series.localizer and not kept, "a localizer (--keep-derived keeps it)"),
        (series.capture and not kept, "a secondary capture or a document (--keep-derived keeps it)"),
        (
            series.derived and series.modality in VOLUMES and not kept,
            "derived from other images (--keep-derived keeps it)",
        ),
    )
    return next((reason for excluded, reason in checks if excluded), "")


class _Folders:
    """Which folders hold, with all folders below them, files of one series only."""

    def __init__(self, index: SeriesIndex) -> None:
        self.root = index.root
        self._series: dict[Path, set[str]] = defaultdict(set)
        for series in index.series:
            for folder in {path.parent for path in series.files}:
                for place in (folder, *folder.parents):
                    self._series[place].add(series.uid)
        foreign = {path.parent for path, reason in index.other_files if reason == "not DICOM"}
        self._foreign = {place for folder in foreign for place in (folder, *folder.parents)}

    def image(self, series: Series) -> str:
        """The file, the folder, or `folder#UID` that `read_scan` reads as this series."""
        if len(series.files) == 1:
            return _relative(self.root, series.files[0])
        folder = _relative(self.root, series.folder)
        alone = self._series[series.folder] == {series.uid} and series.folder not in self._foreign
        return folder if alone and folder != "." else f"{folder}#{series.uid}"


def _volume_scan(series: Series, folders: _Folders) -> Scan:
    files = tuple(_relative(folders.root, path) for path in series.files)
    return Scan(
        image=folders.image(series),
        files=files,
        patient=series.patient,
        study=series.study_uid,
        series=_uid(series),
        accession=series.accession,
        site=series.uid,  # replaced by the site in _with_sites
        age=series.age,
        sex=_sex(series.sex),
        volume=True,
        description=series.description or series.protocol,
        orientation=series.orientation,
        frames=series.frames,
    )


def _image_scans(series: Series, root: Path) -> Iterator[Scan]:
    """One scan per file. Where a series has several files, each says itself whose it is."""
    values = (series.patient, series.study_uid, series.accession, series.sex, str(series.frames))
    for path in series.files:
        alone = len(series.files) == 1
        own, age = (dict(zip(_IDENTITY, values, strict=True)), series.age) if alone else _identity(path)
        count = own["NumberOfFrames"]
        file = _relative(root, path)
        yield Scan(
            image=file,
            files=(file,),
            patient=own["PatientID"],
            study=own["StudyInstanceUID"],
            series=_uid(series),
            accession=own["AccessionNumber"],
            site=series.uid,
            age=age,
            sex=_sex(own["PatientSex"]),
            description=series.description or series.protocol,
            frames=int(count) if count.isdigit() else 1,
        )


def _identity(path: Path) -> tuple[dict[str, str], str]:
    """What a file of a series says of itself, and the age of its patient."""
    header = parse_dicom(path, stop_before_pixels=True, force=True, specific_tags=[*_IDENTITY, *AGE_KEYWORDS])
    return {keyword: str(header.get(keyword) or "").strip() for keyword in _IDENTITY}, patient_age(header)


def _uid(series: Series) -> str:
    """The SeriesInstanceUID; empty for a file without one, for which the index made up a name."""
    return "" if series.uid.startswith("file ") else series.uid


def _with_sites(scans: list[Scan], index: SeriesIndex, options: SourceOptions) -> Iterator[Scan]:
    """The scans with their site in place of the UID of their series."""
    site_of_series = {series.uid: _site(series, options) for series in index.series}
    for scan in scans:
        yield replace(scan, site=site_of_series[scan.site])


def _site(series: Series, options: SourceOptions) -> str:
    if series.institution and options.site_from != "scanner":
        return site_of(series.institution)
    if options.site_from == "institution":
        return "unknown"
    return " ".join(f"{series.manufacturer} {series.model}".split()) or "unknown"


def site_of(institution: str) -> str:
    """The pseudonym of a hospital, whatever the case and the blanks of its name."""
    return f"site_{pseudonym(' '.join(institution.lower().split()))[:6]}"


def _sex(text: str) -> str:
    return text.upper() if text.upper() in ("M", "F", "O") else ""


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
