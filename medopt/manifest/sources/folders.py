"""What the names of folders say about the scans in them: class, split, site, and patient where classes lie below."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medopt.core.errors import ConfigError
from medopt.manifest.label_words import is_absence, label_key
from medopt.manifest.sources.scan_listing import Scan, ScanListing, SourceOptions, shared_depth

_SPLITS = {
    **dict.fromkeys(("training", "train", "trn", "imagestr", "labelstr"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev"), "val"),
    **dict.fromkeys(("testing", "test", "tst", "imagests", "holdout"), "test"),
}
_BESIDE = (
    "datasets?|data|sets?|split|subset|images?|imgs?|samples?|scans?|cases?|files?|folder|part|partition|png|jpe?g|"
    "dicom|dcm|nifti|nii|original|raw|processed|resized|final|all|my|the|new"
)
_SPLIT_FOLDER = re.compile(rf"(?:{_BESIDE})*?({'|'.join(_SPLITS)})(?:{_BESIDE})*")
MAX_CLASSES = 50
"""More folders than this are patients or studies, not classes."""
_IDENTIFIER = re.compile(
    r"(patient|pat|pt|case|subject|subj|sub|person|participant|anon|pid|id|mrn|p)[-_ ]*\d+\w*|\d{3,}\w*|.*[,^].*"
    r"|(?!class|label|grade|stage|type|cat|level|kl|birads|score)[a-z]{1,6}[-_ ]*\d{2,}"
)
# Folders that say how a scan was taken, and never what it shows.
_ACQUISITION = re.compile(
    r"(series|se|study|st|scan|slice|frame|visit|t1|t2|flair|dwi|adc|pd|ct|mri?|us|cc|mlo|ap|pa|lat|lateral|left|right"
    r"|l|r|[lr]cc|[lr]mlo|axial|coronal|sagittal|ax|cor|sag|images?|imgs?|dicom|png|jpe?g)[-_ ]?[\dwc]*|\d+x|\d{4,}.*"
)
_MIN_FOLDERS, _MIN_IMAGES = 6, 10  # so many folders with fewer images each on average are rarely classes

ClassAndSplit = tuple[str, str]
Folders = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """(class, split) and the folder above the class of each path; None and "" outside. `refusal`: why there are none.

    `above` is given where the classes lie below more folders than there are classes: one folder a patient.
    """

    pairs: tuple[ClassAndSplit | None, ...] = ()
    above: tuple[str, ...] = ()
    refusal: str = ""


def split_of_folder(name: str) -> str:
    """The split that a folder is named for, with the usual words beside it; empty for any other name.

    >>> [split_of_folder(name) for name in ("training_set", "Test-Data 2", "ValImages", "test_positive")]
    ['train', 'test', 'val', '']
    """
    match = _SPLIT_FOLDER.fullmatch(re.sub(r"[\W\d_]+", "", name.lower()))
    return _SPLITS[match[1]] if match else ""


def read_class_folders(paths: Sequence[str]) -> list[ClassAndSplit | None] | None:
    """(class, split) of each path, the split empty where no folder names one; None where the tree has no classes.

    A path outside the class folders is None itself. Folders that all paths share are skipped. Case is ignored in the
    names of split folders, and class folders that differ in case alone are one class.

    >>> read_class_folders(["train/cat/1.png", "train/dog/2.png", "val/cat/3.png"])
    [('cat', 'train'), ('dog', 'train'), ('cat', 'val')]
    """
    pairs = class_folders(paths).pairs
    spelling: dict[str, str] = {}
    for name in sorted({pair[0] for pair in pairs if pair}):
        spelling.setdefault(label_key(name), name)
    return [pair and (spelling[label_key(pair[0])], pair[1]) for pair in pairs] if pairs else None


def class_folders(paths: Sequence[str], level: int = 0) -> ClassFolders:
    """The class folders of a tree, named as they are. `level`: the classes' level, from 1 on; else it is looked for.

    A level further down is the class where it has fewer names, which recur, or where it alone has a name for healthy.
    """
    above = [tuple(path.split("/")[:-1]) for path in paths]
    inside = [parts for parts in above if parts]
    if not inside:
        return ClassFolders()
    shared = shared_depth(inside)
    if shared and split_of_folder(inside[0][shared - 1]):
        shared -= 1  # a tree of one split alone
    levels = [parts[shared:] for parts in above]
    split_at = _split_level(levels)
    if split_at is None and any(_names_split_too(parts[0]) for parts in levels if parts):
        return ClassFolders(refusal="Some folders are named for a split and for something else, too. ")
    splits = [_split_at(parts, split_at) for parts in levels]
    inner = [
        _without(parts, split_at) if split is not None else () for parts, split in zip(levels, splits, strict=True)
    ]
    depth: int | str = _depth_of_level(level, shared, split_at) if level else _class_depth(inner)
    if isinstance(depth, str):
        return ClassFolders(refusal=depth)
    pairs = tuple(
        (parts[depth], split or "") if len(parts) > depth else None for parts, split in zip(inner, splits, strict=True)
    )
    classes = {label_key(pair[0]) for pair in pairs if pair}
    if not 2 <= len(classes) <= MAX_CLASSES:
        return ClassFolders()
    people = [parts[depth - 1] if depth and pair else "" for parts, pair in zip(inner, pairs, strict=True)]
    are_people = len(set(people) - {""}) >= _many(len(classes))
    return ClassFolders(pairs, tuple(people) if are_people else ())


def _split_level(levels: Sequence[Folders]) -> int | None:
    """The level of the folders that name the split, if any."""
    first = {split_of_folder(parts[0]) for parts in levels if parts}
    if "train" in first or (first and "" not in first):
        return 0
    second = {split_of_folder(parts[1]) for parts in levels if len(parts) > 1}
    return 1 if second and "" not in second else None


def _names_split_too(name: str) -> bool:
    words = set(re.findall(r"[^\W\d_]+", name.lower()))
    return not split_of_folder(name) and bool(words & {"train", "training", "validation"})


def _split_at(parts: Folders, at: int | None) -> str | None:
    """The split of a path; empty where the tree has none, None where this path is outside the tree's splits."""
    if at is None:
        return ""
    return (split_of_folder(parts[at]) or None) if len(parts) > at else None


