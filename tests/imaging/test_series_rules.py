"""Which series of a study the rules take, and what is said of the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from real_data import real

from medopt.config import SeriesRules
from medopt.core.errors import DataError
from medopt.imaging.series_index import Series, index_folder
from medopt.imaging.series_rules import SeriesSelection, select_channels, select_series

PLAIN: dict[str, Any] = {
    "study_uid": "1.2.840.5",
    "patient": "MRN-4711",
    "accession": "ACC77",
    "folder": Path("export"),
    "files": (Path("export/1"),),
    "frames": 30,
    "number": "3",
    "modality": "CT",
    "description": "Thorax lung",
    "protocol": "",
    "body_part": "CHEST",
    "image_type": ("ORIGINAL", "PRIMARY", "AXIAL"),
    "orientation": "axial",
    "thickness_mm": 1.0,
    "size": (512, 512),
    "contrast": False,
    "burned_in": False,
} | dict.fromkeys(("manufacturer", "model", "institution", "station", "age", "sex"), "")


def choose(series: Sequence[Series], rules: SeriesRules) -> SeriesSelection:
    selection = select_series(series, rules)
    selection.require_one_each()
    return selection


def series(uid: str = "1.2.840.5.1", **fields: Any) -> Series:
    return Series(**(PLAIN | {"uid": uid} | fields))


@pytest.mark.parametrize(
    ("rules", "fields", "reason"),
    [
        ({"modality": ["MR"]}, {}, "modality CT"),
        ({"body_part": ["^head", "abdo"]}, {}, "body_part CHEST"),
        ({"body_part": ["chest"]}, {"body_part": ""}, "body_part not said"),
        ({"description": ["bone"]}, {}, "description matches no pattern"),
        ({"exclude": ["mip", "lung"]}, {}, "exclude finds 'lung'"),
        ({"image_type": ["primary", "M"]}, {}, "image_type has no M"),
        ({}, {"image_type": ("DERIVED", "SECONDARY")}, "derived"),
        ({"derived": True}, {"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "localizer"),
        ({"orientation": ["coronal", "sagittal"]}, {}, "orientation axial"),
        ({"slices": [31, 99]}, {}, "slices 30"),
        ({"thickness_mm": [0, 0.9]}, {}, "thickness_mm 1.0"),
        ({"thickness_mm": [0, 5]}, {"thickness_mm": None}, "thickness_mm not said"),
        ({"contrast": True}, {}, "contrast not given"),
        ({"contrast": False}, {"contrast": True}, "contrast given"),
    ],
)
def test_each_rule_leaves_out_and_says_so(rules: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    only = series(**fields)
    assert select_series([only], SeriesRules(**rules)).reasons == {only.uid: reason}
    with pytest.raises(DataError, match=rf"none of 1 series is left: number 3 CT '.*' \(30 images\): {reason}"):
        choose([only], SeriesRules(**rules))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"modality": ["ct", "PT"], "body_part": ["che"], "description": ["LUNG$"], "image_type": ["axial"]},
        {"orientation": ["axial"], "slices": [30, 30], "thickness_mm": [1, 1], "contrast": False, "exclude": ["bone"]},
    ],
)
def test_what_fits_every_rule_is_taken(rules: dict[str, Any]) -> None:
    only = series()
    assert choose([only], SeriesRules(**rules)).chosen == (only,)


def test_derived_images_are_taken_where_they_are_asked_for() -> None:
    only = series(image_type=("DERIVED", "SECONDARY"))
    assert choose([only], SeriesRules(derived=True)).chosen == (only,)


def test_the_first_description_that_finds_something_wins() -> None:
    soft, lung = series("1.2.840.5.1", description="Soft B30"), series("1.2.840.5.2", description="Lung B60")
    for patterns, taken in ((["b60", "b30"], lung), (["b90", "b30", "b60"], soft)):
        choice = choose([soft, lung], SeriesRules(description=patterns))
        assert choice.chosen == (taken,)
        assert sorted(reason.split(":")[0] for reason in choice.reasons.values()) == ["description", "taken"]


def test_every_study_gets_one_series_of_its_own() -> None:
    several = [series(f"1.2.840.{k}.{n}", study_uid=f"1.2.840.{k}", number=str(n)) for k in (5, 6) for n in (1, 2)]
    thin = [series("1.2.840.5.9", study_uid="1.2.840.5", frames=300), several[2]]
    assert len(choose([several[0], several[2]], SeriesRules()).chosen) == 2
    refused = select_series([*several[:2], *thin], SeriesRules(slices=(1, 99))).refusals
    assert len(refused) == 1
    assert "2 of 3 series are left: number 1 CT" in refused[0]


def test_a_refusal_shows_no_identifier() -> None:
    two = [series(f"1.2.840.5.{n}", description="Lung of MRN-4711, ACC77") for n in (1, 2)]
    with pytest.raises(DataError, match="In 1 of 1 studies the rules do not leave one series") as caught:
        choose(two, SeriesRules())
    assert not [word for word in ("1.2.840", "MRN-4711", "ACC77") if word in str(caught.value)]


def test_of_a_real_study_the_rules_take_one_series() -> None:
    found = index_folder(real("dicom/mr_study")).series
    rules = SeriesRules(modality=["MR"], description=["t1"], contrast=True)
    assert [one.description for one in choose(found, rules).chosen] == ["T1post"]
    with pytest.raises(DataError, match=r"2 of 5 series are left: .*'T1post'.*'T1pre_reg'"):
        choose(found, SeriesRules(description=["t1"]))


@pytest.mark.parametrize(
    "rules", [{"exclude": ["("]}, {"slices": [9, 3]}, {"orientation": ["up"]}, {"modalty": ["CT"]}]
)
def test_rules_that_cannot_be_meant_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SeriesRules(**rules)


def channels(**changed: Any) -> SeriesRules:
    rules = {"t1": {"description": ["^t1"]}, "adc": {"description": ["^adc"], "derived": True}}
    return SeriesRules.model_validate({"modality": ["MR"], "channels": rules} | changed)


def mr(uid: str, description: str, **fields: Any) -> Series:
    return series(uid, **{"modality": "MR", "description": description, "volume": True} | fields)


T1, ADC = mr("1", "T1 axial"), mr("2", "ADC map", image_type=("DERIVED", "PRIMARY"))


def test_rules_of_an_image_replace_those_of_all() -> None:
    found = select_series([T1, ADC, mr("3", "t2"), mr("4", "adc", modality="CT")], channels())
    assert found.cases == ({"t1": T1, "adc": ADC},) and found.chosen == (T1, ADC) and not found.refusals
    assert found.reasons["1"] == "taken as t1: description finds '^t1'"
    assert found.reasons["3"] == "not t1: description matches no pattern; not adc: description matches no pattern"
    stored = SeriesRules.model_validate_json(channels().model_dump_json())  # as a release keeps them, with all defaults
    assert stored.of_channel("adc").derived and stored.of_channel("adc").modality == ["MR"]
    assert not stored.of_channel("t1").derived


@pytest.mark.parametrize(
    ("members", "problem", "may_miss"),
    [
        ([T1], "adc: no series of 1 is left (1 description)", False),
        ([T1], "", True),
        ([mr("3", "t2")], "t1: no series of 1 is left (1 description); adc: no series of 1", True),
        ([T1, ADC, mr("5", "adc 2")], "adc: 2 of 3 series are left", True),
        (
            [T1, mr("5", "adc", volume=False, files=(Path("a"), Path("b")))],
            "adc: the remaining series has 2 images",
            True,
        ),
    ],
)
def test_a_study_that_is_no_case_says_why(members: list[Series], problem: str, may_miss: bool) -> None:
    assert select_channels(members, channels()).problem(may_miss).startswith(problem)
    assert bool(select_channels(members, channels()).problem(may_miss)) == bool(problem)
    found = select_series(members, channels(), may_miss=may_miss)
    assert bool(found.refusals) == bool(problem)
    if problem:
        with pytest.raises(DataError, match="In 1 of 1 studies the rules do not leave one series: study"):
            found.require_one_each()


def test_one_series_is_not_two_images() -> None:
    rules = channels(channels={"t1": {"description": ["t"]}, "t2": {"description": ["t1"]}})
    assert select_channels([T1], rules).faults == {"t2": "the one that is left is that of t1, too"}
