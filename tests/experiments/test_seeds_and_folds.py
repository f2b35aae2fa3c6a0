"""Several runs of one study: members, their mean, out-of-fold predictions, an ensemble, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from clinic import STUDY, Clinic, useless_data, write_study
from clinic_fixtures import Done, call
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

from medopt.evaluation.predictions_io import read_predictions
from medopt.evaluation.run_metrics import RunMetrics

SHORT: dict[str, Any] = STUDY | {
    "training": STUDY["training"] | {"epochs": 24},
    "compression": STUDY["compression"] | {"calibration_images": 8, "engines": ["onnxruntime"]},
}


@dataclass(frozen=True, slots=True)
class Group:
    """What a command left of several runs."""

    done: Done
    words: list[object]
    runs: Path

    @property
    def summary(self) -> dict[str, Any]:
        return self.done.summary

    @property
    def folder(self) -> Path:
        return Path(self.summary["folder"])

    def children(self, client: MlflowClient) -> list[Any]:
        parent = client.get_run(self.summary["mlflow_run_id"])
        below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        return list(client.search_runs([parent.info.experiment_id], below))


def run(clinic: Clinic, folder: Path, *more: object) -> Group:
    study = write_study(folder, SHORT)
    shutil.copyfile(clinic.data / "manifest.csv", folder / "manifest.csv")
    words = ["run", study, "--data", clinic.data, "--runs", folder / "runs", "--json", *more]
    return Group(call(*words), words, folder / "runs")


@pytest.fixture(scope="module")
def seeds(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Group:
    return run(clinic, tmp_path_factory.mktemp("seeds"), "--seeds", 2, "--ensemble")


@pytest.fixture(scope="module")
def folds(clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Group:
    return run(clinic, tmp_path_factory.mktemp("folds"), "--folds", 2)


def test_mean_and_spread_are_those_of_the_members(seeds: Group) -> None:
    assert seeds.done.code == 0, seeds.done.stderr
    members = [json.loads((Path(one["folder"]) / "metrics.json").read_text()) for one in seeds.summary["members"]]
    assert [one["seed"] for one in members] == [0, 1]
    for kind in ("float", "int8"):
        for name in ("auc", "accuracy", "brier"):
            values = [one["test"][kind][name]["value"] for one in members]
            told = seeds.summary["test"][kind][name]
            assert told["values"] == pytest.approx(values)
            assert told["mean"]["value"] == pytest.approx(np.mean(values))
            assert told["sd"] == pytest.approx(np.std(values, ddof=1))
    assert "seeds 0 to 1: 18 cases of the test split" in seeds.done.stdout


def test_group_folder_has_table_figures_and_picture(seeds: Group) -> None:
    with (seeds.folder / "members.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert [row["folder"] for row in rows] == [Path(one["folder"]).name for one in seeds.summary["members"]]
    assert (seeds.folder / "figures" / "members.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((seeds.folder / "metrics.json").read_text())
    assert kept["test"] == seeds.summary["test"]
    assert "out_of_fold" not in kept


def test_mlflow_has_a_parent_with_the_mean_above_its_members(seeds: Group) -> None:
    client = MlflowClient(f"sqlite:///{seeds.runs / 'mlflow.db'}")
    parent = client.get_run(seeds.summary["mlflow_run_id"])
    assert (parent.info.status, parent.data.tags["outcome"]) == ("FINISHED", "done")
    told = seeds.summary["test"]["int8"]["auc"]
    assert parent.data.metrics["test_int8/auc"] == told["mean"]["value"]
    described = parent.data.tags["mlflow.note.content"]
    assert f"{told['mean']['value']:.3f}" in described and "| AUC |" in described
    assert parent.data.metrics["test_int8/auc_sd"] == told["sd"]
    paths = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert paths >= {"metrics.json", "members.json", "tables", "figures"}
    children = seeds.children(client)
    wanted = {one["mlflow_run_id"] for one in seeds.summary["members"]} | {seeds.summary["ensemble"]["mlflow_run_id"]}
    assert {child.info.run_id for child in children} == wanted
    assert all(child.info.status == "FINISHED" for child in children)


def test_same_command_repeats_no_member(seeds: Group) -> None:
    """The very same groups and runs, with nothing trained again."""
    again = call(*seeds.words)
    assert again.code == 0, again.stderr
    assert again.stderr.count("train      unchanged, skipped") == 2
    assert "  epoch" not in again.stderr
    assert again.summary["mlflow_run_id"] == seeds.summary["mlflow_run_id"]
    assert again.summary["test"] == seeds.summary["test"]


def test_ensemble_gives_the_mean_of_the_logits(seeds: Group, clinic: Clinic, tmp_path: Path) -> None:
    place = Path(seeds.summary["ensemble"]["folder"])
    assert place == seeds.folder / "ensemble"
    images = np.random.default_rng(0).random((3, 1, 32, 32), dtype=np.float32)
    for kind in ("float", "int8"):
        paths = [Path(one["folder"]) / "models" / f"{kind}.onnx" for one in seeds.summary["members"]]
        single = [_logits(path, images) for path in paths]
        assert _logits(place / "models" / f"{kind}.onnx", images) == pytest.approx(np.mean(single, axis=0), abs=1e-5)
    assert call("verify", place / "release").code == 0
    out = tmp_path / "predictions.csv"
    assert call("predict", place / "release", clinic.data / "scans" / "000.dcm", "--out", out).code == 0


def _logits(path: Path, images: Any) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_ensemble_is_judged_as_any_run(seeds: Group) -> None:
    found = seeds.summary["ensemble"]
    assert found["gate"]["passed"]
    assert found["test"]["int8"]["auc"]["n"] == 18
    assert found["data_notes"][0].startswith("an ensemble: the mean of the logits of 2 networks")
    assert "clinic, ensemble: 18 cases" in seeds.done.stdout


@pytest.mark.long
def test_a_useless_model_needs_a_name_as_an_ensemble_and_compressed_too(clinic: Clinic, tmp_path: Path) -> None:
    """The name holds for the ensemble, or for the compressed model, and for nothing beside it."""
    quick = {"evaluation": {"bootstrap": 100, "shift_cases": 0, "explain": 0}, "domain": {"enabled": False}}
    training = STUDY["training"] | {"epochs": 1}
    study = write_study(tmp_path, SHORT | quick | {"name": "useless", "training": training})
    data, runs = useless_data(clinic, tmp_path / "data"), tmp_path / "runs"
    words = ["run", study, "--data", data, "--runs", runs, "--seeds", 2, "--json"]
    named = ("--override", "Dr. Winter", "--reason", "for a class on leaks")
    call(*words, *named).refused(2, "ConfigError", "--override NAME is for one model")
    done = call(*words, "--ensemble")
    said = ("The ensemble of useless is not released: the model is not shown to be better than chance", "2 members")
    done.refused(5, "ReleaseRefused", *said, "--override NAME --reason TEXT.")
    ensemble = Path(done.summary["ensemble"]["folder"])
    assert not (ensemble / "release").exists()
    done = call(*words, "--ensemble", *named)
    assert done.code == 0, done.stderr
    card = (ensemble / "release" / "CARD.md").read_text()
    assert "Dr. Winter" in card and "for a class on leaks" in card and call("verify", ensemble / "release").code == 0
    members = [Path(one["folder"]) for one in done.summary["members"]]
    assert not any((member / "release").exists() for member in members)
    assert call(*words, "--ensemble").code == 0  # the name stays with the ensemble
    compress = ["compress", members[0], "--data", data, "--prune", "", "--within", "1"]
    call(*compress, "--override", "Dr. Winter").refused(2, "ConfigError", "go together")
    hint = "--override NAME --reason TEXT"
    call(*compress).refused(5, "ReleaseRefused", "the model is not shown to be better than chance", hint)
    place = members[0] / "compressed" / "release"
    assert not place.exists()
    released = call(*compress, *named)
    assert released.code == 0, released.stderr
    assert "Dr. Winter" in (place / "CARD.md").read_text() and not (members[0] / "release").exists()


@pytest.mark.long
def test_each_case_outside_test_is_predicted_out_of_fold_once(folds: Group, clinic: Clinic) -> None:
    assert folds.done.code == 0, folds.done.stderr
    tables = read_predictions(folds.folder / "out_of_fold.csv")
    assert [table.model for table in tables] == ["float", "int8"]
    assert len(tables[0]) == len(set(tables[0].case_id)) == sum(row["split"] != "test" for row in clinic.rows())
    told = folds.summary["out_of_fold"]["float"]["auc"]
    assert told["n"] == 54
    assert told["value"] == pytest.approx(roc_auc_score(tables[0].labels, tables[0].logits[:, 0]))
    assert told["low"] <= told["value"] <= told["high"]
    assert "out of fold" in folds.done.stdout
    assert "flatter" in folds.done.stdout


@pytest.mark.long
def test_no_member_trained_on_what_it_validated(folds: Group) -> None:
    val: list[str] = []
    for member in folds.summary["members"]:
        with (Path(member["folder"]) / "manifest.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        sides = {split: {row["patient_id"] for row in rows if row["split"] == split} for split in ("train", "val")}
        assert not sides["train"] & sides["val"]
        val += [row["case_id"] for row in rows if row["split"] == "val"]
    assert len(val) == len(set(val)) == 54


@pytest.mark.long
def test_logits_out_of_fold_are_the_members_calibrated_ones(folds: Group) -> None:
    found = dict(zip(*_cases(read_predictions(folds.folder / "out_of_fold.csv")[0]), strict=True))
    for member in folds.summary["members"]:
        fitted = RunMetrics.read(Path(member["folder"])).calibration.float
        table = read_predictions(Path(member["folder"]) / "predictions.csv")[0].of_split("val")
        names, logits = _cases(table)
        move = (fitted.slopes[0], fitted.biases[0]) if fitted.method == "logistic" else (1 / fitted.temperature, 0.0)
        assert [found[name] for name in names] == pytest.approx(np.array(logits) * move[0] + move[1])


def _cases(table: Any) -> tuple[list[str], list[float]]:
    return table.case_id.tolist(), table.logits[:, 0].tolist()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--seeds", "0"], ["--seeds takes 1 or more"]),
        (["--folds", "1"], ["--folds 2 or more"]),
        (["--folds", "2", "--ensemble"], ["--ensemble and --folds exclude each other", "operating point"]),
        (["--ensemble"], ["--seeds 2 or more"]),
        (["--seeds", "2", "--fresh"], ["--fresh starts one run anew"]),
        (["--on", "slurm"], ["Invalid value for '--on'", "slurm", "local"]),
        (["--folds", "2", "--set", "data.folds=3"], ["one of its folds chosen already"]),
        (["--set", "data.folds=3", "--set", "data.fold=3"], ["fold 3 is not one of 3"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    clinic: Clinic, tmp_path: Path, more: list[str], words: list[str]
) -> None:
    run(clinic, tmp_path, *more).done.refused(2, *words)
    assert not (tmp_path / "runs").exists()


def test_failure_of_all_members_is_one_error_and_fails_the_parent(clinic: Clinic, tmp_path: Path) -> None:
    wild = ["--set", "training.optimizer.lr=1e30", "--set", "training.clip_norm=0"]
    group = run(clinic, tmp_path, "--seeds", 2, *wild)
    group.done.refused(4, "2 of 2 runs ended with an error", "clinic, seed 0: ", "not a finite number")
    (folder,) = (tmp_path / "runs" / "clinic").glob("fleet-*")
    facts = json.loads((folder / "run.json").read_text())
    parent = MlflowClient(f"sqlite:///{group.runs / 'mlflow.db'}").get_run(facts["mlflow_run_id"])
    assert (facts["outcome"], parent.info.status) == ("TrainingError", "FAILED")


def test_prepare_fills_the_cache_that_a_run_finds(clinic: Clinic, tmp_path: Path) -> None:
    done = call("prepare", clinic.study_file, "--data", clinic.data, "--runs", tmp_path, "--json")
    assert done.code == 0, done.stderr
    (row,) = done.summary["studies"]
    assert row == {"study": "clinic", "images": 72, "seconds": row["seconds"]}
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 72
    assert not (tmp_path / "mlflow.db").exists()
