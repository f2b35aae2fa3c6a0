"""What a DICOM folder holds: one record a series, from headers alone, whatever the files are called.

Identifiers (patient, UIDs, accession) stand in the record because a manifest has to join on them; nothing that prints
may show them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydicom import Dataset

from medopt.core.errors import DataError
from medopt.core.reporter import Reporter, SilentReporter
from medopt.imaging.dicom_file import is_dicom, other_object, vector
from medopt.imaging.dicom_frames import FrameHeader
from medopt.imaging.parse_dicom import parse_dicom

_KEYWORDS = (
    "SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber", "Modality",
    "SeriesDescription", "SeriesNumber", "BodyPartExamined", "ProtocolName", "ImageType", "Manufacturer",
    "ManufacturerModelName", "InstitutionName", "StationName", "PatientAge", "PatientSex",
     "BurnedInAnnotation", "ContrastBolusAgent", "SliceThickness", "ImageOrientationPatient",
    "NumberOfFrames", "Rows", "Columns", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_PLANES = ("sagittal", "coronal", "axial")  # by the axis of the patient that the normal is nearest to: x, y, z
_OBLIQUE = np.cos(np.radians(30))


@dataclass(frozen=True, slots=True)
class Series:
    """One series: where its files are, and what its first header says. Texts are empty where the header is silent.

    `frames` counts the images of all files; `orientation` is axial, coronal, sagittal or oblique (over 30 degrees from
    each), empty where frames are not placed in the patient.
    """

    uid: str
    study_uid: str
    patient: str
    accession: str
    folder: Path
    files: tuple[Path, ...]
    frames: int
    number: str
    modality: str
    description: str
    protocol: str
    body_part: str
    image_type: tuple[str, ...]
    orientation: str
    thickness_mm: float | None
    size: tuple[int, int]
    contrast: bool
    burned_in: bool
    manufacturer: str
    model: str
    institution: str
    station: str
    age: str
    sex: str

    @property
    def localizer(self) -> bool:
        """A scout: an image to plan others on (PS3.3 C.7.6.1.1.2)."""
        return "LOCALIZER" in self.image_type

    @property
    def derived(self) -> bool:
        """Computed from other images (ImageType value 1)."""
        return self.image_type[:1] == ("DERIVED",)


@dataclass(frozen=True, slots=True)
class Index:
    """The image series below a folder, and the files that are none with the reason."""

    root: Path
    series: tuple[Series, ...]
    others: tuple[tuple[Path, str], ...]


def index_folder(root: Path, reporter: Reporter | None = None) -> Index:
    """Read the headers of all files below `root`, hidden ones left out; DICOM is told by content, not by name.

    Raises DataError where `root` is no folder or holds no DICOM image.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. Give the folder that a scanner or a PACS exported.")
    paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    advance = (reporter or SilentReporter()).progress(len(paths), "reading headers")

    def read(path: Path) -> Dataset | str:
        try:
            return _header(path)
        finally:
            advance(1)

    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(read, paths))
    found: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    others = []
    for path, header in zip(paths, headers, strict=True):
        if isinstance(header, str):
            others.append((path, header))
        else:
            found[_text(header, "SeriesInstanceUID") or f"file {path}"].append((path, header))
    if not found:
        raise DataError(f"{root} holds no DICOM image ({len(paths)} other files).")
    series = sorted((_series(uid, members) for uid, members in found.items()), key=_by_place)
    return Index(root, tuple(series), tuple(others))


@lru_cache(maxsize=16)
def _known(root: Path, _changed: int) -> dict[str, tuple[Path, ...]]:
    return {series.uid: series.files for series in index_folder(root).series}


def series_files(folder: Path, uid: str) -> tuple[Path, ...]:
    """The files of one series of a folder that holds several; the folder's headers are read once a process.

    Raises DataError where the folder holds no such series.
    """
    files = _known(folder, folder.stat().st_mtime_ns).get(uid)
    if files is None:
        raise DataError(f"{folder} does not hold the series that is asked for; list what it holds: medopt series.")
    return files


def _header(path: Path) -> Dataset | str:
    """The header's elements that a series is known by, or why the file is no DICOM image."""
    try:
        with path.open("rb") as stream:
            if not is_dicom(stream.read(132)):
                return "not DICOM"
        dataset = parse_dicom(path, stop_before_pixels=True, force=True, specific_tags=list(_KEYWORDS))
        if reason := other_object(dataset):
            return reason
        return dataset
    except OSError as error:
        return f"cannot be opened: {error.strerror or type(error).__name__}"
    except Exception as error:
        return f"its header is damaged ({type(error).__name__})"


def _by_place(series: Series) -> tuple[str, int, str, str]:
    number = int(series.number) if series.number.lstrip("-").isdigit() else 0
    return series.study_uid, number, series.description, series.uid


def _series(uid: str, members: Sequence[tuple[Path, Dataset]]) -> Series:
    files, header = tuple(path for path, _ in members), members[0][1]
    thickness = vector([header.get("SliceThickness")], 1)
    return Series(
        uid=uid,
        study_uid=_text(header, "StudyInstanceUID"),
        patient=_text(header, "PatientID"),
        accession=_text(header, "AccessionNumber"),
        folder=_common([path.parent for path in files]),
        files=files,
        frames=sum(_count(dataset) for _, dataset in members),
        number=_text(header, "SeriesNumber"),
        modality=_text(header, "Modality"),
        description=_text(header, "SeriesDescription"),
        protocol=_text(header, "ProtocolName"),
        body_part=_text(header, "BodyPartExamined"),
        image_type=tuple(str(value) for value in header.get("ImageType") or ()),
        orientation=_orientation(header),
        thickness_mm=float(thickness[0]) if thickness is not None and thickness[0] > 0 else None,
        size=(_whole(header, "Rows"), _whole(header, "Columns")),
        contrast=bool(_text(header, "ContrastBolusAgent")),
        burned_in=any(_text(dataset, "BurnedInAnnotation").upper() == "YES" for _, dataset in members),
        manufacturer=_text(header, "Manufacturer"),
        model=_text(header, "ManufacturerModelName"),
        institution=_text(header, "InstitutionName"),
        station=_text(header, "StationName"),
        age=_text(header, "PatientAge"),
        sex=_text(header, "PatientSex"),
    )


def _text(header: Dataset, keyword: str) -> str:
    try:
        return str(header.get(keyword) or "").strip()
    except Exception:  # an element is parsed when it is asked for, and each kind of damage has its own exception
        return ""


def _whole(header: Dataset, keyword: str) -> int:
    text = _text(header, keyword)
    return int(text) if text.isdigit() else 0


def _count(header: Dataset) -> int:
    return max(1, _whole(header, "NumberOfFrames"))


def _common(folders: Sequence[Path]) -> Path:
    first = folders[0]
    return next(place for place in (first, *first.parents) if all(one.is_relative_to(place) for one in folders))


def _orientation(header: Dataset) -> str:
    found = vector(FrameHeader(header).get("ImageOrientationPatient"), 6)
    if found is None:
        return ""
    normal = np.abs(np.cross(found[:3], found[3:]))
    return _PLANES[int(normal.argmax())] if normal.max() >= _OBLIQUE else "oblique"
