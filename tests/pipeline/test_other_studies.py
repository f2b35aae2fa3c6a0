"""The whole pipeline for the other kinds of question: several classes, several labels, volumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from clinic import STAGES, STUDY, write_rows, write_study
from clinic_fixtures import Done, call, only_folder
from mlflow import MlflowClient
from PIL import Image

from medopt.core.records import UNKNOWN
from medopt.evaluation.predictions_io import read_predictions
from medopt.evaluation.run_metrics import RunMetrics
from medopt.metrics import evaluate
from medopt.metrics.figures import METRICS
from medopt.pipeline.mlflow_summary import unknown_labels
from medopt.release.layout import read_info
from medopt.release.predictor import Release
from medopt.report.run_records import read_run
from medopt.tracking.tracker import metrics_of

SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2
COUNT = 48


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all: to make one takes longer than to train."""
    return tmp_path_factory.mktemp("other-runs")


def study(name: str, **data: Any) -> dict[str, Any]:
    """The clinic's study, smaller: one engine, so that the machine's speed decides about nothing."""
    changed = {
        "name": name,
        "question": f"Which of {', '.join(data['labels'])}?",
        "data": {"manifest": "manifest.csv", "root": "scans"} | data,
        "prepare": {"size": [16, 16], "intensity": {"method": "minmax"}},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.003}},
        "compression": STUDY["compression"] | {"engines": ["onnxruntime"]},
    }
    return STUDY | changed


