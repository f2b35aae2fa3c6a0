"""Folds over a manifest's training and validation cases."""

from __future__ import annotations

from collections import Counter

import pytest

from medopt.config import Study
from medopt.core.errors import DataError
from medopt.core.records import Case
from medopt.manifest.splits import apply_folds

STUDY = {
    "name": "folds",
    "question": "?",
    "data": {"manifest": "m.csv", "labels": ["no", "yes"], "folds": 5},
    "prepare": {"size": [16, 16]},
}


def study(**data: object) -> Study:
    return Study.model_validate(STUDY | {"data": {**STUDY["data"], **data}})  # type: ignore[dict-item]


def cases(patients: int = 60) -> list[Case]:
    """Two images a patient; every third patient has the finding, at two sites."""
    return [
        Case(
            f"c{patient}-{image}",
            f"p{patient:02d}",
            f"{patient}-{image}.png",
            (int(patient % 3 == 0),),
            "test" if patient < 10 else "val" if patient < 20 else "train",
            site="ab"[patient % 2],
        )
        for patient in range(patients)
        for image in range(2)
    ]


def test_each_case_validates_once_and_test_is_untouched() -> None:
    rows = cases()
    found = [apply_folds(rows, study(fold=fold)) for fold in range(5)]
    validated = Counter(case.case_id for fold in found for case in fold if case.split == "val")
    assert validated == Counter(case.case_id for case in rows if case.split != "test")
    for fold in found:
        assert [case.case_id for case in fold] == [case.case_id for case in rows]
        assert [c.split == "test" for c in fold] == [c.split == "test" for c in rows]


def test_patients_stay_together_and_labels_and_sites_are_spread() -> None:
    for fold in range(5):
        found = apply_folds(cases(), study(fold=fold))
        sides = {(case.patient_id, case.split) for case in found}
        assert len(sides) == 60
        val = [case for case in found if case.split == "val"]
        assert 18 <= len(val) <= 22
        assert 0.2 < sum(case.label[0] for case in val) / len(val) < 0.45
        assert {case.site for case in val} == {"a", "b"}


def test_seed_does_not_change_the_folds() -> None:
    """Members of several seeds are compared on the same folds."""
    one, other = study(fold=2), Study.model_validate(study(fold=2).model_dump() | {"seed": 9})
    assert apply_folds(cases(), one) == apply_folds(cases(), other)


def test_without_folds_nothing_changes() -> None:
    assert apply_folds(cases(), study(folds=0)) == tuple(cases())


def test_too_few_patients_of_a_class_are_refused() -> None:
    with pytest.raises(DataError, match="too few patients for 5 parts"):
        apply_folds(cases(24), study())


@pytest.mark.parametrize("data", [{"folds": 1}, {"folds": 3, "fold": 3}, {"folds": 0, "fold": 1}])
def test_fold_that_is_none_is_refused(data: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="fold"):
        study(**data)
