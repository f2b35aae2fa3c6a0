"""Manifests of a number: what is read, what is refused, where the threshold comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medopt.config import Study
from medopt.core.errors import DataError
from medopt.manifest.numbers import with_number_scale
from medopt.manifest.run_manifest import manifest_digest, write_run_manifest
from medopt.manifest.table import read_manifest


def study(**number: Any) -> Study:
    data = {"manifest": "m.csv", "task": "regression", "number": {"column": "age"} | number}
    return Study.model_validate({"name": "ages", "question": "How old?", "data": data, "prepare": {"size": [16, 16]}})


def manifest(folder: Path, *cells: str, splits: tuple[str, ...] = ("train",) * 9) -> Path:
    path = folder / "m.csv"
    rows = [f"{at}.png,P{at},{cell},{splits[at]}" for at, cell in enumerate(cells)]
    path.write_text("\n".join(["image,patient_id,age,split", *rows]) + "\n")
    return path


def test_numbers_are_read_and_sided_by_the_median_of_training(tmp_path: Path) -> None:
    path = manifest(tmp_path, "61", "40.5", "1e1", "90", splits=("train", "train", "train", "test"))
    cases = read_manifest(path, study())
    assert [case.number for case in cases] == [61, 40.5, 10, 90]
    assert [case.label for case in cases] == [(1,), (0,), (0,), (1,)]
    resolved = with_number_scale(study(), cases).data.number
    assert resolved.threshold == 40.5 and resolved.spread == pytest.approx(20.9, abs=0.1)


def test_a_named_threshold_is_kept_and_equal_numbers_are_not_above_it(tmp_path: Path) -> None:
    cases = read_manifest(manifest(tmp_path, "60", "60.1"), study(threshold=60))
    assert [case.label for case in cases] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("", "the cell is empty"),
        ("old", "'old' is not a number"),
        ("61,5", ""),
        ("nan", "is not a finite number"),
        ("inf", "is not a finite number"),
    ],
)
def test_what_is_no_number_is_refused_with_its_row(tmp_path: Path, cell: str, said: str) -> None:
    with pytest.raises(DataError, match="row 2") as refused:
        read_manifest(manifest(tmp_path, cell, "50"), study())
    assert said in str(refused.value)


def test_a_decimal_comma_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="write a point in place of the comma"):
        read_manifest(manifest(tmp_path, '"61,5"', "50"), study())


def test_a_logarithm_needs_numbers_above_zero(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not above 0"):
        read_manifest(manifest(tmp_path, "0", "50"), study(scale="log"))
    with pytest.raises(ValueError, match="above 0"):
        study(scale="log", threshold=-1)


def test_one_number_for_all_leaves_nothing_to_learn(tmp_path: Path) -> None:
    cases = read_manifest(manifest(tmp_path, "50", "50"), study())
    with pytest.raises(DataError, match="nothing to learn"):
        with_number_scale(study(), cases)


def test_a_runs_manifest_reads_back_the_same_cases(tmp_path: Path) -> None:
    cases = read_manifest(manifest(tmp_path, "61.123456789", "40"), study())
    resolved = with_number_scale(study(), cases)
    write_run_manifest(tmp_path / "run.csv", cases, resolved)
    again = read_manifest(tmp_path / "run.csv", resolved, from_run=True)
    assert [(case.number, case.label, case.split) for case in again] == [
        (case.number, case.label, case.split) for case in cases
    ]


def test_another_number_is_another_data_set(tmp_path: Path) -> None:
    first = read_manifest(manifest(tmp_path, "61", "40"), study(threshold=50))
    second = read_manifest(manifest(tmp_path, "61.5", "40"), study(threshold=50))
    assert manifest_digest(first) != manifest_digest(second)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column volume"):
        read_manifest(manifest(tmp_path, "61"), study(column="volume"))
