"""What a source holds, before labels and splits. It holds identifiers, which nothing may print."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medopt.config import SeriesRules
from medopt.core.errors import ConfigError
from medopt.core.privacy import UNKNOWN_PATIENT, public_path
from medopt.imaging.scan_path import npz_member, safe_relative_path

SourceKind = Literal["auto", "dicom", "nifti", "images", "medmnist", "datalist"]
SiteFrom = Literal["auto", "institution", "scanner", "folder"]
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k", ".mpo"
)  # fmt: skip
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SCAN_SUFFIXES = (*NIFTI_SUFFIXES, *IMAGE_SUFFIXES, ".dcm", ".dicom", ".ima", ".npz")
NEVER_SCANS = (
    ".csv", ".tsv", ".json", ".txt", ".md", ".yaml", ".yml", ".xml", ".html", ".pdf", ".bval", ".bvec", ".xlsx", ".xls",
    ".docx", ".ini", ".log", ".py", ".ipynb", ".db", "license", "readme",
)  # fmt: skip
"""Files that lie beside scans; they are not opened, and not listed as left out."""
_OTHER_VOLUMES = (
    ".mha",
    ".mhd",
    ".nrrd",
    ".nhdr",
    ".img",
    ".hdr",
    ".mgz",
    ".mgh",
    ".mnc",
    ".npy",
    ".mat",
    ".h5",
    ".hdf5",
)
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
_VIDEOS = (".avi", ".mp4", ".mov", ".wmv", ".mpg", ".mkv")
_MASK_STEM = re.compile(r"(^|[_\-. ])(mask|masks|seg|segmentation|label|labels)([_\-]?\d+)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Scan:
    """One row of a manifest to be built. A text is empty where the source does not give it.

    `image` is the path as the manifest writes it, `files` are the paths of its files below the root. `labels`, `split`
    and `fold` (-1 for none) are the source's own. `volume` is true for a 3-D scan: of several in one study, the user
    has to choose.
    """

    image: str
    files: tuple[str, ...]
    patient: str = ""
    study: str = ""
    series: str = ""
    accession: str = ""
    site: str = ""
    age: str = ""
    sex: str = ""
    labels: tuple[str, ...] = ()
    split: str = ""
    fold: int = -1
    volume: bool = False
    description: str = ""
    orientation: str = ""
    frames: int = 1
    channels: tuple[Scan | None, ...] = ()
    """The scans of a case of several images, None for a missing one; the other fields are those of the first."""

    @property
    def images(self) -> tuple[Scan, ...]:
        """The scans of a case of several images that are there; else the scan itself."""
        return tuple(scan for scan in self.channels if scan is not None) or (self,)

    @property
    def path(self) -> str:
        """The file, folder or member of an archive, below the root, that represents the scan."""
        if ".npz#" in self.image:
            return self.image
        return self.files[0] if len(self.files) == 1 else self.image.rpartition("#")[0] or self.image


def case_of(channels: tuple[Scan | None, ...]) -> Scan:
    """A case of several images, of which at least one is there, with the first patient that is known."""
    images = [scan for scan in channels if scan is not None]
    known = (scan.patient for scan in images if scan.patient.strip().lower() not in UNKNOWN_PATIENT)
    files = tuple(file for scan in images for file in scan.files)
    return replace(images[0], files=files, patient=next(known, ""), channels=channels)


@dataclass(frozen=True, slots=True)
class ScanListing:
    """The scans of a source below `root`, and the files that were left out as (path below the root, reason).

    `label_columns` names the columns of the scans' own labels; empty where the source has none. `patients_unknown` is
    true for kinds of sources that never give the patient: each image then counts as one.
    """

    kind: str
    root: Path
    scans: tuple[Scan, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    label_columns: tuple[str, ...] = ()
    patients_unknown: bool = False
    notes: tuple[str, ...] = ()
    channel_names: tuple[str, ...] = ()
    """The names of the images of each case, where a table says which scans make up a case."""
    no_labels: str = ""
    """Why the folders were not taken for labels, as a sentence with a blank behind it."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How to read a source."""

    kind: SourceKind = "auto"
    keep_derived: bool = False
    description: str = ""
    """Regular expression that the description of a 3-D series (NIfTI: the name of the file) must match."""
    modality: str = ""
    presentation_intent: str = ""
    """presentation or processing; empty: FOR PRESENTATION where the source has both."""
    rules: SeriesRules | None = None
    """Choose one series of each study by these rules, or one for each image of a case."""
    may_miss: bool = False
    """A case may lack an image (prepare.missing_channel: zeros)."""
    site_from: SiteFrom = "auto"
    class_folders: bool = False
    """Take labels from the names of folders in a DICOM or NIfTI tree, too."""
    class_level: int = 0
    """The level of the folders that are labels, from 1 on; 0: it is looked for."""
    labelled: bool = False
    """A table gives the labels, so folders do not."""
    root: Path | None = None
    """Folder that the paths of a datalist start from; else the folder of the datalist."""

    def matches(self, *texts: str) -> bool:
        """Whether one of the texts matches --description; true where the option is not given."""
        return not self.description or any(
            compile_pattern(self.description, "--description").search(text) for text in texts
        )


