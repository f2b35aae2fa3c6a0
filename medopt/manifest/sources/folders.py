"""What the names of folders say about the scans in them: class, split and site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, shared_depth

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MAX_CLASSES = 50
"""More folders than this are patients or studies, not classes."""

ClassAndSplit = tuple[str, str]


def read_class_folders(paths: Sequence[str]) -> list[ClassAndSplit | None] | None:
    """(class, split) of each path, the split empty where no folder names one; None where the tree has no classes.

    A path outside the class folders is None itself. Folders that all paths share are skipped. Case is ignored in the
    names of split folders, and class folders that differ in case alone are one class.

    >>> read_class_folders(["train/cat/1.png", "train/dog/2.png", "val/cat/3.png"])
    [('cat', 'train'), ('dog', 'train'), ('cat', 'val')]
    """
    above = [tuple(path.split("/")[:-1]) for path in paths]
    inside = [parts for parts in above if parts]
    if not inside:
        return None
    shared = shared_depth(inside)
    if shared and SPLIT_NAMES.get(inside[0][shared - 1].lower()):
        shared -= 1  # a tree of one split alone
    levels = [parts[shared:] for parts in above]
    split_at, class_at = _levels(levels)
    pairs = [_class_and_split(parts, split_at, class_at) for parts in levels]
    spelling: dict[str, str] = {}
    for name in sorted({pair[0] for pair in pairs if pair}):
        spelling.setdefault(name.lower(), name)
    if not 2 <= len(spelling) <= MAX_CLASSES:
        return None
    return [pair and (spelling[pair[0].lower()], pair[1]) for pair in pairs]


def read_split_folders(paths: Sequence[str]) -> list[str] | None:
    """The split of each path by the first folder that not all paths share; None unless all of these name splits."""
    above = [tuple(path.split("/")[:-1]) for path in paths]
    shared = shared_depth(above)
    names = [parts[shared].lower() if len(parts) > shared else "" for parts in above]
    if not names or not set(names) <= SPLIT_NAMES.keys():
        return None
    return [SPLIT_NAMES[name] for name in names]


def _levels(levels: Sequence[tuple[str, ...]]) -> tuple[int | None, int]:
    """The level of the folders that name the split, if any, and of those that name the class."""
    first = {parts[0].lower() for parts in levels if parts}
    splits = {SPLIT_NAMES[name] for name in first if name in SPLIT_NAMES}
    if "train" in splits or (first and first <= SPLIT_NAMES.keys()):
        return 0, 1
    second = {parts[1].lower() for parts in levels if len(parts) > 1}
    if second and second <= SPLIT_NAMES.keys():
        return 1, 0
    return None, 0


def _class_and_split(parts: tuple[str, ...], split_at: int | None, class_at: int) -> ClassAndSplit | None:
    if len(parts) <= max(class_at, -1 if split_at is None else split_at):
        return None
    if split_at is None:
        return parts[class_at], ""
    split = SPLIT_NAMES.get(parts[split_at].lower())
    return (parts[class_at], split) if split else None


def apply_folder_names(listing: ScanListing, options: SourceOptions) -> ScanListing:
    """The same scans with what their folders say: splits in any tree; labels in one of images, or on --class-folders.

    Scans outside the class folders are left out. Folders give no labels where a table does.
    """
    may_label = not options.labelled and (options.class_folders or listing.kind == "images")
    labelled = _with_classes(listing) if may_label else None
    if labelled is None:
        splits = read_split_folders([scan.files[0] for scan in listing.scans])
        scans = zip(listing.scans, splits or [], strict=True) if splits else ()
        labelled = replace(listing, scans=tuple(replace(scan, split=split) for scan, split in scans) or listing.scans)
    return replace(labelled, scans=_with_sites(labelled.scans)) if options.site_from == "folder" else labelled


def _with_classes(listing: ScanListing) -> ScanListing | None:
    pairs = read_class_folders([scan.files[0] for scan in listing.scans])
    if pairs is None:
        return None
    zipped = list(zip(listing.scans, pairs, strict=True))
    scans = [replace(scan, labels=(pair[0],), split=pair[1]) for scan, pair in zipped if pair]
    outside = [(scan.path, "outside the class folders") for scan, pair in zipped if not pair]
    left_out = (*listing.left_out, *outside)
    return replace(listing, scans=tuple(scans), left_out=left_out, label_columns=("label",))


def _with_sites(scans: Sequence[Scan]) -> tuple[Scan, ...]:
    """Each scan with its site: the first folder that not all scans share and that names no class and no split."""
    parts = [_other_folders(scan) for scan in scans]
    shared = shared_depth(parts)
    sites = [part[shared] if len(part) > shared else "unknown" for part in parts]
    return tuple(replace(scan, site=site) for scan, site in zip(scans, sites, strict=True))


def _other_folders(scan: Scan) -> tuple[str, ...]:
    taken = {*(label.lower() for label in scan.labels), *(SPLIT_NAMES if scan.split else ())}
    return tuple(part for part in scan.files[0].split("/")[:-1] if part.lower() not in taken)
