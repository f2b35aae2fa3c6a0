"""What a DICOM folder holds: one record per series, from headers alone, whatever the names of the files.

The record holds identifiers (patient, UIDs, accession number), because a manifest has to join on them; nothing that
prints may show them.
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
from medopt.imaging.acquisition import AGE_KEYWORDS, patient_age
from medopt.imaging.dicom_file import finite_numbers, is_dicom, not_an_image_reason
from medopt.imaging.dicom_frames import FrameHeader
from medopt.imaging.parse_dicom import parse_header
from medopt.imaging.scan_path import files_below

_KEYWORDS = (
    "SOPClassUID", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber", "Modality",
    "SeriesDescription", "SeriesNumber", "BodyPartExamined", "ProtocolName", "ImageType", "Manufacturer",
    "ManufacturerModelName", "InstitutionName", "StationName", *AGE_KEYWORDS, "PatientSex", "ConversionType",
    "PresentationIntentType", "ImagePositionPatient",
    "BurnedInAnnotation", "ContrastBolusAgent", "SliceThickness", "ImageOrientationPatient",
    "NumberOfFrames", "Rows", "Columns", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
VOLUMES = ("CT", "MR", "PT")
"""Modalities whose series of several frames is always one scan."""
_CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture Image Storage and its multi-frame kinds, PS3.4 B.5
_PLANES = ("sagittal", "coronal", "axial")  # by the patient axis nearest to the normal: x, y, z
_OBLIQUE = np.cos(np.radians(30))


@dataclass(frozen=True, slots=True)
class Series:
    """One series: where its files are, and what the header of the first says (empty where it says nothing).

    `frames` counts the images of all files; `size` is (rows, columns). `orientation` is axial, coronal, sagittal or
    oblique (over 30 degrees from each), and empty where the frames have no place in the patient. `age` is in whole
    years. `capture` is true for what a workstation, a frame grabber or a paper scanner wrote (PS3.3 A.8), and `intent`
    is PRESENTATION or PROCESSING (PresentationIntentType, PS3.3 C.8.11.1). `volume`: the frames are one 3-D scan.
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
    capture: bool = False
    intent: str = ""
    volume: bool = False

    @property
    def localizer(self) -> bool:
        """A scout, on which other images were planned (ImageType, PS3.3 C.7.6.1.1.2)."""
        return "LOCALIZER" in self.image_type

    @property
    def derived(self) -> bool:
        """Computed from other images (ImageType value 1, PS3.3 C.7.6.1.1.2)."""
        return self.image_type[:1] == ("DERIVED",)


@dataclass(frozen=True, slots=True)
class SeriesIndex:
    """The image series below a folder, and the other files as (path, why it is not an image)."""

    root: Path
    series: tuple[Series, ...]
    other_files: tuple[tuple[Path, str], ...]


