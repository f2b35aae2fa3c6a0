"""Covariates of a manifest: what is read and refused, how training encodes it, what counts as missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError, DataError
from medopt.core.records import Case
from medopt.manifest.covariates import CovariateEncoder, covariate_findings, encoder_of, with_covariates
from medopt.manifest.run_manifest import manifest_digest, training_digest, write_run_manifest
from medopt.manifest.table import read_manifest


def study(*covariates: Any, **more: Any) -> Study:
    data = {"manifest": "m.csv", "labels": ["no", "yes"], "covariates": list(covariates)}
    return Study.model_validate({"name": "beside", "question": "?", "data": data, "prepare": {"size": [16, 16]}} | more)


def manifest(folder: Path, header: str, *rows: str) -> Path:
    path = folder / "m.csv"
    lines = [f"{at}.png,P{at},{('no', 'yes')[at % 2]},{row}" for at, row in enumerate(rows)]
    path.write_text("\n".join([f"image,patient_id,label,split,{header}", *lines]) + "\n")
    return path


def cases(*cells: str, split: str = "train") -> list[Case]:
    return [
        Case(f"c{at}", f"p{at}", f"{at}.png", (at % 2,), split, covariates=(cell,))  # type: ignore[arg-type]
        for at, cell in enumerate(cells)
    ]


def fitted(covariate: Any, *cells: str) -> CovariateEncoder:
    encoder = encoder_of(with_covariates(study(covariate), cases(*cells)))
    assert encoder is not None
    return encoder


def test_numbers_are_standardized_and_categories_have_a_column_a_value(tmp_path: Path) -> None:
    asked = study("age", {"column": "smoker", "kind": "category"})
    path = manifest(tmp_path, "age,smoker", "train,40,never", "train,60,Current", "train,50,n/a", "train,50,never")
    read = read_manifest(path, asked)
    assert [case.covariates for case in read] == [("40", "never"), ("60", "Current"), ("50", "n/a"), ("50", "never")]
    encoder = encoder_of(with_covariates(asked, read))
    assert encoder is not None
    assert encoder.names == ["age", "smoker never", "smoker current", "smoker missing"]
    spread = float(np.std([40, 60, 50, 50]))
    assert encoder.table(read).tolist() == pytest.approx(
        np.array([[-10 / spread, 1, 0, 0], [10 / spread, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
    )


def test_kinds_come_from_the_cells_of_training_unless_the_study_says_them() -> None:
    assert fitted("crp", "1.5", "2", "").covariates[0].kind == "number"
    assert fitted("crp", "1.5", "high", "2").covariates[0].kind == "category"
    assert fitted({"column": "grade", "kind": "category"}, "1", "1.0", "2").names == ["grade 1", "grade 2"]
    assert fitted({"column": "sex", "tag": "PatientSex"}, "F", "male", "female").names == ["sex female", "sex male"]


def test_a_missing_value_is_the_mean_and_says_so_where_training_had_some() -> None:
    encoder = fitted("crp", "1", "3", "")
    assert encoder.names == ["crp", "crp missing"]
    one = encoder.encode({})
    assert (one.values, one.missing, one.declined) == ((0.0, 1.0), ("crp",), "")
    assert encoder.encode({"crp": "3"}).values == (1.0, 0.0)


def test_a_missing_value_is_declined_where_training_had_none() -> None:
    encoder = fitted("crp", "1", "3")
    one = encoder.encode({"crp": "unknown"})
    assert (one.values, one.missing) == ((0.0,), ("crp",))
    assert one.declined == "crp is missing, and training had no case without it"


def test_an_unknown_category_counts_as_missing() -> None:
    encoder = fitted("smoker", "never", "never", "current", "n/a")
    one = encoder.encode({"smoker": "SECRET"})
    assert (one.values, one.missing, one.declined) == ((0.0, 0.0, 1.0), ("smoker",), "")
    without = fitted("smoker", "never", "current").encode({"smoker": "SECRET"})
    assert "has a value that training did not have" in without.declined and "SECRET" not in without.declined


def test_a_number_far_outside_of_training_is_declined_and_not_quoted() -> None:
    encoder = fitted("weight", "50", "90")
    assert not encoder.encode({"weight": "129"}).declined
    declined = encoder.encode({"weight": "7777"}).declined
    assert declined == "weight is far outside the 50 to 90 of training"


@pytest.mark.parametrize(("column", "cell"), [("age", "9999"), ("age", "-3"), ("age", "old"), ("crp", "inf")])
def test_a_cell_that_is_no_number_is_refused_with_row_and_column(tmp_path: Path, column: str, cell: str) -> None:
    path = manifest(tmp_path, column, "train,5", f"train,{cell}")
    with pytest.raises(DataError, match=rf"{column}: row 3: '{cell}' is not "):
        read_manifest(path, study({"column": column, "kind": "number"}))
    with pytest.raises(DataError, match=f"The covariate {column} is not ") as refused:
        fitted({"column": column, "kind": "number"}, "5", "9").encode({column: cell})
    assert cell not in str(refused.value)


def test_ages_are_read_as_dicom_writes_them_and_end_at_ninety() -> None:
    encoder = fitted("age", "20", "040Y", "60.5")
    assert encoder.covariates[0].fitted is not None and encoder.covariates[0].fitted.high == 60
    assert encoder.encode({"age": "045Y"}).values == encoder.encode({"age": "45"}).values
    assert encoder.encode({"age": "018M"}).values == encoder.encode({"age": "1"}).values
    assert encoder.encode({"age": "97"}).values == encoder.encode({"age": "90"}).values


def test_numbers_that_stand_for_missing_ones_are_refused() -> None:
    with pytest.raises(DataError, match=r"holds 999 in 2 training cases, and from 1 to 7 in all others"):
        fitted("crp", "1", "7", "999", "999", "4")
    assert fitted("score", "60", "99", "85").covariates[0].kind == "number"


def test_free_text_and_empty_columns_are_refused() -> None:
    with pytest.raises(DataError, match="has 30 different values in training"):
        fitted("history", *(f"text {at}" for at in range(30)))
    with pytest.raises(DataError, match="is missing in all training cases"):
        fitted("crp", "", "n/a")


def test_an_absent_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column crp"):
        read_manifest(manifest(tmp_path, "age", "train,5"), study("crp"))


def told(covariate: Any, train: list[str], test: list[str]) -> dict[str, tuple[str, str]]:
    both = [*cases(*train), *cases(*test, split="test")]
    return {one.name: (one.severity, one.text) for one in covariate_findings(both, study(covariate))}


def test_the_check_counts_missing_cells_and_names_what_training_lacks() -> None:
    found = told("smoker", ["never", "current", ""], ["never", "former", ""])
    assert found["covariates"] == (
        "note", "smoker: a category (current, never); missing in 2 of 6 cases (train 1, test 1)."
    )  # fmt: skip
    severity, text = found["covariate_unknown"]
    assert severity == "note" and "values that training lacks in 1 validation or test case" in text
    lacking = told("crp", ["1", "2"], ["1", ""])["covariate_unknown"][1]
    assert "Training has no case without crp" in lacking and "a release declines such cases" in lacking
    assert told("crp", ["1", "1"], ["1"])["covariate_constant"][0] == "note"
    severity, text = told("height", ["1.6", "1.9", "1.7"], ["172"])["covariate_range"]
    assert severity == "refuse" and "in 1 validation or test case" in text and "172" not in text


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"column": "name", "tag": "PatientName"}, "PatientName"),
        ({"column": "x", "tag": "PatientSex", "kind": "number"}, "holds a category"),
        ("patient_id", "use this name for something else"),
        ("scan", "use this name for something else"),
        ({"column": "age", "type": "number"}, "type"),
    ],
)
def test_a_study_file_that_asks_for_the_impossible_is_refused_with_its_place(
    tmp_path: Path, entry: Any, said: str
) -> None:
    path = tmp_path / "s.yaml"
    data = {"manifest": "m.csv", "labels": ["a", "b"], "covariates": [entry]}
    path.write_text(yaml.safe_dump({"name": "s", "question": "?", "data": data, "prepare": {"size": [16, 16]}}))
    with pytest.raises(ConfigError, match=said) as refused:
        load_study(path)
    assert "s.yaml" in str(refused.value) and "data.covariates.0" in str(refused.value)


def test_what_is_asked_for_is_no_covariate_and_none_stands_there_twice() -> None:
    with pytest.raises(ValidationError, match="the answer would be given"):
        study("effusion", data={"manifest": "m", "task": "multilabel", "labels": ["a", "effusion"],
                                "covariates": ["effusion"]})  # fmt: skip
    with pytest.raises(ValidationError, match="has age twice"):
        study("age", "Age")
    with pytest.raises(ValidationError, match="both have t1"):
        study("t1", prepare={"size": [16, 16], "channels": ["t1", "t2"]})


def test_a_runs_manifest_keeps_the_cells_and_other_cells_are_another_data_set(tmp_path: Path) -> None:
    asked = study("age", "smoker")
    first = read_manifest(manifest(tmp_path, "age,smoker", "train,40,never", "val,61,n/a"), asked)
    write_run_manifest(tmp_path / "run.csv", first, asked)
    again = read_manifest(tmp_path / "run.csv", asked, from_run=True)
    assert [case.covariates for case in again] == [case.covariates for case in first]
    other = read_manifest(manifest(tmp_path, "age,smoker", "train,41,never", "val,61,n/a"), asked)
    assert manifest_digest(first) != manifest_digest(other) and training_digest(first) != training_digest(other)
    assert asked.training_digest() != study("age").training_digest()
