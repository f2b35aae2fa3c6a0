"""A DICOM tree: one row a 3-D series, one row a projection image, whatever the files are called."""

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
from medopt.imaging.series_index import Index, Series, index_folder
from medopt.imaging.series_rules import SeriesChoice, choose
from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, by_reason, unwritable

VOLUMES = ("CT", "MR", "PT")
"""Modalities whose series of several frames is one scan."""
_IDENTITY = ("PatientID", "StudyInstanceUID", "AccessionNumber", "PatientAge", "PatientSex", "NumberOfFrames")
_YEARS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}  # PS3.5 6.2, AS: how many make a year
_CLIP = "several frames in one file, and the modality is not CT, MR or PT"


def find_dicom(root: Path, options: SourceOptions, reporter: Reporter) -> ScanListing:
    """The scans of a folder that a scanner or a PACS exported.

    Localizers are left out, and so are CT, MR and PET series computed from others, unless they are to be kept.
    Raises DataError where nothing is left.
    """
    index = index_folder(root, reporter)
    choice = choose(index.series, options.rules) if options.rules else None
    folders = _Folders(index)
    scans: list[Scan] = []
    left_out = [(_below(root, path), reason) for path, reason in index.others]
    burned_in = 0
    for series in index.series:
        if reason := _unwanted(series, options, choice):
            left_out.append((_below(root, series.files[0]), reason))
            continue
        burned_in += series.burned_in
        made = [_whole(series, folders)] if _is_volume(series) else list(_single(series, root))
        for scan in made:
            reason = _CLIP if not scan.volume and scan.frames > 1 else unwritable(scan.image)
            if scan.image.count("#") > 1:
                reason = "its folder has # in its name, which stands before a series' UID"
            if reason:
                left_out.append((scan.path, reason))
            else:
                scans.append(scan)
    if not scans:
        reasons = "; ".join(f"{reason} ({count})" for reason, count, _ in by_reason(left_out))
        raise DataError(f"Nothing of {root} is left to make a manifest of. Left out: {reasons}.")
    told = f"{burned_in} series say that text is burned into their pixels; it may name a patient."
    notes = (told,) if burned_in else ()
    return ScanListing("DICOM", root, tuple(_sited(scans, index, options)), tuple(left_out), notes=notes)


def _unwanted(series: Series, options: SourceOptions, choice: SeriesChoice | None) -> str:
    """Why a series is left out; empty where it is not. Rules decide alone."""
    if choice:
        return "" if series in choice.taken else f"the rules of data.series: {choice.reasons[series.uid]}"
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
    """Which folders hold, with all below them, files of one series only."""

    def __init__(self, index: Index) -> None:
        self.root = index.root
        self._series: dict[Path, set[str]] = defaultdict(set)
        for series in index.series:
            for folder in {path.parent for path in series.files}:
                for place in (folder, *folder.parents):
                    self._series[place].add(series.uid)
        foreign = {path.parent for path, reason in index.others if reason == "not DICOM"}
        self._foreign = {place for folder in foreign for place in (folder, *folder.parents)}

    def image(self, series: Series) -> str:
        """The file, the folder, or `folder#UID` that `read_scan` reads as this series."""
        if len(series.files) == 1:
            return _below(self.root, series.files[0])
        place = _below(self.root, series.folder)
        alone = self._series[series.folder] == {series.uid} and series.folder not in self._foreign
        return place if alone and place != "." else f"{place}#{series.uid}"


def _whole(series: Series, folders: _Folders) -> Scan:
    files = tuple(_below(folders.root, path) for path in series.files)
    return Scan(
        image=folders.image(series),
        files=files,
        patient=series.patient,
        study=series.study_uid,
        series=_uid(series),
        accession=series.accession,
        site=series.uid,  # until all series are known, see _sited
        age=_age(series.age),
        sex=_sex(series.sex),
        volume=True,
        description=series.description or series.protocol,
        orientation=series.orientation,
        frames=series.frames,
    )


def _single(series: Series, root: Path) -> Iterator[Scan]:
    """One scan a file. Where a series has several, each file says itself whose it is."""
    said = dict(
        zip(_IDENTITY, (series.patient, series.study_uid, series.accession, series.age, series.sex), strict=False)
    )
    for path in series.files:
        own = said if len(series.files) == 1 else _identity(path)
        count = str(series.frames) if len(series.files) == 1 else own["NumberOfFrames"]
        file = _below(root, path)
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
    """The SeriesInstanceUID; a file without one was given a name of its own by the index."""
    return "" if series.uid.startswith("file ") else series.uid


def _sited(scans: list[Scan], index: Index, options: SourceOptions) -> Iterator[Scan]:
    """The scans with their site in place of their series' key."""
    known = {series.uid: _site(series, options) for series in index.series}
    for scan in scans:
        yield replace(scan, site=known[scan.site])


def _site(series: Series, options: SourceOptions) -> str:
    if series.institution and options.site_from != "scanner":
        return site_of(series.institution)
    if options.site_from == "institution":
        return "unknown"
    return " ".join(f"{series.manufacturer} {series.model}".split()) or "unknown"


def site_of(institution: str) -> str:
    """A hospital's stand-in: the same whatever the case and the blanks of its name."""
    return f"site_{pseudonym(' '.join(institution.lower().split()))[:6]}"


def _age(text: str) -> str:
    """Whole years of an Age String such as 061Y or 018M; empty where it is none."""
    found = re.fullmatch(r"(\d{1,3})([YMWD])", text.strip().upper())
    return str(int(int(found[1]) / _YEARS[found[2]])) if found else ""


def _sex(text: str) -> str:
    return text.upper() if text.upper() in ("M", "F", "O") else ""


def _below(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