def index_folder(root: Path, reporter: Reporter | None = None) -> SeriesIndex:
    """Read the headers of all files below `root` except hidden ones; content decides what is DICOM, not the name.

    Series are sorted by study, then by number. Raises DataError where `root` is not a folder or holds no DICOM image.

    >>> for series in index_folder(Path("export")).series:  # doctest: +SKIP
    ...     print(series.modality, series.description, series.frames)
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. Give the folder that a scanner or a PACS exported.")
    paths = [path for path in map(root.joinpath, files_below(root)) if path.is_file() or path.is_symlink()]
    advance = (reporter or SilentReporter()).progress(len(paths), "reading headers")

    def read(path: Path) -> Dataset | str:
        try:
            return _header(path)
        finally:
            advance(1)

    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(read, paths))
    by_uid: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    other_files = []
    for path, header in zip(paths, headers, strict=True):
        if isinstance(header, str):
            other_files.append((path, header))
        else:
            by_uid[_text(header, "SeriesInstanceUID") or f"file {path}"].append((path, header))
    series = sorted((_series(uid, members) for uid, members in by_uid.items()), key=_order_key)
    if not series:
        raise DataError(f"{root} holds no DICOM image ({len(paths)} other files).")
    return SeriesIndex(root, tuple(series), tuple(other_files))


@lru_cache(maxsize=16)
def _files_by_uid(root: Path, _changed: int) -> dict[str, tuple[Path, ...]]:
    return {series.uid: series.files for series in index_folder(root).series}


def series_files(folder: Path, uid: str) -> tuple[Path, ...]:
    """The files of one series of a folder that holds several; a process reads the headers of the folder once.

    Raises DataError where the folder holds no such series.
    """
    files = _files_by_uid(folder, folder.stat().st_mtime_ns).get(uid)
    if files is None:
        raise DataError(
            f"{folder} does not hold the series that its path names. medopt series lists those that it holds."
        )
    return files


def _header(path: Path) -> Dataset | str:
    """The elements of the header that describe a series, or why the file is not a DICOM image."""
    try:
        with path.open("rb") as stream:
            if not is_dicom(stream.read(132)):
                return "not DICOM"
            stream.seek(0)
            dataset, pixels_follow = parse_header(stream, _KEYWORDS, force=True)
        if reason := not_an_image_reason(dataset, pixels_follow=pixels_follow):
            return reason
        return dataset
    except OSError as error:
        return f"cannot be opened: {error.strerror or type(error).__name__}"
    except Exception as error:
        return f"its header is damaged ({type(error).__name__})"


def _order_key(series: Series) -> tuple[str, int, str, str]:
    number = int(series.number) if series.number.lstrip("-").isdigit() else 0
    return series.study_uid, number, series.description, series.uid


def _series(uid: str, members: Sequence[tuple[Path, Dataset]]) -> Series:
    files, header = tuple(path for path, _ in members), members[0][1]
    thickness = finite_numbers([header.get("SliceThickness")], 1)
    return Series(
        uid=uid,
        study_uid=_text(header, "StudyInstanceUID"),
        patient=_text(header, "PatientID"),
        accession=_text(header, "AccessionNumber"),
        folder=_common_folder([path.parent for path in files]),
        files=files,
        frames=sum(_frame_count(dataset) for _, dataset in members),
        number=_text(header, "SeriesNumber"),
        modality=_text(header, "Modality"),
        description=_text(header, "SeriesDescription"),
        protocol=_text(header, "ProtocolName"),
        body_part=_text(header, "BodyPartExamined"),
        image_type=tuple(str(value) for value in header.get("ImageType") or ()),
        orientation=_orientation(header),
        thickness_mm=float(thickness[0]) if thickness is not None and thickness[0] > 0 else None,
        size=(_whole_number(header, "Rows"), _whole_number(header, "Columns")),
        contrast=bool(_text(header, "ContrastBolusAgent")),
        burned_in=any(_text(dataset, "BurnedInAnnotation").upper() == "YES" for _, dataset in members),
        manufacturer=_text(header, "Manufacturer"),
        model=_text(header, "ManufacturerModelName"),
        institution=_text(header, "InstitutionName"),
        station=_text(header, "StationName"),
        age=patient_age(header),
        sex=_text(header, "PatientSex"),
        capture=is_capture(header),
        intent=_text(header, "PresentationIntentType").upper().removeprefix("FOR "),
        volume=_is_volume([dataset for _, dataset in members]),
    )


def is_capture(header: Dataset) -> bool:
    """Whether an image is a secondary capture, by its SOP class, its modality or its ConversionType."""
    sop_class = _text(header, "SOPClassUID")
    kind = sop_class == _CAPTURES or sop_class.startswith(f"{_CAPTURES}.")
    return kind or _text(header, "Modality").upper() in ("OT", "DOC") or bool(_text(header, "ConversionType"))


def _is_volume(headers: Sequence[Dataset]) -> bool:
    """Whether the frames of a series are slices: by modality, else each has its own position in the patient."""
    frames = sum(map(_frame_count, headers))
    if frames < 2 or _text(headers[0], "Modality") in VOLUMES:
        return frames > 1
    places = set()
    for header in headers:
        count = _frame_count(header)
        if count > 1 and len(header.get("PerFrameFunctionalGroupsSequence") or ()) != count:
            return False
        for index in range(count):
            position = finite_numbers(FrameHeader(header, index).get("ImagePositionPatient"), 3)
            if position is None:
                return False
            places.add(tuple(position.round(3).tolist()))
    return len(places) == frames and bool(_orientation(headers[0]))


def _text(header: Dataset, keyword: str) -> str:
    try:
        return str(header.get(keyword) or "").strip()
    except Exception:  # pydicom parses on first access, and each kind of damage has its own exception
        return ""


def _whole_number(header: Dataset, keyword: str) -> int:
    text = _text(header, keyword)
    return int(text) if text.isdigit() else 0


def _frame_count(header: Dataset) -> int:
    return max(1, _whole_number(header, "NumberOfFrames"))


def _common_folder(folders: Sequence[Path]) -> Path:
    first = folders[0]
    return next(place for place in (first, *first.parents) if all(folder.is_relative_to(place) for folder in folders))


def _orientation(header: Dataset) -> str:
    cosines = finite_numbers(FrameHeader(header).get("ImageOrientationPatient"), 6)
    if cosines is None:
        return ""
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    return _PLANES[int(normal.argmax())] if normal.max() >= _OBLIQUE else "oblique"
