"""`medopt compress`: a run's network in several sizes, and a release of the one that the rule picks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from clinic import STUDY, write_study
from clinic_fixtures import Finished, call, only_folder
from mlflow import MlflowClient

QUICK = {
    "name": "narrow",
    "training": STUDY["training"] | {"epochs": 2},
    "evaluation": {"bootstrap": 100, "shift_cases": 0, "explain": 0},
    "domain": {"enabled": False},
    "compression": STUDY["compression"] | {"engines": ["onnxruntime"], "pruning": {"epochs": 6, "steps": 1}},
}


@pytest.fixture(scope="module")
def compressed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The runs folder, a run's folder, and the data: `medopt compress` has been through."""
    place = tmp_path_factory.mktemp("front")
    runs = place / "runs"
    study = write_study(place, STUDY | QUICK)
    assert call("run", study, "--data", finished.clinic.data, "--runs", runs).code == 0
    folder = only_folder(runs, "narrow")
    words = (folder, "--data", finished.clinic.data, "--prune", "0.5", "--precision", "int8,float16", "--within", "1")
    done = call("compress", *words, "--json")
    assert done.code == 0, done.stderr
    assert "options on" in done.stdout and "chosen" in done.stdout
    return runs, folder, finished.clinic.data


def test_every_option_is_told_with_its_interval_and_one_is_released(compressed: tuple[Path, Path, Path]) -> None:
    _, folder, _ = compressed
    place = folder / "compressed"
    front = json.loads((place / "front.json").read_text())
    names = [one["name"] for one in front["options"]]
    assert names == ["whole, float32", "whole, int8", "whole, float16", "50% pruned, int8", "50% pruned, float16"]
    whole, half = front["options"][1], front["options"][3]
    assert half["multiply_adds"] <= 0.5 * whole["multiply_adds"] and half["size_bytes"] < whole["size_bytes"]
    assert all({"value", "low", "high"} <= one["auc"].keys() for one in front["options"])
    assert front["chosen"] in names and "int8" in front["chosen"]
    assert call("verify", place / "release").code == 0
    metrics = json.loads((place / "metrics.json").read_text())
    assert f"chosen of {len(names)} options" in metrics["data_notes"][0]
    assert "Chosen of these options" in (place / "report.html").read_text()


def test_the_cases_are_those_of_the_run(compressed: tuple[Path, Path, Path]) -> None:
    _, folder, _ = compressed
    assert call("compare", folder, folder / "compressed").code == 0


def test_the_options_are_runs_below_it_in_mlflow(compressed: tuple[Path, Path, Path]) -> None:
    runs, folder, _ = compressed
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    mine, own = (
        json.loads((path / "run.json").read_text())["mlflow_run_id"] for path in (folder, folder / "compressed")
    )
    experiment = client.get_experiment_by_name("narrow")
    tags = {run.info.run_id: run.data.tags for run in client.search_runs([experiment.experiment_id])}
    assert tags[own]["mlflow.parentRunId"] == mine
    options = [one for one in tags.values() if one.get("mlflow.parentRunId") == own]
    assert len(options) == 5 and sum(one["chosen"] == "True" for one in options) == 1


def test_the_same_command_does_nothing_again(compressed: tuple[Path, Path, Path]) -> None:
    _, folder, data = compressed
    words = (folder, "--data", data, "--prune", "0.5", "--precision", "int8,float16", "--within", "1")
    again = call("compress", *words)
    lines = [line.rstrip() for line in again.stderr.splitlines()]
    for stage in ("pruned-1", "front", "record-front", "compress", "judge", "evaluate", "release"):
        assert any(line.startswith(stage) and line.endswith("unchanged, skipped") for line in lines), (stage, lines)


def test_where_nothing_is_allowed_it_says_why_of_each(compressed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    runs, folder, data = compressed
    copy = tmp_path / "runs" / "narrow" / folder.name
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("compressed"))
    shutil.copytree(runs / "cache", tmp_path / "runs" / "cache")
    strict = copy / "study.yaml"
    text = strict.read_text().replace("max_size_ratio: 1.0", "max_size_ratio: 0.01")
    strict.write_text(text.replace("max_decision_flips: 1.0", "max_decision_flips: 0.3"))  # too few of 9 cases
    done = call("compress", copy, "--data", data, "--prune", "")
    said = ("No option of narrow", "whole, int8: the file has", "too few cases to", "compression.gate.flips_bound")
    done.refused(5, "ReleaseRefused", *said, "--within")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--prune", "1.5"), "--prune takes shares from 0 to below 1"),
        (("--prune", "half"), "--prune takes numbers with commas"),
        (("--precision", "int4"), "--precision takes float32, float16, int8-weights, int4-weights, int8; got int4"),
        (("--precision", "float16"), "--precision must name int8"),
        (("--choose", "best"), "Invalid value for '--choose'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    compressed: tuple[Path, Path, Path], words: tuple[str, str], told: str
) -> None:
    call("compress", compressed[1], *words).refused(2, told)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    call("compress", tmp_path).refused(2, "ConfigError", "is not the folder of a run that has been trained")
