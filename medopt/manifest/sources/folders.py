"""What the folders of a tree say of its scans: class, split and site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, shared_depth

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MOST_CLASSES = 50
"""More folders than this are patients or studies, not classes."""

Place = tuple[str, str]


def read_class_folders(paths: Sequence[str]) -> list[Place | None] | None:
    """(class, split) of each path, the split empty where no folder names one; None where the tree has no classes.

    A path outside the class folders is None itself. Folders that all paths share are looked through. Split folders are
    known by name whatever their case, class folders that differ in case alone are one class.
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
    found = [_place(parts, split_at, class_at) for parts in levels]
    spelled: dict[str, str] = {}
    for name in sorted({place[0] for place in found if place}):
        spelled.setdefault(name.lower(), name)
    if not 2 <= len(spelled) <= MOST_CLASSES:
        return None
    return [place and (spelled[place[0].lower()], place[1]) for place in found]


def read_split_folders(paths: Sequence[str]) -> list[str] | None:
    """The split of each path by the first folder that not all share; None unless all of these name splits."""
    above = [tuple(path.split("/")[:-1]) for path in paths]
    shared = shared_depth(above)
    names = [parts[shared].lower() if len(parts) > shared else "" for parts in above]
    if not names or not set(names) <= SPLIT_NAMES.keys():
        return None
    return [SPLIT_NAMES[name] for name in names]


def _levels(levels: Sequence[tuple[str, ...]]) -> tuple[int | None, int]:
    """At which level the split stands, if any, and at which the class."""
    first = {parts[0].lower() for parts in levels if parts}
    splits = {SPLIT_NAMES[name] for name in first if name in SPLIT_NAMES}
    if "train" in splits or (first and first <= SPLIT_NAMES.keys()):
        return 0, 1
    second = {parts[1].lower() for parts in levels if len(parts) > 1}
    if second and second <= SPLIT_NAMES.keys():
        return 1, 0
    return None, 0


def _place(parts: tuple[str, ...], split_at: int | None, class_at: int) -> Place | None:
    if len(parts) <= max(class_at, -1 if split_at is None else split_at):
        return None
    if split_at is None:
        return parts[class_at], ""
    split = SPLIT_NAMES.get(parts[split_at].lower())
    return (parts[class_at], split) if split else None


def read_folders(found: ScanListing, options: SourceOptions) -> ScanListing:
    """The same scans with what their folders say: splits in any tree; labels in one of images, or where asked for.

    Scans outside the class folders are left out. Where a table tells the labels, no folder does.
    """
    wanted = not options.labelled and (options.class_folders or found.kind == "images")
    labelled = _classes(found) if wanted else None
    if labelled is None:
        splits = read_split_folders([scan.files[0] for scan in found.scans])
        scans = zip(found.scans, splits or [], strict=True) if splits else ()
        labelled = replace(found, scans=tuple(replace(scan, split=split) for scan, split in scans) or found.scans)
    return replace(labelled, scans=_sited(labelled.scans)) if options.site_from == "folder" else labelled


def _classes(found: ScanListing) -> ScanListing | None:
    places = read_class_folders([scan.files[0] for scan in found.scans])
    if places is None:
        return None
    pairs = list(zip(found.scans, places, strict=True))
    scans = [replace(scan, labels=(place[0],), split=place[1]) for scan, place in pairs if place]
    stray = [(scan.path, "outside the class folders") for scan, place in pairs if not place]
    return replace(found, scans=tuple(scans), left_out=(*found.left_out, *stray), own_labels=("label",))


def _sited(scans: Sequence[Scan]) -> tuple[Scan, ...]:
    """Each scan with its site: the first folder that is not shared by all and names no class and no split."""
    parts = [_neutral(scan) for scan in scans]
    shared = shared_depth(parts)
    sites = [part[shared] if len(part) > shared else "unknown" for part in parts]
    return tuple(replace(scan, site=site) for scan, site in zip(scans, sites, strict=True))


def _neutral(scan: Scan) -> tuple[str, ...]:
    taken = {*(label.lower() for label in scan.labels), *(SPLIT_NAMES if scan.split else ())}
    return tuple(part for part in scan.files[0].split("/")[:-1] if part.lower() not in taken)
