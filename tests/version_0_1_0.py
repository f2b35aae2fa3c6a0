"""A run of version 0.1.0 and its release, as a later version finds them on a disk (see fixtures/README.md)."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from clinic import make_clinic
from clinic_fixtures import only_folder

ARCHIVE = Path(__file__).with_name("fixtures") / "version_0_1_0.zip"


@dataclass(frozen=True, slots=True)
class OldRun:
    """The study file, the data (drawn anew) and the folder of runs."""

    study_file: Path
    data: Path
    runs: Path

    @property
    def folder(self) -> Path:
        return only_folder(self.runs, "clinic")

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @property
    def metrics(self) -> dict[str, Any]:
        recorded: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return recorded

    def probabilities(self, model: str) -> dict[str, float]:
        """What predictions.csv holds for a model, by the name of the image."""
        image = {row["case_id"]: row["image"] for row in _rows(self.folder / "manifest.csv")}
        rows = _rows(self.folder / "predictions.csv")
        return {image[row["case_id"]]: float(row["probability"]) for row in rows if row["model"] == model}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldRun:
    """The run of version 0.1.0 in a folder of the test's own, and its images, whose headers name that version."""
    with ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old")
    with monkeypatch.context() as then:
        then.setattr("medopt.phantom.radiograph_dicom.__version__", "0.1.0")
        data = make_clinic(tmp_path / "made").data
    return OldRun(tmp_path / "old" / "clinic.yaml", data, tmp_path / "old" / "runs")
