"""A made-up clinic: small DICOM radiographs of three sites with a bright blob or none, and a study of them.

Names, numbers and UIDs are planted in headers and manifest, so that a test can look for them in what is written.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from medopt.phantom import Radiograph, write_radiograph

SITES = ("harbour", "hill", "valley")
SPLITS = ("train",) * 6 + ("val",) * 3 + ("test",) * 3
LABELS = ("clear", "blob")
STAGES = (
    "baseline",
    "train",
    "compress",
    "judge",
    "evaluate",
    "robustness",
    "explain",
    "domain",
    "release",
    "report",
    "record",
)
STUDY: dict[str, Any] = {
    "name": "clinic",
    "question": "Is there a bright blob?",
    "data": {"manifest": "manifest.csv", "root": "scans", "labels": list(LABELS)},
    "prepare": {"size": [32, 32], "intensity": {"method": "range", "low": 0, "high": 4095}},
    "augment": {"rotate_degrees": 5},
    "model": {"depth": 14, "width": 0.125, "stem": "small"},
    "training": {"epochs": 4, "batch_size": 8, "optimizer": {"lr": 0.003}, "ema_decay": 0, "mixup": 0},
    "evaluation": {"bootstrap": 100, "shift_cases": 12, "shift_families": ["noise", "compression"]},
    # Limits that no machine's speed and no small model's noise decides about.
    "compression": {
        "calibration_images": 16,
        "threads": 1,
        "gate": {"min_speedup": 0, "max_decision_flips": 1, "max_probability_shift": 1, "max_size_ratio": 1}
        | {"auc_margin": 1},
    },
}


@dataclass(frozen=True, slots=True)
class Clinic:
    """Where the study file and the data lie, and what must never leave the headers."""

    study_file: Path
    data: Path
    identifiers: frozenset[str] = field(repr=False)

    def rows(self) -> list[dict[str, str]]:
        with (self.data / "manifest.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))


def draw_scan(label: int, seed: int, size: int = 40) -> NDArray[np.float32]:
    """(size, size) in 0..1: noise on a gradient, and for label 1 a blob somewhere."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:size, :size] / size
    image = 0.3 + 0.1 * down + 0.03 * random.standard_normal((size, size))
    at = random.uniform(0.3, 0.7, 2)
    image += 0.5 * label * np.exp(-((down - at[0]) ** 2 + (across - at[1]) ** 2) / 0.02)
    return np.clip(image, 0, 1).astype(np.float32)


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{study['name']}.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def useless_data(clinic: Clinic, folder: Path) -> Path:
    """The data of a clinic with every other patient's labels exchanged, so that no image tells them."""
    folder.mkdir()
    (folder / "scans").symlink_to(clinic.data / "scans")
    rows, names = clinic.rows(), list(STUDY["data"]["labels"])
    for index, row in enumerate(rows):
        if index // 2 % 2:
            row["label"] = names[1 - names.index(row["label"])]
    write_rows(folder / "manifest.csv", rows)
    return folder


def make_clinic(folder: Path) -> Clinic:
    """72 images of 36 patients; splits go by patient, sites and labels are spread over them. Drawn once a folder."""
    data, secret, rows = folder / "data", set(), []
    study_file = folder / f"{STUDY['name']}.yaml"
    is_drawn = study_file.exists()
    for index in range(72):
        patient, label = index // 2, index % 2
        site, split = SITES[patient % 3], SPLITS[patient // 3]
        number, name = f"MRN{7100 + 37 * patient}Q", f"ZWICKELHUBER{patient}^XAVERIA"
        study_uid, series_uid = f"1.2.826.0.1.4711.{patient}.77", f"1.2.826.0.1.4711.{patient}.77.{index}"
        header = Radiograph(
            patient_id=number,
            patient_name=name,
            study_uid=study_uid,
            series_uid=series_uid,
            instance_uid=f"{series_uid}.5",
            accession=f"ACC{9000 + patient}X",
        )
        if not is_drawn:
            write_radiograph(data / "scans" / f"{index:03d}.dcm", draw_scan(label, index), header)
        rows.append(
            {"image": f"{index:03d}.dcm", "patient_id": number, "label": LABELS[label], "split": split, "site": site}
            | {"study_uid": study_uid, "series_uid": series_uid, "age": 40 + patient, "name": name}
        )
        secret |= {number, name.partition("^")[0], study_uid, header.accession}
    if not is_drawn:
        write_rows(data / "manifest.csv", rows)
        write_study(folder, STUDY)
    return Clinic(study_file, data, frozenset(secret))
