"""What a source holds, before labels and splits. Identifiers stand here as they are; nothing that prints shows them."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medopt.config import SeriesRules
from medopt.core.errors import ConfigError
from medopt.imaging.scan_path import npz_member, safe_relative_path

Kind = Literal["auto", "dicom", "nifti", "images", "medmnist", "datalist"]
SiteFrom = Literal["auto", "institution", "scanner", "folder"]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
SCAN_SUFFIXES = (*NIFTI_SUFFIXES, *IMAGE_SUFFIXES, ".dcm", ".dicom", ".ima", ".npz")
_MASK_STEM = re.compile(r"(^|[_\-. ])(mask|masks|seg|segmentation|label|labels)([_\-]?\d+)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Scan:
    """One row to be. `image` is written as the manifest writes it; `files` are paths below the root that are its own.

    Texts are empty where the source is silent. `labels` and `split` are the source's own. `volume` says that the scan
    is 3-D, so that several of one study must be told apart by a person.
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

    @property
    def path(self) -> str:
        """The file, folder or archive's member below the root that stands for the scan."""
        if ".npz#" in self.image:
            return self.image
        return self.files[0] if len(self.files) == 1 else self.image.rpartition("#")[0] or self.image


@dataclass(frozen=True, slots=True)
class ScanListing:
    """The scans of a source below `root`, and what of it was left out: (path below the root, reason).

    `own_labels` names the columns of the labels that the scans carry; empty where the source has none. `guess_patients`
    says that nobody knows the patients of this kind of source, and that each image is then taken for one.
    """

    kind: str
    root: Path
    scans: tuple[Scan, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    own_labels: tuple[str, ...] = ()
    guess_patients: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a person may say about the reading of a source."""

    kind: Kind = "auto"
    keep_derived: bool = False
    description: str = ""
    """Regular expression that a 3-D series' description (NIfTI: name) must match."""
    modality: str = ""
    rules: SeriesRules | None = None
    """Choose one series of each study by these."""
    site_from: SiteFrom = "auto"
    class_folders: bool = False
    """Take the folders' names for labels in a DICOM or NIfTI tree, too."""
    labelled: bool = False
    """A table tells the labels, so that the folders' names do not."""
    root: Path | None = None
    """Folder that a datalist's paths start from; else the datalist's own."""

    def matches(self, *texts: str) -> bool:
        """Whether one of the texts matches --description; true where none is given."""
        return not self.description or any(pattern(self.description, "--description").search(text) for text in texts)


def pattern(text: str, option: str) -> re.Pattern[str]:
    """A regular expression that a person gave.

    Raises ConfigError naming the option.
    """
    try:
        return re.compile(text, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"{option} {text!r} is not a regular expression: {error}.") from None


def files_below(root: Path) -> list[str]:
    """All files below `root`, hidden ones left out: paths with `/`, sorted."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        place = Path(folder).relative_to(root).as_posix()
        start = "" if place == "." else f"{place}/"
        found += [f"{start}{name}" for name in names if not name.startswith(".")]
    return sorted(found)


def unwritable(image: str) -> str:
    """Why a manifest cannot name this image; empty where it can."""
    try:
        npz_member(image)
        return "" if safe_relative_path(image) == image else "its path is not in the shortest form"
    except ValueError as error:
        return f"a manifest cannot name it: {error}"


def stem(name: str) -> str:
    """A file's name without the ending of a scan; dots that belong to the name stay."""
    lower = name.lower()
    for suffix in (".nii.gz", *SCAN_SUFFIXES):
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_mask(path: str, folders: frozenset[str]) -> bool:
    """Whether a file's name, or a folder above it, says that it marks regions in another image."""
    *above, name = path.split("/")
    return bool(_MASK_STEM.search(stem(name))) or any(folder.lower() in folders for folder in above)


def shared_depth(parts: Sequence[tuple[str, ...]]) -> int:
    """How many folders, from the top, all paths share; each path is given as its folders."""
    low, high = min(parts, default=()), max(parts, default=())
    return next((at for at, one in enumerate(low) if high[at : at + 1] != (one,)), len(low))


def by_reason(left_out: Iterable[tuple[str, str]], most: int = 3) -> list[tuple[str, int, list[str]]]:
    """What was left out, by reason: (reason, how many, the first few paths), the most frequent first."""
    shown: dict[str, list[str]] = defaultdict(list)
    count: Counter[str] = Counter()
    for path, reason in left_out:
        count[reason] += 1
        if len(shown[reason]) < most:
            shown[reason].append(path)
    return [(reason, number, shown[reason]) for reason, number in count.most_common()]


def by_number(name: str) -> tuple[int, str]:
    """Sort key of class names: numbers as numbers, before all others."""
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
