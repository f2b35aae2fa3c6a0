"""Folders of PNG, JPEG, TIFF and BMP images; folders that are named for classes are labels."""

from __future__ import annotations

from pathlib import Path

from medopt.core.errors import DataError
from medopt.manifest.sources.scan_listing import (
    IMAGE_SUFFIXES,
    Scan,
    ScanListing,
    files_below,
    is_mask,
    unwritable,
)

_MASK_FOLDERS = frozenset({"mask", "masks", "segmentation", "segmentations", "annotations", "derivatives"})


def find_images(root: Path) -> ScanListing:
    """One scan an image file; nobody knows the patient. Masks are left out.

    Raises DataError where there is no image.
    """
    scans, left_out = [], []
    for path in files_below(root):
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        if is_mask(path, _MASK_FOLDERS):
            left_out.append((path, "a mask, by its name"))
        elif reason := unwritable(path):
            left_out.append((path, reason))
        else:
            scans.append(Scan(image=path, files=(path,)))
    if not scans:
        raise DataError(f"{root} holds no PNG, JPEG, TIFF or BMP image ({len(left_out)} masks left out).")
    return ScanListing("images", root, tuple(scans), tuple(left_out), guess_patients=True)
