"""`medopt evaluate` and `medopt compare` as a user runs them, on tables drawn here."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from clinic_fixtures import call
from results import run_metrics

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.records import Predictions
from medopt.evaluation.predictions_io import write_predictions
from medopt.evaluation.validation_fit import fit_on
from medopt.metrics.calibration import Calibration
from medopt.metrics.estimates import all_figures
from medopt.pipeline.reevaluate import EvaluatedTable, open_table


def drawn(model: str, task: str = "binary", cases: int = 160, seed: int = 0, noise: float = 1.0) -> Predictions:
    """Validation and test cases of two sites, two images a patient; the same cases whatever the noise."""
    labels = np.random.default_rng(seed).integers(0, 2 if task == "binary" else 3, cases // 2).repeat(2)
    blur = np.random.default_rng((seed, sum(map(ord, model)))).normal(scale=noise, size=(cases, 1))
    logits = 1.5 * labels[:, None] - 1 + blur
    if task == "multiclass":
        logits = np.eye(3)[labels] + np.random.default_rng(seed).normal(size=(cases, 3))
    return Predictions(
        model,
        np.array([f"case{row:04d}" for row in range(cases)]),
        np.array([f"patient{row // 2:04d}" for row in range(cases)]),
        np.array(["north", "south"]).repeat(2)[np.arange(cases) % 4],
        np.where(np.arange(cases) < cases // 2, "val", "test"),
        labels,
        logits,
        {"sex": np.array(["F", "M"]).repeat(4)[np.arange(cases) % 8]},
    )


def folder(path: Path, *tables: Predictions, task: str = "binary", **evaluation: object) -> Path:
    labels = ["benign", "malignant"] if task == "binary" else ["a", "b", "c"]
    write_predictions(path / "predictions.csv", tables, labels, task, {t.model: Calibration() for t in tables})  # type: ignore[arg-type]
    study = {
        "name": "s",
        "question": "?",
        "data": {"manifest": "m.csv", "labels": labels, "task": task},
        "prepare": {"size": [32, 32]},
        "evaluation": {"bootstrap": 200, **evaluation},
    }
    (path / "study.yaml").write_text(yaml.safe_dump(study))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folder(tmp_path / "first", drawn("float"), drawn("int8"))


def test_figures_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    done = call("evaluate", run, "--out", tmp_path / "e.json", "--figures", tmp_path / "figures")
    assert done.code == 0, done.stderr
    told = json.loads((tmp_path / "e.json").read_text())
    study: Study = load_study(run / "study.yaml")
    table = drawn("int8")
    fitted = replace(fit_on(table.of_split("val"), study.evaluation, "binary"), predictions=table.of_split("test"))
    expected = all_figures(fitted, bootstrap=200, confidence=0.95, seed=0)
    written = EvaluatedTable.model_validate(told).models["int8"]
    assert written.figures == expected and written.operating_point == fitted.operating_point
    assert "80 images of the test split" in done.stdout and "sex: F" in done.stdout
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        *("roc", "reliability", "confusion", "precision_recall"),
        *("decision_curve", "coverage_risk", "subgroups"),
    }
    assert "patient0" not in done.stdout + (tmp_path / "e.json").read_text()


def test_patients_prevalence_and_one_model(run: Path, tmp_path: Path) -> None:
    words = ("--level", "patient", "--aggregate", "max", "--prevalence", "0.05", "--model", "float")
    done = call("evaluate", run / "predictions.csv", *words, "--out", tmp_path / "e.json")
    assert done.code == 0, done.stderr
    told = json.loads((tmp_path / "e.json").read_text())
    assert list(told["models"]) == ["float"] and told["models"]["float"]["figures"]["auc"]["n"] == 40
    assert told["models"]["float"]["net_benefit"]["malignant"]["prevalence"] == 0.05
    assert "40 patients (max of their images' logits)" in done.stdout
    assert "PPV, NPV: at a prevalence of 0.05" in done.stdout


def test_a_table_alone_says_what_it_lacks(tmp_path: Path) -> None:
    place = folder(tmp_path / "alone", drawn("m").of_split("test"))
    (place / "study.yaml").unlink()
    done = call("evaluate", place / "predictions.csv")
    assert done.code == 0, done.stderr
    assert "m: no validation rows: probabilities are those of the network, and the threshold is 0.5" in done.stdout


def test_multiclass_tables(tmp_path: Path) -> None:
    place = folder(tmp_path / "three", drawn("m", "multiclass"), task="multiclass")
    done = call("evaluate", place)
    assert done.code == 0 and "net benefit, b" in done.stdout, done.stderr
    call("evaluate", place, "--prevalence", 0.1).refused(2, "--prevalence is the share of one finding")


def test_refusals(run: Path, tmp_path: Path) -> None:
    call("evaluate", tmp_path / "none.csv").refused(3, "There is no run folder or prediction table")
    call("evaluate", run, "--split", "train").refused(3, "has no rows of the train split")
    call("evaluate", run, "--split", "holdout").refused(2, "Invalid value for '--split'")
    call("evaluate", run, "--level", "lesion").refused(2, "Invalid value for '--level'")
    call("evaluate", run, "--model", "int4").refused(3, "has no model int4; it has float, int8")
    call("evaluate", run, "--prevalence", 1.5).refused(2, "The settings cannot be used")
    other = folder(tmp_path / "three", drawn("m", "multiclass"), task="multiclass")
    call("evaluate", run, "--study", other / "study.yaml").refused(2, "Give the study that it belongs to with --study")
    call("compare", run, other).refused(3, "do not answer the same question")


def test_runs_are_compared_on_shared_cases(run: Path, tmp_path: Path) -> None:
    better = folder(tmp_path / "second", drawn("float", noise=0.3), drawn("int8", noise=0.3))
    pages = ["--out", tmp_path / "c.png", "--out", tmp_path / "c.html"]
    done = call("compare", run, better, *pages, "--out", tmp_path / "c.json")
    assert done.code == 0, done.stderr
    told = json.loads((tmp_path / "c.json").read_text())
    assert (told["reference"], told["runs"][0]["name"], told["cases"], told["patients"]) == ("first", "second", 80, 40)
    assert told["runs"][0]["figures"]["auc"]["difference"]["low"] > 0 and told["runs"][0]["figures"]["auc"]["p"] < 0.01
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "at north" in done.stdout and "second" in done.stdout


def test_the_page_of_a_comparison_holds_its_figures_and_picture(run: Path, tmp_path: Path) -> None:
    call("compare", run, "--out", tmp_path / "c.html", "--out", tmp_path / "c.json")
    page, found = (tmp_path / "c.html").read_text(), json.loads((tmp_path / "c.json").read_text())
    for one in found["runs"][0]["figures"].values():
        assert f"{one['value']:.3f}" in page and f"{one['difference']['value']:+.3f}" in page
    assert "<svg " in page and "http" not in page


def test_one_runs_models_are_compared(run: Path) -> None:
    done = call("compare", run)
    assert done.code == 0 and "first int8" in done.stdout, done.stderr
    call("compare", run, "--model", "int8").refused(2, "There is nothing to compare")


def test_unshared_cases_need_to_be_asked_for(run: Path, tmp_path: Path) -> None:
    rows = list(csv.reader((run / "predictions.csv").open(newline="")))
    (tmp_path / "fewer").mkdir()
    with (tmp_path / "fewer" / "predictions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(row for row in rows if not row[2].endswith("9"))
    call("compare", run, tmp_path / "fewer").refused(3, "first 80, fewer 72, and 72 are shared by all", "--shared")
    done = call("compare", run, tmp_path / "fewer", "--shared")
    assert done.code == 0 and "72 cases" in done.stdout


def test_the_known_shift_of_a_run_is_for_its_own_table_alone(run: Path) -> None:
    """A group's `metrics.json` beside its table out of fold has no shift, and its logits are calibrated already."""
    run_metrics(prior_shift=(2.0,)).write(run / "metrics.json")
    assert open_table(run).shift == (2.0,)
    (run / "out_of_fold.csv").write_bytes((run / "predictions.csv").read_bytes())
    (run / "metrics.json").write_text("{}")
    assert open_table(run / "out_of_fold.csv").shift == ()
