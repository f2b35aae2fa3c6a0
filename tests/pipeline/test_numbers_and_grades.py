"""The whole pipeline for a number (how bright is the disc?) and for grades in order, from manifest to answer."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clinic import STUDY, write_rows, write_study
from clinic_fixtures import Done, call, only_folder
from PIL import Image

from medopt.evaluation.predictions_io import read_predictions
from medopt.evaluation.run_metrics import RunMetrics
from medopt.release.layout import read_info
from medopt.release.predictor import Release
from medopt.serving.server.limits import Refused
from medopt.serving.server.service import response_of
from medopt.serving.server.v2_codec import OutputSelection, write_response
from medopt.tracking.release import ReleaseModel, signature_of

SPLITS = ("train",) * 6 + ("val",) * 5 + ("test",) * 5
GRADES = ("none", "mild", "marked", "severe")
COUNT = 96


def disc(at: int, brightness: float) -> np.ndarray:
    """(24, 24): noise, and a disc somewhere."""
    random = np.random.default_rng(at)
    down, across = np.mgrid[:24, :24] - random.integers(8, 16, 2)[:, None, None]
    return (random.integers(0, 30, (24, 24)) + brightness * (down**2 + across**2 < 30)).astype(np.uint8)


def answered(
    folder: Path, name: str, columns: list[dict[str, Any]], levels: np.ndarray, **data: Any
) -> tuple[Done, Path]:
    """A whole run on images of so bright discs (N,), one a patient."""
    (folder / "scans").mkdir(parents=True)
    rows = []
    for at, more in enumerate(columns):
        Image.fromarray(disc(at, levels[at])).save(folder / "scans" / f"{at:03d}.png")
        rows.append({"image": f"{at:03d}.png", "patient_id": f"P{at}", "split": SPLITS[at % 16], "site": "one"} | more)
    write_rows(folder / "manifest.csv", rows)
    described = STUDY | {
        "name": name,
        "question": "How bright is the disc?",
        "data": {"manifest": "manifest.csv", "root": "scans"} | data,
        "prepare": {"size": [24, 24], "intensity": {"method": "range", "low": 0, "high": 255}},
        "augment": {"brightness": 0, "contrast": 0, "gamma": 0},
        "training": {"epochs": 20, "batch_size": 8, "optimizer": {"lr": 0.004}, "mixup": 0},
        "compression": STUDY["compression"] | {"engines": ["onnxruntime"]},
        "evaluation": {"bootstrap": 100, "shift_cases": 0, "explain": 0},
        "domain": {"enabled": False},
    }
    runs = folder / "runs"
    done = call("run", write_study(folder, described), "--data", folder, "--runs", runs, "--json")
    assert done.code == 0, done.stderr
    return done, only_folder(runs, name)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path, np.ndarray]:
    levels = np.random.default_rng(0).uniform(40, 220, COUNT)
    columns = [{"volume": round(float(level) / 10, 3), "label": "ignored"} for level in levels]
    done, folder = answered(
        *(tmp_path_factory.mktemp("numbers"), "brightness", columns, levels),
        task="regression",
        number={"column": "volume", "quantity": "nodule volume", "unit": "mm3", "code": "118565006^SCT^Volume"},
    )
    return done, folder, levels / 10


def test_a_number_is_predicted_with_its_error_and_agreement(numbers: tuple[Done, Path, np.ndarray]) -> None:
    done, folder, truth = numbers
    metrics = RunMetrics.read(folder)
    assert metrics.number is not None and metrics.margin is not None
    test = [at for at in range(COUNT) if SPLITS[at % 16] == "test"]
    for kind in ("float", "int8"):
        one = metrics.number[kind]  # type: ignore[index]
        assert one.mae.value is not None and one.mae.value < 0.5 * np.abs(truth[test] - truth[test].mean()).mean()
        assert one.mae.n == len(test) and one.mae.low < one.mae.value < one.mae.high
        assert one.lower.value < one.bias.value < one.upper.value and one.unit == "mm3"
    assert metrics.margin.int8.coverage == 0.95 and metrics.margin.int8.patients == 30
    assert metrics.gate.figures.chosen.error_change is not None
    assert "mean absolute error mm3" in done.stdout or "mean absolute error mm3" in done.stderr


def test_the_threshold_is_the_median_of_training_and_makes_the_label(numbers: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, truth = numbers
    train = [round(float(truth[at]), 3) for at in range(COUNT) if SPLITS[at % 16] == "train"]
    info = read_info(folder / "release")
    assert info.number is not None and info.labels == ["lower", "higher"]
    assert info.number.threshold == pytest.approx(np.median(train))
    assert info.number.spread == pytest.approx(np.std(train))
    table = next(one for one in read_predictions(folder / "predictions.csv") if one.model == "int8")
    assert table.numbers is not None
    assert np.array_equal(table.labels == 1, table.numbers > info.number.threshold)


def test_the_release_gives_the_number_and_an_interval(numbers: tuple[Done, Path, np.ndarray], tmp_path: Path) -> None:
    _, folder, truth = numbers
    metrics, release = RunMetrics.read(folder), Release.open(folder / "release", threads=1)
    scan = folder.parents[2] / "scans" / "011.png"
    answer = release.predict(scan)
    assert answer.number is not None and answer.number.low is not None and answer.number.high is not None
    assert metrics.margin is not None and release.info.number is not None
    reach = metrics.margin.int8.reach * release.info.number.spread
    assert answer.number.high - answer.number.value == pytest.approx(reach)
    assert answer.number.low < answer.number.value < answer.number.high
    assert abs(answer.number.value - truth[11]) < 4
    out = tmp_path / "answers.csv"
    done = call("predict", folder / "release", scan, "--out", out)
    assert done.code == 0 and "mm3" in done.stdout
    with out.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert float(row["number"]) == pytest.approx(answer.number.value, rel=1e-4)
    assert float(row["number_low"]) < float(row["number"]) < float(row["number_high"])


def test_the_table_alone_gives_the_same_figures(numbers: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, _ = numbers
    done = call("evaluate", folder, "--json")
    assert done.code == 0, done.stderr
    again = done.summary["models"]["int8"]["number"]
    kept = json.loads((folder / "metrics.json").read_text())["number"]["int8"]
    assert again["mae"]["value"] == pytest.approx(kept["mae"]["value"])
    assert again["covered"]["value"] == pytest.approx(kept["covered"]["value"])


def test_report_and_card_tell_the_number_and_its_question(numbers: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, _ = numbers
    page, card = (folder / "report.html").read_text(), (folder / "release" / "CARD.md").read_text()
    for words in ("The number", "limits of agreement", "nodule volume", "true numbers in their"):
        assert words in page, words
    assert (folder / "figures" / "agreement.svg").read_text() in page or "predicted less true" in page
    assert "mean absolute error" in card and "nodule volume is above" in card


@pytest.fixture(scope="module")
def grades(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path, np.ndarray]:
    truth = np.random.default_rng(1).integers(0, 4, COUNT)
    columns = [{"label": GRADES[grade]} for grade in truth]
    folder = tmp_path_factory.mktemp("grades")
    return *answered(folder, "grades", columns, 40 + 55 * truth, task="ordinal", labels=list(GRADES)), truth


def test_grades_are_judged_by_how_far_they_are_off(grades: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, _ = grades
    metrics, info = RunMetrics.read(folder), read_info(folder / "release")
    assert metrics.grades is not None
    assert metrics.grades.int8.kappa.value is not None and metrics.grades.int8.kappa.value > 0.5
    assert info.models["int8"].rule == "median" and info.models["int8"].threshold is None
    assert "weighted kappa" in (folder / "report.html").read_text()
    table = next(one for one in read_predictions(folder / "predictions.csv") if one.model == "int8")
    test = table.of_split("test")
    calibrated = info.models["int8"].calibration.probabilities(test.logits, "ordinal")
    median = (np.cumsum(calibrated, axis=1) >= 0.5).argmax(axis=1)
    assert metrics.grades.int8.distance.value == pytest.approx(np.abs(median - test.labels).mean())


def test_a_release_answers_with_the_median_grade(grades: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, truth = grades
    answer = Release.open(folder / "release", threads=1).predict(folder.parents[2] / "scans" / "011.png")
    total = np.cumsum(list(answer.probabilities.values()))
    assert answer.decision == GRADES[int((total >= 0.5).argmax())]
    assert abs(GRADES.index(answer.decision) - truth[11]) <= 1


def test_the_server_gives_the_number_and_names_its_unit(numbers: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, _ = numbers
    release = Release.open(folder / "release", threads=1)
    answers = [release.predict(folder.parents[2] / "scans" / "011.png")]
    answers.append(replace(answers[0], declined="it is blank", decision=""))
    verified = SimpleNamespace(release=release, digest="d", model_digest="m", version="1")
    response = response_of(SimpleNamespace(verified=verified, name="brightness"), answers)  # type: ignore[arg-type]
    first, second = response.arrays["number"].tolist()
    number = answers[0].number
    assert number is not None and first == [number.value, number.low, number.high]
    assert np.isnan(second).all()
    assert (response.parameters["unit"], response.parameters["quantity"]) == ("mm3", "nodule volume")
    written = json.loads(write_response(response, OutputSelection(outputs={"number": False}))[0])
    assert written["outputs"] == [
        {"name": "number", "datatype": "FP64", "shape": [2, 3], "data": [*first, None, None, None]}
    ]


def test_a_release_of_grades_has_no_output_of_that_name(grades: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, _ = grades
    release = Release.open(folder / "release", threads=1)
    verified = SimpleNamespace(release=release, digest="d", model_digest="m", version="1")
    answers = [release.predict(folder.parents[2] / "scans" / "011.png")]
    response = response_of(SimpleNamespace(verified=verified, name="grades"), answers)  # type: ignore[arg-type]
    assert set(OutputSelection().names(response.arrays)) == {"probabilities", "decision", "declined", "logits"}
    with pytest.raises(Refused, match="has no output number"):
        write_response(response, OutputSelection(outputs={"number": True}))


def test_the_registered_model_gives_the_number_too(numbers: tuple[Done, Path, np.ndarray]) -> None:
    _, folder, _ = numbers
    release, scan = Release.open(folder / "release", threads=1), folder.parents[2] / "scans" / "011.png"
    model, number = ReleaseModel(), release.predict(scan).number
    model._opened = {"int8": release}
    answers = model.predict(None, pd.DataFrame([{"path": str(scan)}, {"path": str(scan.with_name("gone.png"))}]))
    assert number is not None
    assert answers[["number", "number_low", "number_high"]].values.tolist() == [
        [number.value, number.low, number.high],
        [None] * 3,
    ]
    named = [column.name for column in signature_of(release.info).outputs]
    assert named == list(answers.columns)
