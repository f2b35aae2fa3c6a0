"""A DICOM tree: one row per 3-D series and one per projection image, whatever the names of the files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.privacy import pseudonym
from medopt.core.reporter import Reporter
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.series_index import Series, SeriesIndex, index_folder
from medopt.imaging.series_rules import SeriesSelection, select_series
from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, count_by_reason, unwritable_reason

VOLUMES = ("CT", "MR", "PT")
"""Modalities whose series of several frames is one scan."""
_IDENTITY = ("PatientID", "StudyInstanceUID", "AccessionNumber", "PatientAge", "PatientSex", "NumberOfFrames")
_UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}  # PS3.5 6.2, AS: how many make a year
_CLIP = "several frames in one file, and the modality is not CT, MR or PT"


def find_dicom(root: Path, options: SourceOptions, reporter: Reporter) -> ScanListing:
    """The scans of a folder that a scanner or a PACS exported.

    Localizers and CT, MR and PET series computed from others are left out, unless the options keep them.
    Raises DataError where nothing is left.
    """
    index = index_folder(root, reporter)
    selection = select_series(index.series, options.rules) if options.rules else None
    if selection:
        selection.require_one_each()
    folders = _Folders(index)
    scans: list[Scan] = []
    left_out = [(_relative(root, path), reason) for path, reason in index.other_files]
    burned_in = 0
    for series in index.series:
        if reason := _exclusion_reason(series, options, selection):
            left_out.append((_relative(root, series.files[0]), reason))
            continue
        burned_in += series.burned_in
        for scan in [_volume_scan(series, folders)] if _is_volume(series) else _image_scans(series, root):
            reason = _CLIP if not scan.volume and scan.frames > 1 else unwritable_reason(scan.image)
            if scan.image.count("#") > 1:
                reason = "its folder has # in its name, which has to separate the folder from the UID of the series"
            if reason:
                left_out.append((scan.path, reason))
            else:
                scans.append(scan)
    if not scans:
        reasons = "; ".join(f"{reason} ({count})" for reason, count, _ in count_by_reason(left_out))
        raise DataError(f"No scan of {root} is left for a manifest. Left out: {reasons}.")
    note = f"{burned_in} series say that text is burned into their pixels; it may name a patient."
    notes = (note,) if burned_in else ()
    return ScanListing("DICOM", root, tuple(_with_sites(scans, index, options)), tuple(left_out), notes=notes)


def _exclusion_reason(series: Series, options: SourceOptions, selection: SeriesSelection | None) -> str:
    """Why a series is left out; empty where it is not. Where there are rules, they alone decide."""
    if selection:
        return "" if series in selection.chosen else f"the rules of data.series: {selection.reasons[series.uid]}"
    if options.modality and series.modality.upper() != options.modality.upper():
        return f"the modality is not {options.modality}"
    if not options.matches(series.description, series.protocol):
        return "the description does not match --description"
    if series.localizer and not options.keep_derived:
        return "a localizer (--keep-derived keeps it)"
    if series.derived and series.modality in VOLUMES and not options.keep_derived:
        return "derived from other images (--keep-derived keeps it)"
    return ""


def _is_volume(series: Series) -> bool:
    return series.modality in VOLUMES and series.frames > 1


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
        age=_age(series.age),
        sex=_sex(series.sex),
        volume=True,
        description=series.description or series.protocol,
        orientation=series.orientation,
        frames=series.frames,
    )


def _image_scans(series: Series, root: Path) -> Iterator[Scan]:
    """One scan per file. Where a series has several files, each says itself whose it is."""
    values = (series.patient, series.study_uid, series.accession, series.age, series.sex, str(series.frames))
    for path in series.files:
        own = dict(zip(_IDENTITY, values, strict=True)) if len(series.files) == 1 else _identity(path)
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
            age=_age(own["PatientAge"]),
            sex=_sex(own["PatientSex"]),
            description=series.description or series.protocol,
            frames=int(count) if count.isdigit() else 1,
        )


def _identity(path: Path) -> dict[str, str]:
    header = parse_dicom(path, stop_before_pixels=True, force=True, specific_tags=list(_IDENTITY))
    return {keyword: str(header.get(keyword) or "").strip() for keyword in _IDENTITY}


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


def _age(text: str) -> str:
    """Whole years of an Age String (PS3.5 6.2) such as 061Y or 018M; empty for any other text."""
    match = re.fullmatch(r"(\d{1,3})([YMWD])", text.strip().upper())
    return str(int(int(match[1]) / _UNITS_PER_YEAR[match[2]])) if match else ""


def _sex(text: str) -> str:
    return text.upper() if text.upper() in ("M", "F", "O") else ""


def _relative(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