def rows(suffix: str, truth: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two images a patient, splits by patient."""
    return [
        {"image": f"{at:03d}{suffix}", "patient_id": f"P{at // 2}", "split": SPLITS[at // 2 % 8], "site": "one"} | label
        for at, label in enumerate(truth)
    ]


def run(folder: Path, runs: Path, described: dict[str, Any], listed: list[dict[str, Any]]) -> tuple[Done, Path]:
    """One or two epochs on 24 images may teach a model nothing, so the verdict is overridden."""
    write_rows(folder / "manifest.csv", listed)
    named = ("--override", "A. Tester", "--reason", "what is tested is the way")
    done = call("run", write_study(folder, described), "--data", folder, "--runs", runs, "--json", *named)
    assert done.code == 0, done.stderr
    return done, only_folder(runs, described["name"])


def drawn(at: int, parts: list[bool], shape: tuple[int, ...]) -> np.ndarray:
    """Noise, with a bright bar across each part of the last axis that is on."""
    image = np.random.default_rng(at).integers(0, 60, shape).astype(np.uint8)
    width = shape[-1] // len(parts)
    for part, on in enumerate(parts):
        image[..., part * width + 1 : (part + 1) * width - 1] += np.uint8(120 * on)
    return image


def same_as_table(folder: Path, scans: Path) -> None:
    """The release answers for files as the run did."""
    with (folder / "manifest.csv").open(newline="") as stream:
        images = {row["case_id"]: row["image"] for row in csv.DictReader(stream)}
    predictor = Release.open(folder / "release", "int8", threads=1)
    table = next(table for table in read_predictions(folder / "predictions.csv") if table.model == "int8")
    assert len(table) == COUNT // 2
    for case, logits in list(zip(table.case_id, table.logits, strict=True))[:8]:
        assert predictor.predict(scans / images[case]).logits == pytest.approx(logits.tolist(), abs=1e-4)


def test_multiclass_study(tmp_path: Path, runs: Path) -> None:
    names = ["left", "middle", "right"]
    (tmp_path / "scans").mkdir()
    for at in range(COUNT):
        image = drawn(at, [at % 3 == part for part in range(3)], (18, 24))
        Image.fromarray(image).save(tmp_path / "scans" / f"{at:03d}.png")
    described = study("classes", task="multiclass", labels=names) | {"augment": {"flip": []}}
    done, folder = run(tmp_path, runs, described, rows(".png", [{"label": names[at % 3]} for at in range(COUNT)]))
    metrics = done.summary
    assert list(metrics["test"]["int8"]) == list(METRICS)
    assert metrics["test"]["float"]["auc"]["value"] > 0.6
    assert metrics["operating_point"]["int8"] == {"threshold": None, "rule": "argmax"}
    assert read_info(folder / "release").models["int8"].threshold is None
    answer = Release.open(folder / "release").predict(tmp_path / "scans" / "000.png")
    assert list(answer.probabilities) == names
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert answer.decision == max(answer.probabilities, key=lambda name: answer.probabilities[name])
    same_as_table(folder, tmp_path / "scans")
    assert call("verify", folder / "release").code == 0


def test_multilabel_study(tmp_path: Path, runs: Path) -> None:
    names = ["upper", "lower"]
    truth = [(at % 2, at // 2 % 3 % 2) for at in range(COUNT)]
    (tmp_path / "scans").mkdir()
    for at, parts in enumerate(truth):
        Image.fromarray(drawn(at, [part == 1 for part in parts], (20, 20)).T).save(tmp_path / "scans" / f"{at:03d}.png")
    described = study("labels", task="multilabel", labels=names)
    listed = rows(".png", [dict(zip(names, parts, strict=True)) for parts in truth])
    done, folder = run(tmp_path, runs, described, listed)
    assert list(done.summary["test"]["int8"]) == list(METRICS)
    assert len(done.summary["operating_point"]["float"]["threshold"]) == 2
    info = read_info(folder / "release")
    thresholds = info.models["int8"].threshold
    assert isinstance(thresholds, tuple)
    answer = Release.open(folder / "release").predict(tmp_path / "scans" / "001.png")
    wanted = [name for name, at in zip(names, thresholds, strict=True) if answer.probabilities[name] >= at]
    assert answer.decision == ";".join(wanted)
    same_as_table(folder, tmp_path / "scans")
    again = call("run", tmp_path / "labels.yaml", "--data", tmp_path, "--runs", runs, "--json")
    assert again.stderr.count("unchanged, skipped") == len(STAGES)  # thresholds that were read back are the same facts


def test_uncertain_and_missing_labels_are_left_out_of_loss_and_figures(tmp_path: Path, runs: Path) -> None:
    """What stands in the cells of unknown labels changes neither the training nor a figure."""
    names = ["upper", "lower"]
    (tmp_path / "scans").mkdir()
    listed = []
    for at in range(2 * COUNT):
        parts = [at % 2 == 1, at // 2 % 3 % 2 == 1]
        Image.fromarray(drawn(at, parts, (20, 20)).T).save(tmp_path / "scans" / f"{at:03d}.png")
        listed.append({name: int(on) for name, on in zip(names, parts, strict=True)})
    for at in range(0, 2 * COUNT, 5):
        listed[at]["upper"] = "-1.0"
        listed[at + 3 if at + 3 < 2 * COUNT else at]["lower"] = ""
    described = study("unknown", task="multilabel", labels=names)
    described |= {
        "training": described["training"] | {"mixup": 0.2, "sampling": "balanced", "class_weights": "balanced"}
    }
    described["evaluation"] = STUDY.get("evaluation", {}) | {"explain": 3, "nearest": 1}
    done, folder = run(tmp_path, runs, described, rows(".png", listed))
    float_table = read_predictions(folder / "predictions.csv")[0]
    unknown = [sum(row[name] in ("-1.0", "") for row, split in zip(listed, splits(2 * COUNT), strict=True)
                   if split != "train") for name in names]  # fmt: skip
    assert (float_table.labels == UNKNOWN).sum(axis=0).tolist() == unknown and min(unknown) > 1
    assert done.summary["test"]["int8"]["auc"]["value"] is not None
    assert any("unknown_labels: " in note and "upper 20 uncertain" in note for note in done.summary["data_notes"])
    assert "upper uncertain" in (folder / "report.html").read_text()
    counted = metrics_of(unknown_labels(read_run(folder)))
    assert sum(one.value for one in counted if one.key.endswith("upper uncertain")) == 20
    assert {one.key for one in counted} >= {"unknown labels_test/upper uncertain", "unknown labels_test/lower missing"}
    run_id = json.loads((folder / "run.json").read_text())["mlflow_run_id"]
    logged = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}").get_run(run_id)
    assert {one.key: one.value for one in counted}.items() <= logged.data.metrics.items()
    test = float_table.of_split("test")
    truth = np.where(test.labels == UNKNOWN, np.nan, test.labels)
    expected = evaluate(truth, test.logits, patients=test.patient_id, bootstrap=100)
    assert done.summary["test"]["float"]["auc"]["value"] == pytest.approx(expected.auc.value)
    again = call("evaluate", folder / "predictions.csv", "--json")
    assert again.code == 0, again.stderr
    figures = again.summary["models"]["float"]["figures"] if "models" in again.summary else again.summary
    assert figures


def splits(count: int) -> list[str]:
    return [SPLITS[at // 2 % 8] for at in range(count)]


def test_study_of_volumes_in_two_windows(tmp_path: Path, runs: Path) -> None:
    names = ["near", "far"]
    (tmp_path / "scans").mkdir()
    for at in range(COUNT):
        volume = drawn(at, [at % 2 == 0, at % 2 == 1], (10, 12, 14)).astype(np.int16)
        nibabel.save(
            nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), tmp_path / "scans" / f"{at:03d}.nii.gz"
        )
    described = study("volumes", labels=names) | {
        "prepare": {"size": [12, 12, 12], "intensity": {"method": "windows", "windows": [[90, 180], [30, 60]]}},
        "augment": {"flip": ["left_right", "slice"], "rotate_degrees": 5},
        "training": {"epochs": 1, "batch_size": 8},
    }
    done, folder = run(tmp_path, runs, described, rows(".nii.gz", [{"label": names[at % 2]} for at in range(COUNT)]))
    assert done.summary["test"]["int8"]["auc"]["n"] == COUNT // 4
    assert "- Input: 2 x 12 x 12 x 12" in (folder / "release" / "CARD.md").read_text()
    golden = json.loads((folder / "release" / "golden.json").read_text())
    assert [case["scan"] for case in golden["cases"]] == [f"golden/case-{number}.nii.gz" for number in (1, 2, 3)]
    same_as_table(folder, tmp_path / "scans")
    out = tmp_path / "out.csv"
    assert call("predict", folder / "release", tmp_path / "scans", "--out", out).code == 0
    with out.open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == COUNT
    assert call("verify", folder / "release").code == 0


def test_the_known_shift_of_class_weights_is_in_the_release(tmp_path: Path, runs: Path) -> None:
    """Validation has 6 of each label: too few for a bias, which is known from the weights."""
    (tmp_path / "scans").mkdir()
    for at in range(COUNT):
        Image.fromarray(drawn(at, [at % 2 == 1], (18, 24))).save(tmp_path / "scans" / f"{at:03d}.png")
    described = study("weighted", labels=["dark", "bright"], accept=["near_duplicates"])
    described["training"] = described["training"] | {"class_weights": {"dark": 1, "bright": 9}}
    listed = rows(".png", [{"label": ("dark", "bright")[at % 2]} for at in range(COUNT)])
    done, folder = run(tmp_path, runs, described, listed)
    metrics = RunMetrics.read(folder)
    assert metrics.prior_shift == pytest.approx((np.log(9),))
    calibration = metrics.calibration.int8.calibration
    assert calibration.method == "logistic" and calibration.biases[0] == pytest.approx(
        -np.log(9) * calibration.slopes[0]
    )
    assert "known from training" in calibration.note
    assert read_info(folder / "release").models["int8"].calibration == calibration
    table = next(one for one in read_predictions(folder / "predictions.csv") if one.model == "int8").of_split("test")
    evaluated = calibration.probabilities(table.logits, "binary")[:, 0]
    with (folder / "manifest.csv").open(newline="") as stream:
        images = {row["case_id"]: row["image"] for row in csv.DictReader(stream)}
    predictor = Release.open(folder / "release", "int8", threads=1)
    served = [predictor.predict(tmp_path / "scans" / images[case]) for case in table.case_id]
    assert [one.probabilities["bright"] for one in served if not one.declined] == pytest.approx(
        [value for value, one in zip(evaluated.tolist(), served, strict=True) if not one.declined], abs=1e-4
    )
    assert metrics.kept is not None and (metrics.kept.epoch, metrics.kept.epochs) == (2, 2)
    assert metrics.kept.sentence in done.stdout
    assert "those of epoch 2 of 2: the last one, as the schedule one_cycle" in (folder / "report.html").read_text()
    again = call("evaluate", folder, "--json")
    assert again.code == 0, again.stderr
    told = again.summary["models"]["int8"]["calibration"]
    assert told["biases"] == pytest.approx(list(calibration.biases), abs=1e-4)
