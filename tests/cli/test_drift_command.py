"""Drift from the command line: scans predicted by a release, held against what its validation was."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from clinic_fixtures import Finished, call

from medopt.release.drift_reference import Reference
from medopt.release.layout import read_info
from medopt.release.predictor import Release
from medopt.serving.batch import find_scans, predict_scans
from medopt.serving.prediction_table import observed, read_observed, write_answers


@pytest.fixture(scope="module")
def answers(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the release answers on all the clinic's scans."""
    predictor = Release.open(finished.release, threads=1)
    path = tmp_path_factory.mktemp("service") / "month.csv"
    write_answers(path, predict_scans(predictor, find_scans([finished.clinic.data / "scans"], 2)), ["clear", "blob"])
    return path


def test_a_month_like_validation_shows_no_drift(finished: Finished, answers: Path, tmp_path: Path) -> None:
    done = call("drift", finished.release, answers, "--out", tmp_path / "drift.html", "--json")
    assert done.code == 0, done.stderr
    found = {one["name"]: one for one in done.summary["columns"]}
    assert {"probability of blob", "content distance", "texture distance", "outcome", "image size"} <= set(found)
    assert found["probability of blob"]["verdict"] != "drifted"
    page = (tmp_path / "drift.html").read_text()
    assert "service against validation" in page and "http" not in page


def test_a_month_of_sure_answers_is_drift(finished: Finished, answers: Path, tmp_path: Path) -> None:
    with answers.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row |= {"probability_clear": "0.001", "probability_blob": "0.999", "decision": "blob", "declined": ""}
    changed = tmp_path / "changed.csv"
    with changed.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = call("drift", finished.release, changed, "--out", tmp_path / "drift.html", "--json")
    verdicts = {one["name"]: one["verdict"] for one in done.summary["columns"]}
    assert verdicts["probability of blob"] == "drifted"
    assert "drifted" in (tmp_path / "drift.html").read_text()


def test_a_table_of_something_else_is_refused(finished: Finished, tmp_path: Path) -> None:
    done = call("drift", finished.release, finished.folder / "predictions.csv", "--out", tmp_path / "drift.html")
    assert done.code == 3 and "not a table of this release's answers" in done.stderr
    assert not (tmp_path / "drift.html").exists()


def test_rows_at_hand_and_rows_read_back_say_the_same(finished: Finished, answers: Path) -> None:
    predictor = Release.open(finished.release, threads=1)
    labels = read_info(finished.release).labels
    rows = list(predict_scans(predictor, find_scans([finished.clinic.data / "scans"], 2)[:5]))
    now, (count, written) = observed(rows, labels), read_observed(answers, labels)
    assert count > 5
    assert {name: list(values[:5]) for name, values in written.groups.items()} == now.groups
    for name, values in now.numbers.items():
        assert values == pytest.approx(written.numbers[name][:5], nan_ok=True)


def test_the_release_carries_aggregates_of_validation_only(finished: Finished) -> None:
    reference, metrics = Reference.read(finished.release), finished.metrics
    assert reference.scans == metrics["validation"]["int8"]["auc"]["n"]
    text = json.dumps(reference.model_dump())
    assert not any(case["case_id"] in text for case in csv.DictReader((finished.folder / "manifest.csv").open()))
