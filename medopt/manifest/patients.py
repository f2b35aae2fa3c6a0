"""Whose each scan is: nobody is guessed where it could be known, and where nobody knows, that is said."""

from __future__ import annotations

from collections.abc import Sequence

from medopt.core.errors import ConfigError, DataError, listed
from medopt.manifest.labels import Joined
from medopt.manifest.sources.scan_listing import Scan, ScanListing, pattern
from medopt.manifest.table import NO_PATIENT

ASSUMED = (
    "each image is taken for one. Images of one patient may stand in several splits, and scores may then be too good. "
    "medopt manifest check looks for near-duplicates."
)


def find_patients(
    found: ScanListing, joined: Joined | None, pattern_text: str, one_per_image: bool
) -> tuple[list[str], str]:
    """Each scan's patient, and what has to be said where images were taken for patients because nobody knows.

    In this order: `pattern_text` (--patient), the source, the table of labels, one an image (--patient-per-image).
    Raises DataError where a patient is not known, ConfigError for a pattern that is none.
    """
    if pattern_text:
        return _by_pattern(found.scans, pattern_text), ""
    told = joined.patients if joined else {}
    patients = [
        scan.patient if scan.patient.lower() not in NO_PATIENT else told.get(at, "")
        for at, scan in enumerate(found.scans)
    ]
    nobody = [scan.path for scan, patient in zip(found.scans, patients, strict=True) if patient.lower() in NO_PATIENT]
    if not nobody:
        return patients, ""
    unasked = found.guess_patients and joined is None and len(nobody) == len(patients)
    if not (one_per_image or unasked):
        raise DataError(
            f"The patient of {len(nobody)} of {len(patients)} scans is not known: {listed(nobody, 3)}. A patient in "
            "two splits makes every score too good. Give a column patient_id in the table of labels; or --patient with "
            "a regular expression whose group is the patient in the path, as in --patient '(P\\d+)_'; or, where each "
            "image is of another patient, --patient-per-image."
        )
    known = zip(found.scans, patients, strict=True)
    guessed = [scan.image if patient.lower() in NO_PATIENT else patient for scan, patient in known]
    part = f"The patients of {len(nobody)} of {len(patients)} scans are not known"
    return guessed, f"{'Nobody knows the patients' if len(nobody) == len(patients) else part}: {ASSUMED}"


def _by_pattern(scans: Sequence[Scan], text: str) -> list[str]:
    finder = pattern(text, "--patient")
    if finder.groups != 1:
        raise ConfigError(
            f"--patient {text!r} needs one group in brackets, around the patient; it has {finder.groups}."
        )
    found = [(scan, finder.search(scan.path)) for scan in scans]
    if without := [scan.path for scan, match in found if not (match and match[1])]:
        raise DataError(
            f"--patient {text!r} finds no patient in {len(without)} of {len(scans)} paths: {listed(without, 3)}."
        )
    return [match[1] for _, match in found if match]
