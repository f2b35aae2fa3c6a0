"""`medopt performance`: expected figures of answers in service, and the true ones beside them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from clinic_fixtures import Finished, call


@pytest.fixture(scope="module")
def answers(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("service") / "march.csv"
    assert call("predict", finished.release, finished.clinic.data / "scans", "--out", path).code == 0
    return path


def told(path: Path, answers: Path, labels: dict[str, str]) -> Path:
    """Labels of those scans, by the number in their names."""
    with answers.open(newline="") as stream:
        paths = [row["path"] for row in csv.DictReader(stream)]
    rows = [f"{each},{labels[Path(each).stem]}" for each in paths if Path(each).stem in labels]
    path.write_text("\n".join(["path,label", *rows]) + "\n")
    return path


def test_figures_are_expected_without_labels(finished: Finished, answers: Path) -> None:
    done = call("performance", finished.release, answers, "--json")
    assert done.code == 0, done.stderr
    blob = done.summary["findings"]["blob"]
    assert done.summary["scans"] == 72 and "clear" not in done.summary["findings"]
    for name in ("auc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "prevalence"):
        one = blob["expected"][name]
        assert one["low"] <= one["value"] <= one["high"], name
    assert abs(blob["expected"]["prevalence"]["value"] - 0.5) < 0.35  # of a model of four epochs
    assert blob["validation"]["auc"] == finished.metrics["test"]["int8"]["auc"]


def test_labels_that_arrive_give_the_true_figures(finished: Finished, answers: Path, tmp_path: Path) -> None:
    truth = {f"{at:03d}": ("clear", "blob")[at % 2] for at in range(40)}
    done = call(
        "performance", finished.release, answers, "--labels", told(tmp_path / "l.csv", answers, truth), "--json"
    )
    assert done.code == 0, done.stderr
    blob = done.summary["findings"]["blob"]
    with answers.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if Path(row["path"]).stem in truth and row["decision"]]
    positives = [row for row in rows if truth[Path(row["path"]).stem] == "blob"]
    assert blob["labelled"] == len(rows)
    assert blob["true"]["sensitivity"]["value"] == pytest.approx(
        sum(row["decision"] == "blob" for row in positives) / len(positives)
    )
    assert "true of these" in done.stdout


def test_labels_that_contradict_are_said(finished: Finished, answers: Path, tmp_path: Path) -> None:
    swapped = {f"{at:03d}": ("blob", "clear")[at % 2] for at in range(72)}
    done = call("performance", finished.release, answers, "--labels", told(tmp_path / "l.csv", answers, swapped))
    assert done.code == 0, done.stderr
    assert "do not rely on the expected figures: the labels that have arrived contradict" in done.stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,label\na,blob\n", "has no column path"),
        ("path,label\nelsewhere.dcm,blob\n", "no path in it is one of the answers"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    finished: Finished, answers: Path, tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "l.csv").write_text(text)
    call("performance", finished.release, answers, "--labels", tmp_path / "l.csv").refused(3, words)


def test_a_strange_label_is_named_by_its_row(finished: Finished, answers: Path, tmp_path: Path) -> None:
    labels = told(tmp_path / "l.csv", answers, {"000": "blob", "001": "tumour"})
    call("performance", finished.release, answers, "--labels", labels).refused(3, "row 3", "clear, blob")
