"""NIfTI files, named by BIDS (https://bids-specification.readthedocs.io) or in any other way."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from medopt.core.errors import DataError
from medopt.core.reporter import Reporter
from medopt.imaging.acquisition import age_in_years
from medopt.imaging.nifti import nifti_shape
from medopt.imaging.scan_path import files_below
from medopt.manifest.sources.scan_listing import (
    NEVER_SCANS,
    NIFTI_SUFFIXES,
    Scan,
    ScanListing,
    SourceOptions,
    is_mask,
    scan_stem,
    unread_reason,
    unwritable_reason,
)

_MASK_FOLDERS = frozenset({"derivatives", "mask", "masks", "labels", "labelstr", "labelsts", "seg", "segmentations"})
_BIDS_MASK = re.compile(r"_(dseg|probseg|roi|label-[^/]*)$")
_SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)")
_SESSION = re.compile(r"[/_](ses-[A-Za-z0-9]+)")


def find_nifti(root: Path, options: SourceOptions, reporter: Reporter) -> ScanListing:
    """One scan per NIfTI file; patient and study from BIDS names. Masks, derivatives and 4-D files are left out.

    Raises DataError where nothing is left.
    """
    below = [path for path in files_below(root) if not path.lower().endswith(NEVER_SCANS)]
    paths = [path for path in below if path.lower().endswith(NIFTI_SUFFIXES)]
    participants = _participants(root)
    advance = reporter.progress(len(paths), "reading headers")
    scans = []
    left_out = [(path, unread_reason(path, among="NIfTI files")) for path in sorted({*below} - {*paths})]
    for path in paths:
        reason = _exclusion_reason(path, options) or unwritable_reason(path)
        shape = reason or _shape(root / path)
        if isinstance(shape, str):
            left_out.append((path, shape))
        else:
            scans.append(_scan(path, participants, shape=shape))
        advance(1)
    if not scans:
        raise DataError(f"{root} holds no NIfTI image that can be used ({len(left_out)} files left out).")
    return ScanListing("NIfTI", root, tuple(scans), tuple(left_out))


def _exclusion_reason(path: str, options: SourceOptions) -> str:
    if is_mask(path, _MASK_FOLDERS) or _BIDS_MASK.search(scan_stem(path)):
        return "a mask, a label volume or a derivative, by its name"
    if not options.matches(scan_stem(path.rpartition("/")[2])):
        return "the name does not match --description"
    return ""


def _shape(path: Path) -> tuple[int, ...] | str:
    """The shape in the header, or why the file cannot be used."""
    try:
        shape = nifti_shape(path)
    except Exception as error:  # each kind of damage has its own exception
        return f"its header is damaged ({type(error).__name__})"
    return "several volumes in one file" if any(size > 1 for size in shape[3:]) else shape


def _scan(path: str, participants: dict[str, tuple[str, str]], shape: tuple[int, ...]) -> Scan:
    name = scan_stem(path.rpartition("/")[2])
    volume = sum(size > 1 for size in shape) > 2
    subject, session = _SUBJECT.search(path), _SESSION.search(path)
    if subject is None:
        return Scan(path, (path,), volume=volume, description=name)
    patient = subject[1]
    age, sex = participants.get(patient, ("", ""))
    entities = [part for part in name.split("_") if not part.startswith(("sub-", "ses-"))]
    return Scan(
        image=path,
        files=(path,),
        patient=patient,
        study=f"{patient}_{session[1]}" if session else patient,
        series=name,
        age=age,
        sex=sex,
        volume=volume,
        description="_".join(entities) or name,
        frames=shape[2] if volume else 1,
    )


def _participants(root: Path) -> dict[str, tuple[str, str]]:
    """(age in years, sex) by participant, from the participants.tsv of BIDS."""
    try:
        with (root / "participants.tsv").open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    participants = {}
    for row in rows:
        age, sex = (str(row.get(column) or "").strip() for column in ("age", "sex"))
        age = age_in_years(age, unit="Y")
        sex = sex[:1].upper() if sex[:1].upper() in ("M", "F", "O") else ""
        participants[str(row.get("participant_id") or "").strip()] = (age, sex)
    return participants
