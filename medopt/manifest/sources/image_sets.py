"""Image sets without headers: folders of PNG, JPEG, TIFF and other images, and MedMNIST archives.

A MedMNIST archive (https://medmnist.com) is one `.npz` with `train_images`, `train_labels` and so on, and an official
split. Neither kind says which patient an image is of.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import SPLITS
from medopt.imaging.raster import is_image, npz_shapes
from medopt.imaging.scan_path import files_below
from medopt.manifest.sources.scan_listing import (
    IMAGE_SUFFIXES,
    NEVER_SCANS,
    Scan,
    ScanListing,
    is_mask,
    unread_reason,
    unwritable_reason,
)

_MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "annotations", "derivatives"})


def find_images(root: Path) -> ScanListing:
    """One scan per image file below `root`, by name or by content; masks and other files are left out.

    Raises DataError where there is no image.
    """
    scans, left_out = [], []
    for path in files_below(root):
        lower = path.lower()
        if lower.endswith(NEVER_SCANS):
            continue
        if not (lower.endswith(IMAGE_SUFFIXES) or is_image_file(root / path)):
            left_out.append((path, unread_reason(path, among="images")))
        elif not (root / path).exists():
            left_out.append((path, "a link that leads nowhere"))
        elif is_mask(path, _MASK_FOLDERS):
            left_out.append((path, "a mask, by its name"))
        elif reason := unwritable_reason(path):
            left_out.append((path, reason))
        else:
            scans.append(Scan(image=path, files=(path,)))
    if not scans:
        raise DataError(f"{root} holds no image ({len(left_out)} other files or masks left out).")
    return ScanListing("images", root, tuple(scans), tuple(left_out), patients_unknown=True)


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its first bytes, whatever its name."""
    try:
        with path.open("rb") as stream:
            return is_image(stream.read(132))
    except OSError:
        return False


def is_medmnist(path: Path) -> bool:
    """Whether an `.npz` file has MedMNIST's arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"train_images.npy", "train_labels.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def find_medmnist(path: Path) -> ScanListing:
    """One scan per image of a MedMNIST archive, `file.npz#train_images/0`, with the archive's label numbers and splits.

    Labels of several columns (ChestMNIST) become the columns label_0, label_1 and so on. Raises DataError where the
    arrays do not fit together.
    """
    scans: list[Scan] = []
    columns = 0
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in SPLITS:
                if f"{split}_labels" not in arrays.files:
                    continue
                labels = _label_array(arrays[f"{split}_labels"], path)
                _check_images(path, split, len(labels))
                if columns not in (0, labels.shape[1]):
                    raise DataError(f"{path}: the labels of {split} have another form than those of train.")
                columns = labels.shape[1]
                scans += [
                    Scan(f"{path.name}#{split}_images/{at}", (path.name,), labels=tuple(map(str, row)), split=split)
                    for at, row in enumerate(labels.tolist())
                ]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as a MedMNIST archive: {error}.") from None
    names = ("label",) if columns == 1 else tuple(f"label_{at}" for at in range(columns))
    return ScanListing("MedMNIST", path.parent, tuple(scans), label_columns=names, patients_unknown=True)


def _label_array(array: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """(N,) or (N, K) labels as (N, K) whole numbers."""
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not len(array) or not np.array_equal(array, array.astype(np.int64)):
        raise DataError(f"{path}: labels of the shape {array.shape} and type {array.dtype} are not class numbers.")
    return array.astype(np.int64)


def _check_images(path: Path, split: str, count: int) -> None:
    """Refuse a split with another number of images than of labels; only the headers of the arrays are read."""
    try:
        shape = npz_shapes(path).get(f"{split}_images")
    except DataError as error:
        raise DataError(f"{path} is {error}.") from None
    if shape is None:
        raise DataError(f"{path} has {split}_labels and no {split}_images. Get it again from its source.")
    if not shape or shape[0] != count:
        raise DataError(f"{path}: {split} has {count} labels for images of the shape {shape}. Get it again.")
