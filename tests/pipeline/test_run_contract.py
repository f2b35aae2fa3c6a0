"""What a finished run leaves: the contract that tests, benchmarks and other tools rely on."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from clinic import STAGES, Clinic
from clinic_fixtures import Done, Finished, call, only_folder, run_words

from medopt.config import Study
from medopt.config.study_file import load_study
from medopt.core.privacy import pseudonym
from medopt.evaluation.predictions_io import read_predictions
from medopt.metrics.figures import METRICS


def test_runs_go_to_study_time_and_short_hash(finished: Finished) -> None:
    assert finished.folder.parent == finished.runs / "clinic"
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", finished.folder.name)


def test_run_folder_holds_what_the_contract_names(finished: Finished) -> None:
    found = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.png" for name in ("learning_curves", "roc", "reliability", "confusion")}
    release = {"release.json", "SHA256SUMS", "CARD.md", "golden.json", "model.int8.onnx", "model.float.onnx"}
    assert {"study.yaml", "manifest.csv", "predictions.csv", "metrics.json", "checkpoints/best.safetensors"} <= found
    assert {"shift_predictions.csv", "robustness.json", "figures/robustness.png"} <= found
    assert {"explanations.json", "figures/explain/cases.png", "domain.json", "models/domain.json"} <= found
    assert figures <= found
    assert {f"release/{name}" for name in release} <= found
    assert not [name for name in found if name.endswith(".part")]
    assert all((finished.folder / name).read_bytes()[:4] == b"\x89PNG" for name in figures)


def test_study_yaml_is_the_resolved_study(finished: Finished) -> None:
    assert load_study(finished.folder / "study.yaml") == load_study(finished.clinic.study_file)
    resolved = yaml.safe_load((finished.folder / "study.yaml").read_text())
    assert resolved["training"]["patience"] == 60  # a default is written out


def test_manifest_has_the_splits_under_pseudonyms(finished: Finished) -> None:
    with (finished.folder / "manifest.csv").open(newline="") as stream:
        rows = {row["image"]: row for row in csv.DictReader(stream)}
    given = finished.clinic.rows()
    assert len(rows) == len(given) == 72
    for row in given:
        found = rows[row["image"]]
        assert (found["split"], found["site"], found["label"]) == (row["split"], row["site"], row["label"])
        assert found["patient_id"] == pseudonym(row["patient_id"])


def test_predictions_hold_both_models_on_validation_and_test_and_no_training_case(finished: Finished) -> None:
    tables = read_predictions(finished.folder / "predictions.csv")
    assert [table.model for table in tables] == ["float", "int8"]
    for table in tables:
        assert {split: int((table.split == split).sum()) for split in ("train", "val", "test")} == {
            "train": 0,
            "val": 18,
            "test": 18,
        }
        assert len(set(table.case_id)) == 36


def test_robustness_is_of_whole_patients_of_the_test_split_and_starts_from_the_clean_predictions(
    finished: Finished,
) -> None:
    clean = {table.model: table.of_split("test") for table in read_predictions(finished.folder / "predictions.csv")}
    tables = {table.model: table for table in read_predictions(finished.folder / "shift_predictions.csv")}
    assert len(tables) == 2 * (1 + 2 * 5)
    for kind in ("float", "int8"):
        base, found = tables[f"{kind}|clean|0"], finished.done.summary["robustness"][kind]
        rows = np.flatnonzero(np.isin(clean[kind].case_id, base.case_id))
        assert np.array_equal(base.logits, clean[kind].where(rows).logits)
        assert len(base) == 12 == 2 * len(set(base.patient_id)) == found["clean"]["n"]
        assert not np.array_equal(tables[f"{kind}|noise|5"].logits, base.logits)
        assert set(found["families"]) == {"noise", "compression"}
        assert found["mean"]["value"] == pytest.approx(found["clean"]["value"] - found["drop"]["value"])


def test_explained_cases_are_of_the_test_split_and_the_sanity_check_is_told(finished: Finished) -> None:
    found = json.loads((finished.folder / "explanations.json").read_text())
    assert found == finished.done.summary["explanations"]
    test = next(iter(read_predictions(finished.folder / "predictions.csv"))).of_split("test")
    shown = [case["case_id"] for case in found["cases"]]
    assert len(shown) == len(set(shown)) == 9  # one image of each of nine patients
    assert set(shown) <= set(test.case_id)
    assert {case["why"] for case in found["cases"]} >= {"drawn at random"}
    assert "the learned weights" in found["sanity"]["said"]


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("model", ["float", "int8"])
def test_metrics_are_values_with_intervals_and_counts(finished: Finished, split: str, model: str) -> None:
    figures = finished.metrics[split][model]
    assert list(figures) == list(METRICS)
    for name, figure in figures.items():
        assert {"value", "low", "high", "n"} <= set(figure) <= {"value", "low", "high", "n", "note"}, name
        assert figure["n"] == 18
        if figure["low"] is not None:
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert figures["auc"]["value"] > 0.7  # the blob can be seen


def test_metrics_have_the_gate_latency_size_and_run(finished: Finished) -> None:
    metrics = finished.metrics
    assert metrics["gate"]["passed"] is True
    assert metrics["gate"]["reasons"] == []
    assert {"auc_float", "auc_int8", "limits", "engines", "engine"} <= set(metrics["gate"]["figures"])
    kinds = {"torch_float", "onnxruntime_float", "onnxruntime_int8", "openvino_float", "openvino_int8"}
    assert set(metrics["latency_ms"]) == kinds
    assert all(value > 0 for value in metrics["latency_ms"].values())
    for kind in ("float", "int8"):
        assert metrics["size_bytes"][kind] == (finished.release / f"model.{kind}.onnx").stat().st_size
    assert re.fullmatch("[0-9a-f]{32}", metrics["mlflow_run_id"])
    assert set(metrics["sites"]) == {"harbour", "hill", "valley"}
    assert sum(site["int8"]["auc"]["n"] for site in metrics["sites"].values()) == 18


def test_figures_can_be_computed_again_from_the_predictions(finished: Finished) -> None:
    table = next(t for t in read_predictions(finished.folder / "predictions.csv") if t.model == "int8")
    test = table.of_split("test")
    positive, negative = test.logits[test.labels == 1, 0], test.logits[test.labels == 0, 0]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert finished.metrics["test"]["int8"]["auc"]["value"] == pytest.approx(wins / (len(positive) * len(negative)))


def test_last_line_of_json_is_the_summary(finished: Finished) -> None:
    summary = finished.done.summary
    assert finished.metrics.items() <= summary.items()
    assert summary["folder"] == str(finished.folder)
    assert summary["mlflow_link"].endswith(f"/runs/{finished.metrics['mlflow_run_id']}?workflowType=machine_learning")
    assert list(summary["stages"]) == list(STAGES)


def test_the_table_and_the_next_commands(finished: Finished) -> None:
    text = finished.done.stdout
    assert "clinic, seed 0: 18 cases of the test split (95 % interval)" in text
    for row in ("auc ", "auc at harbour", "time for an image", "size"):
        assert f"│ {row}" in text
    for command in (f"medopt verify {finished.release}", f"medopt predict {finished.release} PATH", "medopt ui --runs"):
        assert command in text
    assert [line.split()[0] for line in finished.done.stderr.splitlines() if not line.startswith(" ")] == [
        "prepare",
        *STAGES,
    ]


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """The finished runs folder again, to be changed."""
    shutil.copytree(finished.runs, tmp_path / "runs")
    return Finished(finished.clinic, tmp_path / "runs", finished.done, finished.seconds)


def stage_lines(done: Done) -> dict[str, str]:
    lines = [line.split(maxsplit=1) for line in done.stderr.splitlines() if line and line[0] != " "]
    return {words[0]: " ".join(words[1:]).strip() for words in lines}


def test_the_same_command_again_skips_every_stage(copied: Finished) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copied.folder / "release").rglob("*")}
    done = call(*run_words(copied.clinic, copied.runs))
    assert done.code == 0
    assert stage_lines(done) == {"prepare": ""} | dict.fromkeys(STAGES, "unchanged, skipped")
    assert done.summary["mlflow_run_id"] == copied.metrics["mlflow_run_id"]
    assert {path: path.stat().st_mtime_ns for path in (copied.folder / "release").rglob("*")} == before


def test_what_was_damaged_or_deleted_is_made_again(copied: Finished) -> None:
    """A changed release is built anew; a run deleted in MLflow becomes a new one, which all records then name."""
    from mlflow import MlflowClient

    client, old = MlflowClient(copied.store), copied.metrics
    client.delete_run(old["mlflow_run_id"])
    (copied.release / "model.int8.onnx").write_bytes(b"damaged")
    (copied.folder / "figures" / "roc.png").unlink()
    done = call(*run_words(copied.clinic, copied.runs))
    assert done.code == 0
    stages = stage_lines(done)
    redone = [stage for stage in STAGES if "skipped" not in stages[stage]]
    assert redone == ["evaluate", "release", "report", "record"]
    new = copied.metrics
    assert new["mlflow_run_id"] != old["mlflow_run_id"]
    assert new["test"] == old["test"]
    assert (
        json.loads((copied.release / "release.json").read_text())["provenance"]["mlflow_run_id"]
        == (new["mlflow_run_id"])
    )
    assert [m.step for m in client.get_metric_history(new["mlflow_run_id"], "curves/loss_train")] == [1, 2, 3, 4]
    assert call("verify", copied.release).code == 0


def test_dry_run_shows_study_and_plan_and_writes_nothing(clinic: Clinic, tmp_path: Path) -> None:
    words = ["run", clinic.study_file, "--data", clinic.data, "--runs", tmp_path / "runs", "--dry-run"]
    done = call(*words, "--set", "training.epochs=7")
    assert done.code == 0
    study, plan = (yaml.safe_load(part) for part in done.stdout.split("# the plan"))
    assert Study.model_validate(study).training.epochs == 7
    assert plan["cases"] == {"train": 36, "val": 18, "test": 18}
    assert plan["stages"] == dict.fromkeys(STAGES, "to do")
    assert list(tmp_path.iterdir()) == []
    as_json: dict[str, Any] = call(*words, "--json").summary
    assert as_json["plan"]["cases"] == plan["cases"]


def test_dry_run_knows_what_is_done(finished: Finished) -> None:
    done = call(*run_words(finished.clinic, finished.runs), "--dry-run")
    plan = done.summary["plan"]
    assert plan["folder"] == str(only_folder(finished.runs, "clinic"))
    assert plan["stages"] == dict.fromkeys(STAGES, "done")


def test_data_option_goes_before_variable_before_folder(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = ["run", clinic.study_file, "--dry-run"]
    monkeypatch.delenv("MEDOPT_DATA", raising=False)
    call(*plan).refused(2, "manifest of study clinic is not there", "data/manifest.csv")
    (tmp_path / "data").symlink_to(clinic.data)
    assert call(*plan).code == 0
    monkeypatch.setenv("MEDOPT_DATA", str(tmp_path / "elsewhere"))
    call(*plan).refused(2, "elsewhere/manifest.csv", "--data DIR or MEDOPT_DATA")
    assert call(*plan, "--data", clinic.data).code == 0
