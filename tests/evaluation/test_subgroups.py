"""Subgroups: their figures are those of their cases, their differences those to all others."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medopt.core.records import Predictions
from medopt.evaluation.subgroups import subgroup_figures
from medopt.metrics.calibrated_predictions import CalibratedPredictions
from medopt.metrics.estimates import all_figures
from medopt.metrics.figures import RATES
from medopt.metrics.thresholds import OperatingPoint

SETTINGS = {"bootstrap": 200, "confidence": 0.95, "seed": 3}


def grouped(drawn, cases=300, **fields):
    table = drawn(cases, patients=200)
    sex = np.array(["F", "M", ""])[np.arange(cases) % 3]
    scanner = np.where(np.arange(cases) < 4, "rare", "usual")
    return CalibratedPredictions(
        replace(table, subgroups={"sex": sex, "scanner": scanner, "view": np.full(cases, "PA")}, **fields),
        "binary",
        operating_point=OperatingPoint(0.6, "fixed"),
    )


def test_figures_are_those_of_the_groups_cases(drawn):
    scored = grouped(drawn)
    found = subgroup_figures(scored, smallest=10, **SETTINGS)
    assert list(found.variables) == ["site", "sex", "scanner"]  # one view only: nothing to compare
    assert list(found.variables["sex"]) == ["F", "M"]  # unknown is no group
    women = scored.predictions.subgroups["sex"] == "F"
    alone = all_figures(scored.where(women), **SETTINGS)
    told = found.variables["sex"]["F"]
    assert {name: getattr(told, name) for name in RATES} == {name: alone[name] for name in RATES}
    assert (told.cases, told.positives) == (100, int(scored.predictions.labels[women].sum()))
    men = all_figures(scored.where(scored.predictions.subgroups["sex"] == "M"), **SETTINGS)
    for name in RATES:
        apart = getattr(told.difference, name)
        assert apart.value == pytest.approx(alone[name].value - men[name].value)
        assert apart.low < apart.value < apart.high
    other = found.variables["sex"]["M"].difference.auc
    assert (other.low, other.high) == pytest.approx((-told.difference.auc.high, -told.difference.auc.low))


def test_small_groups_are_said_and_not_computed(drawn):
    found = subgroup_figures(grouped(drawn), smallest=10, **SETTINGS)
    rare, usual = found.variables["scanner"]["rare"], found.variables["scanner"]["usual"]
    assert rare.note.endswith("patients, fewer than 10") and rare.auc is None
    assert usual.auc.value is not None and usual.difference is None and "no difference" in usual.note
    json.dumps(found.json_values(), allow_nan=False)


def test_the_worst_group_is_named_and_many_looks_are_counted(drawn):
    scored = grouped(drawn, cases=600)
    table = scored.predictions
    broken = np.where((table.subgroups["sex"] == "F")[:, None], -table.logits, table.logits)
    found = subgroup_figures(replace(scored, predictions=replace(table, logits=broken)), smallest=10, **SETTINGS)
    assert (found.worst.variable, found.worst.group) == ("sex", "F")
    assert found.worst.difference.high < 0
    said = "2 of 5 subgroups differ significantly in the AUC (95 % intervals, corrected for 2 comparisons)"
    assert found.looks == 5 and found.note.startswith(said)  # two sites, two sexes
    alone, together = found.variables["sex"]["F"].uncorrected.auc, found.variables["sex"]["F"].difference.auc
    assert together.low < alone.low < alone.value == together.value < alone.high < together.high


def test_a_group_without_a_class_and_no_cases_at_all(drawn):
    scored = grouped(drawn)
    table = scored.predictions
    labels = np.where(table.site == "north", 1, table.labels)
    told = subgroup_figures(replace(scored, predictions=replace(table, labels=labels)), smallest=10, **SETTINGS)
    assert told.variables["site"]["north"].note == "a class is missing"
    nothing = subgroup_figures(scored.where(np.zeros(300, dtype=bool)), smallest=10, **SETTINGS)
    assert nothing.variables == {} and nothing.worst is None


@pytest.mark.parametrize(("task", "outputs"), [("multiclass", 3), ("multilabel", 2)])
def test_studies_with_several_outputs(drawn, task, outputs):
    scored = CalibratedPredictions(drawn(240, outputs, task=task), task, operating_point=OperatingPoint(None, "argmax"))
    if task == "multilabel":
        scored = replace(scored, operating_point=OperatingPoint((0.5, 0.5), "fixed"))
    found = subgroup_figures(scored, smallest=10, **SETTINGS).variables["site"]["north"]
    assert all(one.low < one.value < one.high for one in (getattr(found, name) for name in RATES))


def test_groups_of_many_cases_count_the_same(drawn, monkeypatch):
    scored = grouped(drawn)
    alone = subgroup_figures(scored, smallest=10, **SETTINGS).variables["sex"]["F"].difference.auc
    monkeypatch.setattr("medopt.metrics.bootstrap.LARGE", 100)
    many = subgroup_figures(scored, smallest=10, **SETTINGS).variables["sex"]["F"].difference.auc
    assert many.value == pytest.approx(alone.value)
    assert many.high - many.low == pytest.approx(alone.high - alone.low, rel=0.3)


def a_study_without_differences(seed, patients, small, images=1):
    """So many patients with one or more images; AUC .85 and the same threshold in all groups."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), images)
    labels = (random.random(patients) < 0.4).astype(np.int64)[owner]
    own = random.normal(size=patients)[owner] if images > 1 else 0.0
    logits = np.sqrt(0.5) * own + np.sqrt(0.5 if images > 1 else 1) * random.normal(size=len(owner)) + 1.47 * labels
    blank = np.full(len(owner), "", dtype=np.str_)
    group = np.where(owner < small, "few", "many") if images == 1 else np.array(["AP", "PA"])[np.arange(len(owner)) % 2]
    names = np.array([f"p{number}" for number in owner])
    table = Predictions("m", np.arange(len(owner)).astype(np.str_), names, blank, blank, labels, logits[:, None] - 0.7)
    table = replace(table, subgroups={"group": group})
    return CalibratedPredictions(table, "binary", operating_point=OperatingPoint(0.5, "fixed"))


@pytest.mark.parametrize(("patients", "small", "images"), [(90, 15, 1), (60, 60, 2)])
def test_groups_that_do_not_differ_seldom_seem_to(patients, small, images):
    """In a group of 15 patients, and in two views of the same patients; percentiles alarm in 12 % and more of 15."""
    alarms = dict.fromkeys(RATES, 0)
    judged = 0
    for seed in range(150):
        scored = a_study_without_differences(seed, patients, small, images)
        found = next(iter(subgroup_figures(scored, smallest=10, **SETTINGS).variables["group"].values()))
        if found.uncorrected is not None:
            judged += 1
            for name in RATES:
                alarms[name] += getattr(found.uncorrected, name).excludes_zero
    assert judged > 120
    assert all(count / judged < 0.09 for count in alarms.values()), alarms
    assert sum(alarms.values()) > 2  # nor do intervals as wide as all differences alarm
