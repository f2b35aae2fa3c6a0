"""Runs and releases of version 0.1.0 are read unchanged, and give the answers and figures that they gave."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
from clinic_fixtures import call
from version_0_1_0 import OldRun

from medopt.release.predictor import Release


def test_the_release_verifies_and_no_byte_of_it_changes(old_run: OldRun) -> None:
    def digests() -> dict[str, str]:
        files = (path for path in old_run.release.rglob("*") if path.is_file())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = digests()
    done = call("verify", old_run.release)
    assert done.code == 0, done.stderr
    assert digests() == before


# int8 arithmetic differs a little between processors; a release's own golden cases allow as much.
@pytest.mark.parametrize(("model", "tolerance"), [("float", 1e-5), ("int8", 0.02)])
def test_predict_gives_the_recorded_probabilities(
    old_run: OldRun, tmp_path: Path, model: str, tolerance: float
) -> None:
    recorded = old_run.probabilities(model)
    assert len(recorded) == 36 and max(recorded.values()) - min(recorded.values()) > 0.5
    scans = [old_run.data / "scans" / name for name in recorded]
    done = call("predict", old_run.release, *scans, "--model", model, "--out", tmp_path / "answers.csv")
    assert done.code == 0, done.stderr
    with (tmp_path / "answers.csv").open(newline="") as stream:
        answers = {Path(row["path"]).name: float(row["probability_blob"]) for row in csv.DictReader(stream)}
    assert answers == pytest.approx(recorded, abs=tolerance)


def test_its_chain_has_the_fingerprint_of_then(old_run: OldRun) -> None:
    predictor = Release.open(old_run.release)
    assert predictor.chain.fingerprint == "499f3f147d03c41619c3a24b4652dd1f608f1c96c3dfac554918f1677c058316"


def test_the_report_is_written_anew(old_run: OldRun) -> None:
    done = call("report", old_run.folder)
    assert done.code == 0, done.stderr
    page = (old_run.folder / "report.html").read_text()
    assert "Is there a bright blob?" in page and f"{old_run.metrics['test']['int8']['brier']['value']:.3f}" in page


def test_the_figures_are_computed_again(old_run: OldRun) -> None:
    done = call("evaluate", old_run.folder)
    assert done.code == 0, done.stderr
    for model in ("float", "int8"):
        for figure in ("auc", "brier", "ece"):
            assert f"{old_run.metrics['test'][model][figure]['value']:.3f}" in done.stdout, (model, figure)


def test_it_is_compared_with_itself_and_differs_by_nothing(old_run: OldRun) -> None:
    done = call("compare", old_run.folder, old_run.folder, "--out", old_run.runs / "compared.html")
    assert done.code == 0, done.stderr
    assert "+0.000" in done.stdout and "-0.0" not in done.stdout
    assert (old_run.runs / "compared.html").is_file()


def test_the_run_goes_on_and_trains_nothing_again(old_run: OldRun) -> None:
    """It was keyed by the whole study; it is found by what its training reads, under another question, too."""
    words = ["run", old_run.study_file, "--data", old_run.data, "--runs", old_run.runs, "--json"]
    words += [
        "--set",
        "question=Is there a bright spot?",
        "--set",
        "evaluation.shift_cases=0",
        "--set",
        "evaluation.explain=0",
    ]
    planned = call(*words, "--dry-run").summary["plan"]
    assert (planned["folder"], planned["stages"]["train"], planned["stages"]["judge"]) == (
        str(old_run.folder),
        "done",
        "to do",
    )
    weights = (old_run.folder / "checkpoints" / "best.safetensors").read_bytes()
    done = call(*words)
    assert done.code == 0, done.stderr
    assert "train      unchanged, skipped" in done.stderr and "  epoch " not in done.stderr
    assert done.summary["folder"] == str(old_run.folder)
    assert (old_run.folder / "checkpoints" / "best.safetensors").read_bytes() == weights
    assert done.summary["test"]["float"]["auc"]["value"] == old_run.metrics["test"]["float"]["auc"]["value"]
    assert not (old_run.folder / "robustness.json").exists()  # the study does not ask for it any more
    assert call(*words, "--set", "training.epochs=1", "--dry-run").summary["plan"]["stages"]["train"] == "to do"
