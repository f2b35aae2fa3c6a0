"""`medopt manifest power` by the command line, and on runs that were made to follow a law."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from clinic_fixtures import Finished, call

from medopt.metrics.sample_size import Sampling, auc_width


def test_it_says_how_many_patients() -> None:
    done = call(
        "manifest", "power", "--auc", 0.9, "--sensitivity", 0.9, "--prevalence", 0.2, "--patients", 300, "--json"
    )
    assert done.code == 0, done.stderr
    by_name = {one["figure"]: one for one in done.summary["needed"]}
    count = by_name["auc"]["patients"]
    assert auc_width(0.9, count, Sampling(0.2)) <= 0.1 < auc_width(0.9, count - 1, Sampling(0.2))
    assert by_name["auc"]["widths"]["300"] == pytest.approx(auc_width(0.9, 300, Sampling(0.2)))
    assert f"AUC 0.9, 95% interval 0.1 wide: {count} patients" in done.stdout
    alike = call("manifest", "power", "--sensitivity", 0.9, "--prevalence", 0.2, "--images", 5, "--json")
    assert alike.summary["needed"][0]["patients"] == by_name["sensitivity"]["patients"]  # wholly alike: by patients
    fewer = call(
        "manifest", "power", "--sensitivity", 0.9, "--prevalence", 0.2, "--images", 5, "--correlation", 0.2, "--json"
    )
    assert fewer.summary["needed"][0]["patients"] < 0.5 * by_name["sensitivity"]["patients"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Give what you expect"),
        (["--auc", 0.9], "Give --prevalence"),
        (["--auc", 0.4, "--prevalence", 0.2], "between 0.5 and 1"),
        (["--auc", 0.9, "--prevalence", 0.2, "--images", 2, "--design-effect", 3], "at most the images of a patient"),
        (["--auc", 0.9, "--prevalence", 0.2, "--width", 2], "--width lies between"),
    ],
)
def test_what_cannot_be_answered_is_refused(words: list[object], said: str) -> None:
    call("manifest", "power", *words).refused(2, said)


def member(finished: Finished, folder: Path, patients: int, auc: float) -> Path:
    """A run with so many training patients and this test AUC."""
    folder.mkdir()
    for name in ("predictions.csv", "study.yaml"):
        shutil.copy(finished.folder / name, folder)
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    metrics["test"]["float"]["auc"] |= {"value": auc, "low": auc - 0.05, "high": min(0.99, auc + 0.04), "note": ""}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", "image", "patient_id", "site", "label", "split"])
        writer.writerows([f"c{i}", f"{i}.dcm", f"p{i}", "s", "blob", "train"] for i in range(patients))
    return folder


def test_runs_make_a_learning_curve(finished: Finished, tmp_path: Path) -> None:
    sizes = (40, 80, 160, 320)
    runs = [member(finished, tmp_path / f"run{size}", size, 0.94 - 1.2 * size**-0.5) for size in sizes]
    done = call("manifest", "power", *runs, "--patients", 1280, "--json")
    assert done.code == 0, done.stderr
    curve = done.summary["curve"]
    assert [point["patients"] for point in curve["runs"]] == list(sizes)
    predicted = curve["predicted"]["1280"]
    assert predicted["value"] == pytest.approx(0.94 - 1.2 * 1280**-0.5, abs=5e-3)
    assert predicted["low"] < predicted["value"] < predicted["high"]
    call("manifest", "power", *runs[:3]).refused(3, "A learning curve takes 4 runs")
    with (runs[0] / "predictions.csv").open() as stream:
        lines = [line for line in stream if ",test," not in line or not line.startswith("float")]
    (runs[0] / "predictions.csv").write_text("".join(lines))
    call("manifest", "power", *runs).refused(3, "was tested on other cases")
