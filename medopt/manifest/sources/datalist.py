"""MONAI datalists (the JSON of Decathlon and Auto3DSeg): read as a source, written beside a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medopt.core.errors import DataError
from medopt.core.files import write_json
from medopt.manifest.sources.scan_listing import SCAN_SUFFIXES, Scan, ScanListing, class_sort_key, unwritable_reason

SECTIONS = {
    **dict.fromkeys(("training", "train"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def find_datalist(path: Path, root: Path | None = None) -> ScanListing:
    """The items of a datalist; their paths start from `root`, else from the folder of the datalist.

    Raises DataError where the file is not a datalist, and where its labels are images: medopt trains no segmentation.
    """
    content = _read(path)
    items = [(name, split, item) for name, split in SECTIONS.items() for item in _section(content, name, path)]
    if not items:
        raise DataError(f"{path} is not a MONAI datalist: none of the keys {', '.join(SECTIONS)} holds items.")
    names = content.get("labels") if isinstance(content.get("labels"), dict) else {}
    paths = [_image_path(item, f"{path}, {name}[{at}]") for at, (name, _, item) in enumerate(items)]
    base = (root or path.parent).absolute()
    if any(Path(image).is_absolute() and not Path(image).is_relative_to(base) for image in paths):
        base = Path(os.path.commonpath([str((base / image).parent) for image in paths]))
    scans, left_out = [], []
    for (section, split, item), image_path in zip(items, paths, strict=True):
        image = image_path
        if Path(image).is_absolute():
            image = Path(os.path.relpath(base / image, base)).as_posix()
        scan = _scan(image.removeprefix("./"), split, item, names or {}, f"{path}, section {section}")
        if reason := unwritable_reason(scan.image):
            left_out.append((scan.image, reason))
        else:
            scans.append(scan)
    columns = max((len(scan.labels) for scan in scans), default=0)
    if any(scan.labels and len(scan.labels) != columns for scan in scans):
        raise DataError(f"{path}: some labels are lists of another length than others. Give each item the same labels.")
    label_columns = ("label",) if columns == 1 else tuple(f"label_{at}" for at in range(columns))
    return ScanListing("MONAI datalist", base, tuple(scans), tuple(left_out), label_columns=label_columns)


def _scan(image: str, split: str, item: Any, names: Mapping[str, Any], place: str) -> Scan:
    """One item, which is an object or a path alone."""
    keys: Mapping[str, Any] = item if isinstance(item, dict) else {}
    fold = keys.get("fold")
    return Scan(
        image,
        (image,),
        patient=str(keys.get("patient_id") or ""),
        site=str(keys.get("site") or ""),
        labels=_labels(keys.get("label"), names, place),
        split=split,
        fold=fold if isinstance(fold, int) and not isinstance(fold, bool) else -1,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a MONAI datalist: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a MONAI datalist: it must be an object with keys such as training and test.")
    return content


def _section(content: dict[str, Any], name: str, path: Path) -> Sequence[Any]:
    items = content.get(name, [])
    if not isinstance(items, list):
        raise DataError(f"{path}: {name} must be a list of items.")
    return items


def _image_path(item: Any, place: str) -> str:
    image = item.get("image") if isinstance(item, dict) else item
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if not isinstance(image, str) or not image:
        raise DataError(
            f"{place}: an item is a path, or an object with the path of one image under 'image'. Several images as "
            "channels of one are not read."
        )
    return image


def _labels(label: Any, names: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """One text for each label column; empty where the item has no label."""
    if label is None or label == "":
        return ()
    if isinstance(label, str) and (label.lower().endswith(SCAN_SUFFIXES) or "/" in label):
        raise DataError(
            f"{place}: the label is the path of an image, so this datalist is for segmentation. medopt classifies: "
            "give labels as numbers or names under 'label', or a table with --labels."
        )
    if isinstance(label, bool):
        label = int(label)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, list) and label:
        return tuple(text for part in label for text in (_labels(part, {}, place) or ("",)))
    if not isinstance(label, int | str):
        raise DataError(f"{place}: a label must be a number, a name, or a list of 0, 1, -1 and null.")
    return (str(names.get(str(label), label)),)


def write_datalist(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    """Write manifest rows as a datalist whose paths start from the root of the manifest; classes become numbers.

    The key `labels` names the class of each number. Raises StorageError where it cannot be written.
    """
    content: dict[str, Any] = {"description": "Written by medopt; paths start from the manifest's root"}
    classes = sorted({row[columns[0]] for row in rows}, key=class_sort_key) if len(columns) == 1 else []
    if classes:
        content["labels"] = {str(at): name for at, name in enumerate(classes)}
    for section, split in (("training", "train"), ("validation", "val"), ("test", "test")):
        content[section] = [_item(row, columns, classes) for row in rows if row["split"] == split]
    write_json(path, content)


def _item(row: Mapping[str, str], columns: Sequence[str], classes: list[str]) -> dict[str, Any]:
    label = classes.index(row[columns[0]]) if classes else [_number(row[column]) for column in columns]
    item: dict[str, Any] = {"image": row["image"], "label": label, "patient_id": row["patient_id"]}
    item |= {"site": row["site"]} if row.get("site") else {}
    return item | ({"fold": int(row["fold"])} if row.get("fold") else {})


def _number(cell: str) -> int | None:
    return int(cell) if cell else None
