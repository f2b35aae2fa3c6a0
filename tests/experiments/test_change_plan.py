"""A change plan: what lies outside it, and the record that shows when it was changed afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medopt.config import Study
from medopt.core.errors import ConfigError, DataError
from medopt.core.records import Estimate
from medopt.evaluation.comparison import ComparedRun, Comparison, PairedFigure, PairedFigures, SiteFigures
from medopt.evaluation.shadow_trial import PairedShare, ReleaseName, ShadowReport, TrialFigures
from medopt.experiments.change_plan import (
    RECORD,
    ChangePlan,
    ShadowDemand,
    changed_settings,
    outside,
    outside_trial,
    read_plan,
    record_decision,
)

PLAN = ChangePlan(
    model="lesions",
    may_change=["training", "evaluation.operating_point"],
    margins={"auc": 0.02, "sensitivity": 0.05},
    site_margins={"auc": 0.1},
    patients=50,
)


def study(**more: Any) -> Study:
    described = {"name": "lesions", "question": "?", "data": {"manifest": "m.csv", "labels": ["no", "yes"]}}
    return Study.model_validate(described | {"prepare": {"size": [64, 64]}} | more)


def figures(low: float | None, kind: Any = PairedFigures, **more: Any) -> Any:
    """Every figure with a difference whose interval begins at `low`."""
    difference = Estimate(0.0, low, 0.1 if low is not None else None, 200)
    return kind(**{name: PairedFigure(reference=0.9, value=0.9, difference=difference, p=1.0) for name in
                   ("auc", "sensitivity", "specificity", "brier")}, **more)  # fmt: skip


def compared(low: float | None = -0.01, site: float = -0.05, patients: int = 60) -> Comparison:
    run = ComparedRun(name="new", figures=figures(low), sites={"north": figures(site, SiteFigures, cases=30)})
    fields = {"split": "test", "reference": "old", "cases": 80, "patients": patients, "confidence": 0.95}
    return Comparison(**fields, runs=(run,), note="")  # type: ignore[arg-type]


def test_a_change_within_the_plan_may_be_made() -> None:
    changed = study(training={"epochs": 5}, evaluation={"operating_point": "sensitivity", "target": 0.5})
    assert outside(PLAN, study(), changed, compared()) == []


def test_a_setting_that_may_not_change_is_named() -> None:
    (fault,) = outside(PLAN, study(), study(model={"depth": 50}), compared())
    assert fault == "model.depth changed, which the plan does not allow"
    assert outside(PLAN, study(), study(evaluation={"target": 0.4}), compared()) != []


def test_a_key_is_no_prefix_of_another_ones_name() -> None:
    plan = PLAN.model_copy(update={"may_change": ["evaluation.operating"]})
    assert outside(plan, study(), study(evaluation={"operating_point": "fixed"}), compared()) != []


@pytest.mark.parametrize(("low", "expected"), [(-0.02, 0), (-0.0201, 1), (-0.06, 2), (None, 2)])
def test_the_whole_interval_must_keep_the_margin(low: float | None, expected: int) -> None:
    faults = outside(PLAN, study(), study(), compared(low))
    assert len(faults) == expected, faults
    assert all("the plan allows a loss of" in fault for fault in faults)


def test_each_site_and_the_number_of_patients_count() -> None:
    (fault,) = outside(PLAN, study(), study(), compared(site=-0.11))
    assert fault.startswith("auc at north")
    assert outside(PLAN, study(), study(), compared(patients=49)) == [
        "49 test patients are shared; the plan asks for 50"
    ]
    assert outside(PLAN, study(), study(), compared(patients=50)) == []
    assert outside(PLAN, study(), study(), None) == ["it is not compared with the champion"]


def test_settings_are_compared_one_by_one() -> None:
    assert changed_settings(study(), study()) == set()
    assert changed_settings(study(seed=1), study(training={"optimizer": {"lr": 0.1}})) == {
        *("seed", "training.optimizer.lr"),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: x\n", "may_change"),
        ("model: x\nmay_change: []\nmargins: {accuracy: 0.1}\n", "margins"),
        ("model: x\nmay_change: []\nmargins: {auc: 2}\n", "margins.auc"),
        ("model: [\n", "is not YAML"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused_with_the_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_plan(tmp_path / "plan.yaml")


def test_the_record_is_a_chain_and_a_changed_line_stops_the_next_one(tmp_path: Path) -> None:
    first = record_decision(tmp_path, "refused", model="lesions", version="2", because=["auc"])
    second = record_decision(tmp_path, "promoted", model="lesions", version="3")
    lines = (tmp_path / RECORD).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["refused", "promoted"]
    assert json.loads(lines[1])["before"] == first != second
    (tmp_path / RECORD).write_text("\n".join([lines[0].replace("refused", "allowed"), lines[1]]) + "\n")
    with pytest.raises(DataError, match="line 2 does not follow"):
        record_decision(tmp_path, "promoted", model="lesions", version="4")
    assert len((tmp_path / RECORD).read_text().splitlines()) == 2


TRIAL_PLAN = PLAN.model_copy(update={"shadow": ShadowDemand(patients=40, agreement=0.9, declined=0.02)})


def trial(
    agreement: float | None = 0.93, declined: float = 0.01, patients: int = 50, failed: int = 0,
    truth: Comparison | None = None,
) -> ShadowReport:  # fmt: skip
    """A report whose agreement begins, and whose growth of declined scans ends, at these figures."""
    share = Estimate(0.0, -0.01, declined, 60)
    figures = TrialFigures(
        scans=60, patients=patients, agreement=Estimate(0.97, agreement, 0.99, 60), findings={},
        declined=PairedShare(present=share, candidate=share, difference=share),
    )  # fmt: skip
    name = ReleaseName(digest="0" * 64, study="lesions", created="2026-01-01")
    return ShadowReport(
        node="A", present=name, candidate=name, since="", until="", confidence=0.95, reasons={}, unpaired=0,
        studies={"waiting": 5, "compared": 60 - failed, "failed": failed, "skipped": 0}, overall=figures, sites={},
        devices={}, changed=(), cost={}, truth=truth,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (trial(), ""),
        (None, "asks for a shadow trial"),
        (trial(patients=39), "39 patients; the plan asks for 40"),
        (trial(agreement=0.89), "of decisions agree; the plan asks for 0.9"),
        (trial(agreement=None), "of decisions agree"),
        (trial(declined=0.021), "the declined share grows by"),
        (trial(failed=4), "4 of 60 studies have no answer"),
    ],
)
def test_a_plan_may_demand_a_shadow_trial(report: ShadowReport | None, words: str) -> None:
    faults = outside_trial(TRIAL_PLAN, report)
    assert [words in fault for fault in faults] == ([True] if words else [])
    assert outside_trial(PLAN, report) == []


def test_a_plan_may_demand_true_figures_of_the_trial() -> None:
    demand = ShadowDemand(patients=40, margins={"sensitivity": 0.05})
    plan = PLAN.model_copy(update={"shadow": demand})
    assert "no label" in outside_trial(plan, trial())[0]
    assert outside_trial(plan, trial(truth=compared(low=-0.04))) == []
    assert "sensitivity in the shadow trial" in outside_trial(plan, trial(truth=compared(low=-0.06)))[0]
