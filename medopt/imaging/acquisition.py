"""How a scan was acquired, as far as its file says: the basis of subgroups and of the out-of-domain check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from medopt.core.records import Volume

AGE_BANDS = ((18, "below 18"), (40, "18 to 39"), (65, "40 to 64"), (200, "65 and older"))
"""(first age in years above the band, name of the band)."""
SIZE_BANDS = (
    (128, "below 128"),
    (256, "128 to 255"),
    (512, "256 to 511"),
    (1024, "512 to 1023"),
    (2048, "1024 to 2047"),
)
SEX_NAMES = {"m": "male", "male": "male", "f": "female", "female": "female", "o": "other", "other": "other"}


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Facts that identify nobody and may change a score. A text that the file does not give is empty.

    `spacing_mm` and `shape` (pixels) follow the spatial axes of the scan, (H, W) or (D, H, W); `spacing_mm` is empty
    where the file gives no spacing. `age` is in whole years; `scanner` is manufacturer and model.
    """

    modality: str
    scanner: str
    view: str
    sex: str
    age: str
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]

    @classmethod
    def from_volume(cls, volume: Volume) -> Acquisition:
        """The facts of a scan that was read."""
        source = volume.source
        return cls(
            modality=volume.modality,
            scanner=" ".join(filter(None, (source.get("manufacturer", ""), source.get("model", "")))),
            view=source.get("view", ""),
            sex=source.get("sex", ""),
            age=source.get("age", ""),
            spacing_mm=tuple(round(float(step), 4) for step in volume.spacing_mm) if volume.has_spacing else (),
            shape=volume.array.shape[1:],
        )

    def subgroups(self) -> dict[str, str]:
        """The subgroup of the scan for each variable; empty where it is unknown.

        >>> Acquisition("DX", "Acme X1", "PA", "F", "71", (0.2, 0.2), (2048, 1792)).subgroups()["age"]
        '65 and older'
        """
        return {
            "sex": sex_name(self.sex),
            "age": age_band(self.age),
            "scanner": self.scanner,
            "view": self.view,
            "image size": _size_band(self.shape),
        }


def sex_name(text: str) -> str:
    """`male`, `female` or `other` for what a header or a table says; empty for anything else."""
    return SEX_NAMES.get(text.strip().lower(), "")


def age_band(text: str) -> str:
    """The band of an age ("45" years, "045Y", "018M", "90+"); empty where the text is no age."""
    years = age_in_years(text, unit="Y")
    return next((name for end, name in AGE_BANDS if years and int(years) < end), "")


MAX_AGE = 90
"""Stands for this age and above, since few people are older."""
_NO_AGE = 130  # years; more is a placeholder
_UNITS_PER_YEAR = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}


def age_in_years(text: str, *, unit: str = "", birth: str = "", study: str = "") -> str:
    """Whole years, at most MAX_AGE, of an Age String (PS3.5 6.2: 018M, 045Y, 61Y); empty where none is given.

    `unit` is that of a number without one. Without an age, the dates of birth and of the study (YYYYMMDD) give it.

    >>> age_in_years("018M"), age_in_years("093Y"), age_in_years("", birth="19600401", study="20210331")
    ('1', '90', '60')
    """
    match = re.fullmatch(r"(\d{1,3}(?:\.\d+)?) *[+]? *([DWMY]?)", text.strip().upper())
    known = _UNITS_PER_YEAR.get(match[2] or unit) if match else None
    if match is not None and known is not None:
        years = int(float(match[1]) / known)
    else:
        born, seen = _date(birth), _date(study)
        if born is None or seen is None:
            return ""
        years = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return str(min(MAX_AGE, years)) if 0 <= years <= _NO_AGE else ""


def _date(text: str) -> date | None:
    """A date as PS3.5 6.2 writes it, YYYYMMDD, or with dots as before DICOM."""
    digits = text.strip().replace(".", "").replace("-", "")[:8]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None


class Header(Protocol):
    """What gives the elements of a DICOM header by keyword."""

    def get(self, key: str, default: Any = None, /) -> Any:
        """The value of an element, else `default`."""


AGE_KEYWORDS = ("PatientAge", "PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")


def patient_age(header: Header) -> str:
    """The age that a DICOM header gives, as `age_in_years`."""
    age, birth, *dates = (str(header.get(keyword) or "") for keyword in AGE_KEYWORDS)
    return age_in_years(age, birth=birth, study=next(filter(None, dates), ""))


def _size_band(shape: tuple[int, ...]) -> str:
    """By the shorter side of an image (in a volume: of a slice), in pixels."""
    side = min(shape[-2:], default=0)
    return next((f"{name} px" for end, name in SIZE_BANDS if side < end), "2048 px and more")
