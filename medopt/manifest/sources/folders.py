"""What the folders of a tree say of its scans: class, split and site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medopt.manifest.sources.class_folders import SPLIT_NAMES, read_class_folders, read_split_folders
from medopt.manifest.sources.found import Found, Scan, SourceOptions, shared_depth


def read_folders(found: Found, options: SourceOptions) -> Found:
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


def _classes(found: Found) -> Found | None:
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