def _without(parts: Folders, at: int | None) -> Folders:
    return parts if at is None else (*parts[:at], *parts[at + 1 :])


def _depth_of_level(level: int, shared: int, split_at: int | None) -> int | str:
    depth = level - 1 - shared
    if depth < 0 or depth == split_at:
        raise ConfigError(f"--class-level {level} is a level of one folder, or of the splits.")
    return depth - (split_at is not None and split_at < depth)


def _many(count: int) -> int:
    """So many folders are clearly more than `count` names: the fewer names are the classes."""
    return max(4, 2 * count)


def _class_depth(inner: Sequence[Folders]) -> int | str:
    """The level whose folders are the classes, or why that is not clear; no name of a folder is in the text."""
    way = "Say it with --class-level N (1: the folders that lie directly in the source). "
    images = sum(bool(parts) for parts in inner)
    names: dict[int, set[str]] = {0: {label_key(parts[0]) for parts in inner if parts}}
    for depth in range(1, max(map(len, inner), default=0)):
        parents: dict[str, set[Folders]] = defaultdict(set)
        for parts in inner:
            if len(parts) > depth:
                parents[label_key(parts[depth])].add(parts[:depth])
        covered = sum(len(parts) > depth for parts in inner)
        recurs = 2 <= len(parents) <= MAX_CLASSES and min(map(len, parents.values())) > 1 and covered > 0.8 * images
        if recurs and not _are_identifiers(parents) and not all(map(_ACQUISITION.fullmatch, parents)):
            names[depth] = set(parents)
    speaking = [depth for depth, level in names.items() if any(map(is_absence, level)) and not _are_identifiers(level)]
    if len(speaking) == 1:
        return speaking[0]
    deeper = [depth for depth in names if depth]
    if len(deeper) == 1 and len(names[0]) >= _many(len(names[deeper[0]])):
        return deeper[0]
    if speaking or any(len(names[depth]) < _many(len(names[0])) for depth in deeper):
        return f"Folders of several levels may be the classes. {way}"
    few = len(names[0]) >= _MIN_FOLDERS and images < _MIN_IMAGES * len(names[0])
    if _are_identifiers(names[0]) or few:
        return f"Its folders look like patients, not like classes. {way}"
    return 0


