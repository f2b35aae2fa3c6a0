"""Performance in service of several labels: none of the findings is an answer, and an undecided label is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medopt.core.errors import DataError
from medopt.core.records import Estimate
from medopt.release.drift_reference import Reference
from medopt.release.predictor import Answer
from medopt.serving.prediction_table import Row, write_answers
from medopt.serving.service_performance import service_performance

LABELS = ["edema", "mass"]
NOTHING = Reference(scans=0, numbers={}, groups={})


def info() -> Any:
    """What a release of two findings says of itself."""
    test = SimpleNamespace(auc=Estimate(0.9, 0.8, 1.0, 120))
    figures = SimpleNamespace(confidence=0.95, test=SimpleNamespace(int8=test))
    names = {"labels": LABELS, "reported_labels": LABELS, "task": "multilabel", "number": None, "study": "chest"}
    return SimpleNamespace(figures=figures, **names)


def answered(folder: Path, decisions: list[str | None]) -> Path:
    """A table of answers; None is a declined scan."""
    random, rows = np.random.default_rng(0), []
    for at, decision in enumerate(decisions):
        values = dict(zip(LABELS, random.uniform(0.05, 0.95, 2).tolist(), strict=True))
        declined = "it is blank" if decision is None else None
        rows.append(Row(f"{at}.dcm", Answer(values, decision or "", (0.0, 0.0), declined)))
    write_answers(folder / "answers.csv", rows, LABELS)
    return folder / "answers.csv"


def test_none_of_the_findings_is_an_answer_and_a_declined_scan_is_not(tmp_path: Path) -> None:
    found = service_performance(info(), NOTHING, answered(tmp_path, ["", "edema", "edema;mass", None] * 10))
    assert (found.scans, found.answered, found.undecided) == (40, 30, 0)
    assert found.findings["edema"].expected["auc"].n == 30
    assert found.is_trustworthy and found.findings["mass"].validation == {}


def test_an_undecided_label_has_no_part_in_its_own_figures_alone(tmp_path: Path) -> None:
    found = service_performance(info(), NOTHING, answered(tmp_path, ["undecided:edema;mass", "edema", ""] * 12))
    assert found.findings["edema"].expected["sensitivity"].n == 24
    assert found.findings["mass"].expected["sensitivity"].n == 36
    alone = service_performance(info(), NOTHING, answered(tmp_path, ["undecided:edema"] * 30))
    assert alone.findings["edema"].expected["auc"].value is None


def test_labels_of_some_findings_are_taken_as_they_arrive(tmp_path: Path) -> None:
    table = answered(tmp_path, ["edema", "mass"] * 20)
    labels = tmp_path / "labels.csv"
    rows = [f"{at}.dcm,{at % 2},{'' if at > 5 else 1}" for at in range(20)]
    labels.write_text("\n".join(["path,edema,mass", *rows]) + "\n")
    found = service_performance(info(), NOTHING, table, labels)
    assert (found.findings["edema"].labelled, found.findings["mass"].labelled) == (20, 6)
    true = found.findings["edema"].true
    assert true is not None and true["sensitivity"].value == 0  # edema was called where it is not
    assert any("contradict" in doubt for doubt in found.doubts)


def test_few_answers_are_doubted_and_none_are_refused(tmp_path: Path) -> None:
    assert "only 12 scans" in service_performance(info(), NOTHING, answered(tmp_path, ["edema"] * 12)).doubts[0]
    with pytest.raises(DataError, match="none of 16 scans has a decision"):
        service_performance(info(), NOTHING, answered(tmp_path, [None] * 16))
