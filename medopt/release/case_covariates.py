"""The covariates of a case in service: those that a request gives, else those of the scan's own DICOM headers.

No value stands in an error or in a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydicom import Dataset
from pydicom.multival import MultiValue

from medopt.config import Covariate
from medopt.config.covariates import AGE
from medopt.core.errors import DataError
from medopt.imaging.acquisition import AGE_KEYWORDS, patient_age
from medopt.imaging.channels import ScanPath
from medopt.imaging.dicom_file import is_dicom
from medopt.imaging.parse_dicom import parse_dicom
from medopt.imaging.scan_path import files_below, split_part
from medopt.manifest.label_words import MISSING, label_key

Cells = Mapping[str, str]


def given_cells(covariates: Sequence[Covariate], values: Mapping[str, object] | None) -> dict[str, str]:
    """What a request gives, as the cells of a table; None is an empty one.

    Raises DataError where it gives what the release does not take.
    """
    names = [one.column for one in covariates]
    if any(name not in names for name in values or ()):
        takes = f"its covariates are {', '.join(names)}" if names else "it has none"
        raise DataError(f"A covariate was given that this release does not take: {takes}.")
    return {name: "" if value is None else str(value).strip() for name, value in (values or {}).items()}


def with_headers(covariates: Sequence[Covariate], cells: Cells, headers: Iterable[Dataset]) -> dict[str, str]:
    """The cells, and from DICOM headers those that are missing and have an element in the study.

    Where the headers of a case contradict each other, the value is missing.
    """
    wanted = [one for one in covariates if one.tag and label_key(cells.get(one.column, "")) in MISSING]
    found: dict[str, set[str]] = {one.column: set() for one in wanted}
    for header in headers if wanted else ():
        for one in wanted:
            found[one.column].add(_text(header, one.tag))
    agreed = {name: texts - {""} for name, texts in found.items()}
    return {**cells, **{name: texts.pop() for name, texts in agreed.items() if len(texts) == 1}}


def headers_of(covariates: Sequence[Covariate], scan: ScanPath) -> Iterator[Dataset]:
    """The headers of a scan's DICOM files, with the elements of the covariates alone; none of other formats."""
    keywords = {one.tag for one in covariates if one.tag}
    if not keywords:
        return
    wanted = [*keywords, "SeriesInstanceUID", *(AGE_KEYWORDS if AGE in keywords else ())]
    for place in scan if isinstance(scan, tuple) else (scan,):
        path, series = split_part(Path(place)) if place else (Path(), "")
        files = [path / name for name in files_below(path)] if path.is_dir() else [path]
        for file in files if place else ():
            with suppress(Exception):  # a file that is no scan; what cannot be read is refused where it is prepared
                with file.open("rb") as stream:
                    if not is_dicom(stream.read(132)):
                        continue
                header = parse_dicom(file, stop_before_pixels=True, force=True, specific_tags=wanted)
                if not series or str(header.get("SeriesInstanceUID", "")) == series:
                    yield header


def _text(header: Dataset, keyword: str) -> str:
    """The one value of an element; "" where it has none or several, or is damaged."""
    with suppress(Exception):  # pydicom parses an element on access; each kind of damage raises its own exception
        if keyword == AGE:
            return patient_age(header)
        value = header.get(keyword)
        return "" if value is None or isinstance(value, MultiValue) else str(value).strip("\0 ")
    return ""