def compile_pattern(text: str, option: str) -> re.Pattern[str]:
    """A regular expression given with a command-line option; raises ConfigError naming the option."""
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"{option} {text!r} is not a regular expression: {error}.") from None


def unread_reason(path: str, *, among: str) -> str:
    """Why a file is left out that is not a scan of its source; `among` is what the source holds."""
    lower = path.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        return f"a NIfTI file among {among} (--kind nifti takes these)"
    for suffixes, what in (
        (_OTHER_VOLUMES, "{} is a format that is not read: convert it to .nii.gz"),
        (_ARCHIVES, "an archive ({}): unpack it, or give it itself"),
        (_VIDEOS, "a video ({})"),
    ):
        if suffix := next((suffix for suffix in suffixes if lower.endswith(suffix)), ""):
            return what.format(suffix)
    if lower.endswith(IMAGE_SUFFIXES):
        return f"an image among {among} (--kind images takes these)"
    return "by its content no format that is read"


def unwritable_reason(image: str) -> str:
    """Why a manifest cannot name this image; empty where it can."""
    try:
        npz_member(image)
        return "" if safe_relative_path(image) == image else "its path is not in the shortest form"
    except ValueError as error:
        return f"a manifest cannot name it: {error}"


def scan_stem(name: str) -> str:
    """The name of a file without the suffix of a scan; other dots stay.

    >>> scan_stem("sub-01_v1.2.nii.gz")
    'sub-01_v1.2'
    """
    lower = name.lower()
    for suffix in (".nii.gz", *SCAN_SUFFIXES):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_mask(path: str, folders: frozenset[str]) -> bool:
    """Whether the name of a file, or of a folder above it, says that it is a mask of another image."""
    *above, name = path.split("/")
    return bool(_MASK_STEM.search(scan_stem(name))) or any(folder.lower() in folders for folder in above)


def shared_depth(parts: Sequence[tuple[str, ...]]) -> int:
    """How many folders, from the top, all paths share; each path is given as its folders.

    >>> shared_depth([("a", "b", "c"), ("a", "b", "d")])
    2
    """
    low, high = min(parts, default=()), max(parts, default=())
    return next((at for at, folder in enumerate(low) if high[at : at + 1] != (folder,)), len(low))


def count_by_reason(
    left_out: Iterable[tuple[str, str]], max_paths: int = 3, public_names: Iterable[str] = ()
) -> list[tuple[str, int, list[str]]]:
    """(reason, number of files, the first few paths) of what was left out, the most frequent reason first.

    Of the folders in the paths, those that may be names are hidden, unless they are `public_names` (classes).
    """
    examples: dict[str, list[str]] = defaultdict(list)
    count: Counter[str] = Counter()
    shown = tuple(public_names)
    for path, reason in left_out:
        count[reason] += 1
        if len(examples[reason]) < max_paths:
            examples[reason].append(public_path(path, *shown))
    return [(reason, number, examples[reason]) for reason, number in count.most_common()]


def class_sort_key(name: str) -> tuple[int, str]:
    """Sort key of class names: numbers by value, before all other names."""
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
