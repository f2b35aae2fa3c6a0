"""The patient and study that results repeat: values that all images of a study agree on, in a form that DICOM allows.

A study belongs to one patient (PS3.3 A.1.2). Where its images name several, or hold an identifier that cannot be
repeated as it is, there are no results: nobody but a person can say whose they would be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM

from medopt.core.errors import DataError

UNICODE = "ISO_IR 192"
_IMAGE_KEYWORDS = ("SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "Modality", "Rows", "Columns")
_TIME_ZONE = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")


class PatientConflict(DataError):
    """The images of a study do not name one patient. The text holds no value of theirs."""


def study_header(images: Sequence[Dataset]) -> Dataset:
    """Patient and study of the results of these images. Raises PatientConflict where they are not of one patient.

    What describes the study and differs from image to image, or has no valid form, is empty: never an invented value.
    """
    header = Dataset()
    header.SpecificCharacterSet = UNICODE
    for keyword, normalize in _PATIENT.items():
        setattr(header, keyword, _patient_value(images, keyword, normalize))
    for keyword, normalize in _STUDY.items():
        values = {normalize(value) for image in images for value in element_texts(image, keyword)}
        setattr(header, keyword, values.pop() if len(values) == 1 else "")
    return header


def image_header(image: Dataset, study: Dataset) -> Dataset:
    """The header of an image as results refer to it: its own UIDs and size, with the patient and study of all."""
    header = Dataset()
    header.update(study)
    for keyword in _IMAGE_KEYWORDS:
        setattr(header, keyword, _single(image, keyword))
    return header


def element_texts(image: Dataset, keyword: str) -> list[str]:
    """The values of an element without padding, none of them empty; [] also where it cannot be parsed."""
    try:
        value = image.get(keyword)
        values = value if isinstance(value, MultiValue) else [value]
        texts = [str(each).strip("\0 ") for each in values if each is not None]
    except Exception:  # pydicom parses an element on access; each kind of damage raises its own exception
        return []
    return [text for text in texts if text]


def _single(image: Dataset, keyword: str) -> int | str:
    if keyword in ("Rows", "Columns"):
        texts = element_texts(image, keyword)
        return int(texts[0]) if len(texts) == 1 and texts[0].isdecimal() else ""
    values = set(element_texts(image, keyword))
    return values.pop() if len(values) == 1 else ""


def _patient_value(images: Sequence[Dataset], keyword: str, normalize: Callable[[str], str]) -> str:
    """The one value of all images. An image may lack any of them but the patient's ID, if others have it."""
    of_images = [element_texts(image, keyword) for image in images]
    values: dict[str, str] = {}
    for value in (text for texts in of_images for text in texts):
        values.setdefault(_comparable(keyword, value), value)
    some_lack_it = keyword == "PatientID" and bool(values) and not all(of_images)
    if len(values) > 1 or some_lack_it:
        raise PatientConflict(
            f"The images of this study do not name one patient: they differ in {keyword}, and a study belongs to one "
            "patient (PS3.3 A.1.2). Correct them where they come from, and send them as new images."
        )
    value = normalize(next(iter(values.values()), ""))
    if values and not value and keyword in ("PatientID", "IssuerOfPatientID"):
        raise PatientConflict(
            f"{keyword} of this study's images is longer than DICOM allows, or holds characters that it does not allow "
            "(PS3.5 6.2), so results cannot repeat it. Correct it where the images come from."
        )
    return value


def _comparable(keyword: str, value: str) -> str:
    """What two values of one patient have in common, however carefully they were typed."""
    if keyword == "PatientName":  # one group is enough: others write the same name in other scripts (PS3.5 6.2.1.1)
        first = next((group for group in value.split("=") if group), "")
        return " ".join(re.split(r"[\s^]+", first.casefold())).strip()
    return _date(value) or value if keyword == "PatientBirthDate" else value


def _text(limit: int) -> Callable[[str], str]:
    """A text of at most so many characters without controls or backslash (PS3.5 6.2); '' for any other."""
    return lambda value: value if len(value) <= limit and value.isprintable() and "\\" not in value else ""


def _name(value: str) -> str:
    """A person's name (PS3.5 6.2.1): three groups of at most 64 characters with five components each; else ''."""
    groups = value.split("=")
    fits = len(groups) <= 3 and all(len(group) <= 64 and group.count("^") <= 4 for group in groups)
    return value if fits and value.isprintable() and "\\" not in value else ""


def _sex(value: str) -> str:
    return value if value in ("M", "F", "O") else ""


def _date(value: str) -> str:
    """A date as YYYYMMDD. The form YYYY.MM.DD of ACR-NEMA is read, too (PS3.5 6.2, DA); '' for any other text."""
    text = re.sub(r"^(\d{4})\.(\d\d)\.(\d\d)$", r"\1\2\3", value)
    return text if _is_valid(DA, text, r"\d{8}") else ""


def _time(value: str) -> str:
    """A time as HHMMSS.FFFFFF, or the beginning of that. HH:MM:SS is read, too (PS3.5 6.2, TM); else ''."""
    text = re.sub(r"^(\d\d):(\d\d)(?::(\d\d))?", lambda match: "".join(match.groups("")), value)
    return text if _is_valid(TM, text, r"\d\d(\d\d(\d\d(\.\d{1,6})?)?)?") else ""


def _is_valid(parse: Callable[[str], object], text: str, form: str) -> bool:
    try:
        return re.fullmatch(form, text) is not None and parse(text) is not None
    except ValueError:
        return False


def _offset(value: str) -> str:
    return value if _TIME_ZONE.fullmatch(value) else ""


def copy_missing(target: Dataset, header: Dataset, keywords: Iterable[str]) -> None:
    """Set what a library that builds objects leaves out, where the study has it."""
    for keyword in keywords:
        if header.get(keyword):
            setattr(target, keyword, header.get(keyword))


_PATIENT: dict[str, Callable[[str], str]] = {
    "PatientID": _text(64),
    "IssuerOfPatientID": _text(64),
    "PatientName": _name,
    "PatientBirthDate": _date,
    "PatientSex": _sex,
}
_STUDY: dict[str, Callable[[str], str]] = {
    "StudyInstanceUID": _text(64),
    "AccessionNumber": _text(16),
    "StudyID": _text(16),
    "StudyDate": _date,
    "StudyTime": _time,
    "StudyDescription": _text(64),
    "ReferringPhysicianName": _name,
    "TimezoneOffsetFromUTC": _offset,
}
OPTIONAL = ("StudyDescription", "IssuerOfPatientID", "TimezoneOffsetFromUTC")
"""Attributes of the header that highdicom does not copy into its objects."""
