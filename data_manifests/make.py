"""Write the manifests of this folder from the data they describe: python data_manifests/make.py --data DIR.

The same data give the same bytes. Each card's manifest_sha256 is brought up to date; the rest of a card is written
by hand.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medopt.core.files import file_digest, write_text
from medopt.core.records import SPLITS, Case
from medopt.manifest.duplicates import find_duplicates
from medopt.manifest.image_facts import read_facts
from medopt.manifest.quality import unusable_images
from medopt.manifest.repair import plan_repair

HERE = Path(__file__).resolve().parent
COLUMNS = ("image", "patient_id", "site", "label", "split")
BREASTMNIST_LABELS = ("malignant", "normal_or_benign")  # as MedMNIST numbers them

FURTHER = {"hippocampus": ("volume_mm3",)}  # columns behind these

Row = tuple[str, ...]


def busi(data: Path) -> list[Row]:
    """BUSI near BreastMNIST's split, without its leaks.

    Images that look the same move into the split that holds most of them (correlation over .98, not .99 as the check
    asks, so that the original files pass as the resized copies do); the same pixels under two labels are dropped.
    """
    return without_leaks(busi_official(data), data / "busi")


def busi_official(data: Path) -> list[Row]:
    """BUSI on BreastMNIST's own split, leaks and all. Patients are not published: each image stands for one."""
    with (data / "busi" / "breastmnist_split.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    label = {"benign": "benign_or_normal", "normal": "benign_or_normal", "malignant": "malignant"}
    rows = [(row["file"], row["file"], "busi", label[row["busi_class"]], row["split"]) for row in table]
    return sorted(rows, key=lambda row: (SPLITS.index(row[4]), row[0]))


def without_leaks(rows: list[Row], root: Path) -> list[Row]:
    """The rows with groups of near-duplicates in one split, and without images under two labels."""
    labels = sorted({row[3] for row in rows})
    cases = [Case(row[0], row[1], row[0], (labels.index(row[3]),), row[4]) for row in rows]  # type: ignore[arg-type]
    facts = read_facts(cases, root)
    thumbnails = {row: one.thumbnail for row, one in enumerate(facts) if one.thumbnail is not None}
    repair = plan_repair(
        cases, find_duplicates(thumbnails, lambda row: facts[row].digest, min_correlation=0.98), unusable_images(facts)
    )
    kept = [(index, row) for index, row in enumerate(rows) if index not in repair.dropped]
    moved = [(*row[:4], str(repair.moved.get(index, row[4]))) for index, row in kept]
    return sorted(moved, key=lambda row: (SPLITS.index(row[4]), row[0]))  # type: ignore[arg-type]


def breastmnist(data: Path) -> list[Row]:
    """BreastMNIST on its official split, in the file's order. Patients are not published: each image stands for one."""
    rows: list[Row] = []
    with np.load(data / "breastmnist" / "breastmnist.npz") as arrays:
        for split in SPLITS:
            for index, label in enumerate(arrays[f"{split}_labels"][:, 0]):
                image = f"{split}_images/{index}"
                rows.append((f"breastmnist.npz#{image}", image, "busi", BREASTMNIST_LABELS[label], split))
    return rows


def hippocampus(data: Path) -> list[Row]:
    """The volume of a hippocampus, and whether it is above the training split's median; both sides of a person stay
    together."""
    volumes = {}
    for path in sorted((data / "hippocampus" / "labels").glob("hippocampus_*.nii.gz")):
        mask = nib.Nifti1Image.from_filename(path)
        voxel_mm3 = math.prod(map(float, mask.header.get_zooms()))
        volumes[path.name] = int(np.isin(mask.dataobj, (1, 2)).sum()) * voxel_mm3
    split = stratified({name: _pair(name) for name in volumes}, volumes)
    median = statistics.median(volume for name, volume in volumes.items() if split[name] == "train")
    size = {name: "large" if volume > median else "small" for name, volume in volumes.items()}
    return [
        (f"images/{name}", _pair(name), "vanderbilt", size[name], split[name], f"{volume:g}")
        for name, volume in volumes.items()
    ]


def _pair(name: str) -> str:
    """The person of a file: 1 and 2 are one, 3 and 4, and so on (see the card)."""
    return f"person_{(int(name[12:15]) + 1) // 2:03d}"


def stratified(patient: dict[str, str], value: dict[str, float]) -> dict[str, str]:
    """60/20/20 by patient, drawn from a seed: of five neighbours in value 3 go to train, 1 to val and 1 to test."""
    rng = np.random.default_rng(0)
    values: dict[str, list[float]] = {}
    for name, owner in patient.items():
        values.setdefault(owner, []).append(value[name])
    ordered = sorted(values, key=lambda owner: (statistics.mean(values[owner]), owner))
    drawn: dict[str, str] = {}
    for start in range(0, len(ordered), 5):
        block = ordered[start : start + 5]
        drawn.update(zip(block, rng.permutation(["train", "val", "test", "train", "train"]).tolist(), strict=False))
    return {name: drawn[owner] for name, owner in patient.items()}


def write(name: str, rows: list[Row]) -> None:
    """The manifest, and its checksum into its card."""
    manifest, card = HERE / f"{name}.csv", HERE / f"{name}.card.yaml"
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerows([(*COLUMNS, *FURTHER.get(name, ())), *rows])
    text = card.read_text(encoding="utf-8")
    write_text(card, re.sub(r"(?m)^manifest_sha256: .*$", f"manifest_sha256: {file_digest(manifest)}", text))


def main() -> None:
    """All manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with busi, breastmnist and hippocampus")
    data = parser.parse_args().data
    makers: tuple[Callable[[Path], list[Row]], ...] = (busi, busi_official, breastmnist, hippocampus)
    for make in makers:
        rows = make(data)
        write(make.__name__, rows)
        print(f"{make.__name__}: {len(rows)} images")


if __name__ == "__main__":
    main()
