"""Detect what kind of source a path is, and list its scans."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from medopt.core.errors import ConfigError, DataError
from medopt.core.format import count_text
from medopt.core.reporter import Reporter
from medopt.imaging.dicom_file import is_dicom
from medopt.imaging.scan_path import files_below
from medopt.manifest.sources.archive import unpack_archive
from medopt.manifest.sources.datalist import find_datalist
from medopt.manifest.sources.dicom import find_dicom
from medopt.manifest.sources.folders import apply_folder_names
from medopt.manifest.sources.image_sets import find_images, find_medmnist, is_image_file, is_medmnist
from medopt.manifest.sources.nifti import find_nifti
from medopt.manifest.sources.scan_listing import (
    IMAGE_SUFFIXES,
    NEVER_SCANS,
    NIFTI_SUFFIXES,
    ScanListing,
    SourceKind,
    SourceOptions,
    unread_reason,
)

_MAX_OPENED = 100
"""How many files named as images are opened to see whether they are DICOM."""


def find_scans(source: Path, unpacked: Path, options: SourceOptions, reporter: Reporter) -> ScanListing:
    """The scans of a folder, a .zip (unpacked into `unpacked`), a MedMNIST .npz or a MONAI datalist.

    Raises DataError where it is none of these, or holds no scan.
    """
    if not source.exists():
        raise DataError(f"There is no file or folder {source}. Give the folder, .zip, .npz or .json of the scans.")
    if source.is_dir():
        return _folder(source, options, reporter)
    suffix = source.suffix.lower()
    if suffix == ".zip":
        return _folder(unpack_archive(source, unpacked, reporter), options, reporter)
    if suffix == ".npz":
        if not is_medmnist(source):
            raise DataError(f"{source} is not a MedMNIST archive: it has no arrays train_images and train_labels.")
        return find_medmnist(source)
    if suffix == ".json":
        return find_datalist(source, options.root)
    raise DataError(f"{source} is a single file. Give the folder that holds the scans, a .zip, an .npz or a datalist.")


def _folder(root: Path, options: SourceOptions, reporter: Reporter) -> ScanListing:
    kind = options.kind if options.kind != "auto" else _detect_kind(root)
    if kind == "medmnist":
        return find_medmnist(_one_archive(root))
    if kind == "datalist":
        raise ConfigError(f"--kind datalist takes the datalist's JSON file, and {root} is a folder.")
    if kind == "dicom":
        return apply_folder_names(find_dicom(root, options, reporter), options)
    if kind == "nifti":
        return apply_folder_names(find_nifti(root, options, reporter), options)
    return apply_folder_names(find_images(root), options)


def _detect_kind(root: Path) -> SourceKind:
    """DICOM where there is a DICOM file, else NIfTI, else images, else MedMNIST."""
    paths = files_below(root)
    lower = [path.lower() for path in paths]
    images = [path for path, name in zip(paths, lower, strict=True) if name.endswith(IMAGE_SUFFIXES)]
    nifti = [path for path, name in zip(paths, lower, strict=True) if name.endswith(NIFTI_SUFFIXES)]
    known = (*NEVER_SCANS, ".npy", *IMAGE_SUFFIXES, *NIFTI_SUFFIXES, ".npz")
    others = [path for path, name in zip(paths, lower, strict=True) if not name.endswith(known)]
    if any(_is_dicom_file(root / path) for path in [*others, *images[:_MAX_OPENED]]):
        return "dicom"
    if nifti:
        return "nifti"
    if images or any(is_image_file(root / path) for path in others):
        return "images"
    if any(name.endswith(".npz") for name in lower):
        return "medmnist"
    raise DataError(
        f"{root} holds {len(paths)} files, and none is DICOM, NIfTI, an image or a MedMNIST .npz. "
        + _first_reasons(paths)
        + ("An archive in it has to be unpacked, or given itself. " if any(n.endswith(".zip") for n in lower) else "")
        + "Give the folder that holds the scans."
    )


def _first_reasons(paths: list[str]) -> str:
    reasons = Counter(unread_reason(path, among="others") for path in paths if not path.lower().endswith(NEVER_SCANS))
    return "".join(f"{count_text(count, 'file')}: {reason}. " for reason, count in reasons.most_common(3))


def _is_dicom_file(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_dicom(stream.read(132))
    except OSError:
        return False


def _one_archive(root: Path) -> Path:
    candidates = [root / path for path in files_below(root) if path.lower().endswith(".npz")]
    archives = [path for path in candidates if is_medmnist(path)]
    if len(archives) != 1:
        names = ", ".join(path.name for path in archives[:5]) or "none"
        raise DataError(f"{root} holds {len(archives)} MedMNIST archives ({names}). Give the file of one.")
    return archives[0]