def _are_identifiers(names: set[str] | dict[str, set[Folders]]) -> bool:
    return 2 * sum(bool(_IDENTIFIER.fullmatch(name)) for name in names) > len(names)


def read_split_folders(paths: Sequence[str]) -> list[str] | None:
    """The split of each path by the first folder that not all paths share; None unless all of these name splits."""
    above = [tuple(path.split("/")[:-1]) for path in paths]
    shared = shared_depth(above)
    splits = [split_of_folder(parts[shared]) if len(parts) > shared else "" for parts in above]
    return splits if splits and all(splits) else None


def apply_folder_names(listing: ScanListing, options: SourceOptions) -> ScanListing:
    """The same scans with what their folders say: splits in any tree; labels in one of images, or on --class-folders.

    Scans outside the class folders are left out. Folders give no labels where a table does.
    """
    may_label = not options.labelled and (options.class_folders or options.class_level or listing.kind == "images")
    found = class_folders([scan.files[0] for scan in listing.scans], options.class_level) if may_label else None
    labelled = _with_classes(listing, found) if found and found.pairs else _with_splits(listing)
    if found and found.refusal:
        labelled = replace(labelled, no_labels=found.refusal)
    return replace(labelled, scans=_with_sites(labelled.scans)) if options.site_from == "folder" else labelled


def _with_splits(listing: ScanListing) -> ScanListing:
    splits = read_split_folders([scan.files[0] for scan in listing.scans])
    if splits is None:
        return listing
    return replace(
        listing, scans=tuple(replace(scan, split=split) for scan, split in zip(listing.scans, splits, strict=True))
    )


def _with_classes(listing: ScanListing, folders: ClassFolders) -> ScanListing:
    scans, left_out = [], list(listing.left_out)
    people = folders.above if listing.patients_unknown and folders.above else ("",) * len(folders.pairs)
    for scan, pair, person in zip(listing.scans, folders.pairs, people, strict=True):
        if pair:
            scans.append(replace(scan, labels=(pair[0],), split=pair[1], patient=scan.patient or person))
        else:
            left_out.append((scan.path, "outside the class folders"))
    count = len(set(people) - {""})
    note = f"The {count} folders above the classes count as patients (--patient-per-image: each image does)."
    notes = (*listing.notes, note) if count else listing.notes
    return replace(listing, scans=tuple(scans), left_out=tuple(left_out), label_columns=("label",), notes=notes)


def _with_sites(scans: Sequence[Scan]) -> tuple[Scan, ...]:
    """Each scan with its site: the first folder that not all scans share and that names no class and no split."""
    parts = [_other_folders(scan) for scan in scans]
    shared = shared_depth(parts)
    sites = [part[shared] if len(part) > shared else "unknown" for part in parts]
    return tuple(replace(scan, site=site) for scan, site in zip(scans, sites, strict=True))


def _other_folders(scan: Scan) -> tuple[str, ...]:
    taken = {label_key(label) for label in scan.labels}
    return tuple(
        part
        for part in scan.files[0].split("/")[:-1]
        if label_key(part) not in taken and not (scan.split and split_of_folder(part))
    )
