"""MedMNIST archives: `train_images`, `train_labels` and so on in one `.npz`, with an official split (medmnist.com)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medopt.core.errors import DataError
from medopt.core.records import SPLITS
from medopt.manifest.check import npz_shapes
from medopt.manifest.sources.scan_listing import Scan, ScanListing


def is_medmnist(path: Path) -> bool:
    """Whether an `.npz` file has MedMNIST's arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"train_images.npy", "train_labels.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def find_medmnist(path: Path) -> ScanListing:
    """One scan an image of the archive, `file.npz#train_images/0`, labelled by number as the archive labels it.

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
                labels = _labels(arrays[f"{split}_labels"], path)
                _fitting(path, split, len(labels))
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
    return ScanListing("MedMNIST", path.parent, tuple(scans), own_labels=names, guess_patients=True)


def _labels(array: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """(N, K) whole numbers."""
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2 or not len(array) or not np.array_equal(array, array.astype(np.int64)):
        raise DataError(f"{path}: labels of the shape {array.shape} and type {array.dtype} are no class numbers.")
    return array.astype(np.int64)


def _fitting(path: Path, split: str, count: int) -> None:
    """Refuse a split whose images are not as many as its labels; only the headers of the arrays are read."""
    shapes = npz_shapes(path)
    if isinstance(shapes, str):
        raise DataError(f"{path} is {shapes}.")
    shape = shapes.get(f"{split}_images")
    if shape is None:
        raise DataError(f"{path} has {split}_labels and no {split}_images. Get it again from its source.")
    if not shape or shape[0] != count:
        raise DataError(f"{path}: {split} has {count} labels for images of the shape {shape}. Get it again.")
