"""From a flat export of a PACS to a release, by the four commands of the README."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from clinic_fixtures import call
from pydicom import dcmread
from scans_of_patients import mr_series

PATIENTS = 30
SIDE = 16


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of all patients in one folder: a FLAIR and a T1 series each, the FLAIR bright in every second one."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    for number in range(PATIENTS):
        for description in ("FLAIR", "T1"):
            mr_series(
                folder, f"patient-{number}", f"1.2.{number}", description, slices=8, name=f"{number}{description}"
            )
    for path in folder.iterdir():
        dataset = dcmread(path)
        number = int(str(dataset.PatientID).removeprefix("patient-"))
        pixels = rng.integers(0, 200, (SIDE, SIDE)).astype(np.uint16)
        if dataset.SeriesDescription == "FLAIR" and number % 2:
            pixels[4:9, 4:9] += 800
        dataset.Rows = dataset.Columns = SIDE
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(path)
    return folder


def test_an_export_becomes_a_release(export: Path, tmp_path: Path) -> None:
    with (tmp_path / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["PatientID", "label"])
        writer.writerows([[f"patient-{number}", ("none", "lesion")[number % 2]] for number in range(PATIENTS)])
    manifest, study = tmp_path / "lesions.csv", tmp_path / "lesions.yaml"
    build = ("manifest", "build", export, "--labels", tmp_path / "labels.csv", "--out", manifest)
    call(*build).refused(3, "which series is meant", "FLAIR", "--description")
    done = call(*build, "--description", "FLAIR", "--split", "0.5,0.25,0.25")
    assert done.code == 0, done.stderr
    rows = list(csv.DictReader(manifest.open()))
    assert len(rows) == PATIENTS and all("#" in row["image"] for row in rows)
    assert "patient-" not in manifest.read_text() + done.stdout + done.stderr
    checked = call("manifest", "check", manifest, "--data", export)
    assert checked.code == 0, checked.stderr
    planned = call("plan", manifest, "--data", export, "--out", study)
    assert planned.code == 0, planned.stderr
    quick = ("--set", "training.epochs=6", "--set", "compression.gate={min_speedup: 0, max_size_ratio: 1}")
    ran = call("run", study, "--runs", tmp_path / "runs", "--json", *quick)
    assert ran.code in (0, 5), ran.stderr  # six epochs may leave decisions that flip
    assert ran.summary["test"]["float"]["auc"]["n"] == sum(row["split"] == "test" for row in rows)
    assert not any(name in path.read_text() for path in (tmp_path / "runs").rglob("*.csv") for name in ("patient-",))
