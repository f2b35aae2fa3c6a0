"""From a table of measurements to a study: `build --numbers`, and what `plan` makes of it."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medopt.core.errors import ConfigError, DataError
from medopt.manifest.build import BuildOptions, BuiltManifest, build_manifest
from medopt.manifest.infer_study import infer_study
from medopt.manifest.numbers import looks_like_number

VOLUMES = np.random.default_rng(0).lognormal(1.1, 0.3, 80).round(3).tolist()


def built(folder: Path, cells: list[str], **options: object) -> BuiltManifest:
    """A manifest of an image a patient, with these cells in the column volume."""
    (folder / "scans").mkdir()
    for at in range(len(cells)):
        Image.fromarray(np.full((8, 8), at, np.uint8)).save(folder / "scans" / f"{at}.png")
    lines = [f"{at}.png,P{at},{cell}" for at, cell in enumerate(cells)]
    (folder / "volumes.csv").write_text("\n".join(["file,PatientID,volume", *lines]) + "\n")
    asked = BuildOptions(labels=folder / "volumes.csv", **{"numbers": True} | options)  # type: ignore[arg-type]
    return build_manifest(folder / "scans", folder / "manifest.csv", asked)


def test_measurements_are_the_labels_and_splits_are_stratified_by_quarter(tmp_path: Path) -> None:
    found = built(tmp_path, [str(value) for value in VOLUMES])
    with found.manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["image"]: float(row["label"]) for row in rows} == {
        f"{at}.png": value for at, value in enumerate(VOLUMES)
    }
    edges = np.quantile(VOLUMES, [0.25, 0.5, 0.75])
    shares = Counter((row["split"], int(np.searchsorted(edges, float(row["label"])))) for row in rows)
    assert all(shares["test", quarter] == 3 and shares["train", quarter] == 14 for quarter in range(4))
    assert found.warnings == () or not any("has no case of" in warning for warning in found.warnings)


def test_the_study_of_such_a_manifest_asks_for_the_number(tmp_path: Path) -> None:
    study = infer_study(built(tmp_path, [str(value) for value in VOLUMES]).manifest)
    assert (study.data.task, study.data.number.column) == ("regression", "label")
    assert study.data.labels == ["lower", "higher"] and study.data.outputs == 1


def test_a_missing_measurement_is_left_out_and_a_word_is_refused(tmp_path: Path) -> None:
    found = built(tmp_path, [*(str(value) for value in VOLUMES[:30]), "n/a", ""])
    assert len(found.rows) == 30 and len(found.left_out) == 2
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="'large' is not a number"):
        built(tmp_path / "other", ["1.5", "large", "2.5"])


def test_without_the_option_the_message_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say --numbers"):
        built(tmp_path, [str(value) for value in VOLUMES], numbers=False)


def test_the_option_needs_a_table_and_no_other_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--numbers"):
        built(tmp_path, ["1.5", "2.5"], rename={"1.5": "low"})


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([str(grade) for grade in range(11)], False),
        ([str(age) for age in range(20, 90)], True),
        ([f"{at / 7:.3f}" for at in range(12)], True),
        ([f"{at / 7:.3f}" for at in range(9)], False),
        (["benign", "malignant"], False),
        ([*(str(age) for age in range(20, 90)), "old"], False),
    ],
)
def test_many_different_numbers_are_no_classes(cells: list[str], expected: bool) -> None:
    assert looks_like_number(dict.fromkeys(cells, 1)) is expected


def test_a_named_column_is_the_number_and_grades_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    rows = [f"{at}.png,P{at},{('mild', 'none', 'severe')[at % 3]},{40 + at},train" for at in range(12)]
    path.write_text("\n".join(["image,patient_id,label,age,split", *rows]) + "\n")
    assert infer_study(path).data.task == "multiclass"
    by_age = infer_study(path, number="age")
    assert (by_age.data.task, by_age.data.number.column) == ("regression", "age")
    graded = infer_study(path, ordered=["none", "mild", "severe"])
    assert (graded.data.task, graded.data.labels) == ("ordinal", ["none", "mild", "severe"])
    with pytest.raises(ConfigError, match="all of the manifest's labels"):
        infer_study(path, ordered=["none", "mild"])
    with pytest.raises(ConfigError, match="no such column"):
        infer_study(path, number="volume")
