"""`medopt series` as a user runs it, on files that a phantom's writer made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from clinic_fixtures import call
from pydicom import dcmread

from medopt.phantom import Radiograph, write_radiograph


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies: one of a frontal and a lateral view, one of a frontal view alone."""
    folder = tmp_path_factory.mktemp("export")
    views = (("a", "PA"), ("a", "LATERAL"), ("b", "PA"))
    for number, (study, view) in enumerate(views):
        uid = f"1.2.826.0.1.4711.{ord(study)}"
        header = Radiograph(patient_id=f"MRN{study}77", study_uid=uid, series_uid=f"{uid}.{number}", accession="ACC55X")
        path = write_radiograph(folder / f"I{number}", np.random.default_rng(number).uniform(size=(16, 16)), header)
        changed = dcmread(path)
        changed.SeriesDescription, changed.BodyPartExamined = f"Chest {view} MRN{study}77", "CHEST"
        changed.save_as(path)
    return folder


def study_file(folder: Path, **rules: object) -> Path:
    path = folder / "rules.yaml"
    data = {"manifest": "m.csv", "labels": ["a", "b"], "series": rules}
    path.write_text(yaml.safe_dump({"name": "s", "question": "?", "data": data, "prepare": {"size": [32, 32]}}))
    return path


def test_without_rules_the_table_alone(export: Path) -> None:
    done = call("series", export, "--json")
    assert done.code == 0, done.stderr
    assert "3 series of 2 studies" in done.stdout
    assert {row["rule"] for row in done.summary["series"]} == {""}
    assert not [word for word in ("MRNa77", "1.2.826", "ACC55X") if word in done.stdout + done.stderr]


def test_rules_take_one_series_of_each_study(export: Path, tmp_path: Path) -> None:
    done = call("series", export, "--rules", study_file(tmp_path, description=[r"\bPA\b"]), "--json")
    assert done.code == 0, done.stderr
    assert sorted(row["rule"] for row in done.summary["series"]) == [
        "description matches no pattern",
        r"taken: description finds '\\bPA\\b'",
        r"taken: description finds '\\bPA\\b'",
    ]


def test_two_left_are_refused_and_listed(export: Path, tmp_path: Path) -> None:
    done = call("series", export, "--rules", study_file(tmp_path, modality=["DX"]), "--json")
    said = done.refused(3, "In 1 of 2 studies the rules do not leave one series", "2 of 2 series are left", "LATERAL")
    assert "MRNa77" not in said + done.stdout
    assert len(done.summary["refused"]) == 1


def test_nothing_left_says_why(export: Path, tmp_path: Path) -> None:
    done = call("series", export, "--rules", study_file(tmp_path, modality=["CT"]))
    done.refused(3, "In 2 of 2 studies", "none of 2 series is left", "modality DX")


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"modalty": ["CT"]}, "unknown key data.series.modalty: did you mean modality?"),
        ({"exclude": ["("]}, "is not a regular expression"),
        ({"slices": [9, 3]}, "slices is [minimum, maximum], not 9 to 3"),
    ],
)
def test_rules_that_cannot_be_meant(export: Path, tmp_path: Path, rules: dict[str, object], said: str) -> None:
    call("series", export, "--rules", study_file(tmp_path, **rules)).refused(2, "ConfigError", said)


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    call("series", tmp_path).refused(3, "holds no DICOM image")
    call("series", tmp_path / "nowhere").refused(3, "is not a folder")
