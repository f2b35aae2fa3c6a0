"""Cases of several images, from the manifest by way of a run to the release and its answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from clinic import STUDY, write_rows, write_study
from clinic_fixtures import call, only_folder

from medopt.core.errors import DataError, ReleaseError
from medopt.evaluation.predictions_io import read_predictions
from medopt.exports.folder import ExportSource
from medopt.pacs.study_inference import StudyInference
from medopt.release.layout import read_info
from medopt.release.predictor import Release
from medopt.serving.server.releases import open_release
from medopt.tracking.release import ARTIFACT, ReleaseModel

SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2
COUNT = 48
NAMES = ["t1", "adc"]


def scans(folder: Path) -> list[dict[str, Any]]:
    """The finding is bright in the second image alone; every seventh case has no first image."""
    folder.mkdir()
    rows = []
    for at in range(COUNT):
        random, row = np.random.default_rng(at), {"patient_id": f"P{at // 2}", "split": SPLITS[at // 2 % 8]}
        for name in NAMES:
            volume = random.integers(0, 200, (10, 12, 14)).astype(np.int16)
            volume[:, :6] += np.int16(120 * (name == "adc" and at % 2))
            file = folder / f"{at:03d}_{name}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(volume * (1 if name == "t1" else 7), np.diag([1.0, 1.0, 2.0, 1.0])), file)
            row[f"image:{name}"] = "" if name == "t1" and at % 7 == 3 else file.name
        rows.append(row | {"site": "one", "label": ("far", "near")[at % 2]})
    return rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("channels")
    rows = scans(folder / "scans")
    write_rows(folder / "manifest.csv", rows)
    described = STUDY | {
        "name": "channels",
        "data": {"manifest": "manifest.csv", "root": "scans", "labels": ["far", "near"]},
        "prepare": {
            "size": [12, 12, 12],
            "channels": NAMES,
            "missing_channel": "zeros",
            "intensity": {"method": "minmax"},
        },
        "augment": {"flip": ["left_right"], "rotate_degrees": 5},
        "training": {"epochs": 1, "batch_size": 8},
        "compression": STUDY["compression"] | {"engines": ["onnxruntime"]},
        "evaluation": STUDY.get("evaluation", {}) | {"explain": 2, "shift_cases": 8},
    }
    named = ("--override", "A. Tester", "--reason", "one epoch: what is tested is the way")
    done = call("run", write_study(folder, described), "--data", folder, "--runs", folder / "runs", *named, "--json")
    assert done.code == 0, done.stderr
    return folder, only_folder(folder / "runs", "channels"), rows


def test_the_runs_manifest_and_the_release_name_the_images_in_order(finished: Any) -> None:
    _, run, rows = finished
    with (run / "manifest.csv").open(newline="") as stream:
        kept = list(csv.DictReader(stream))
    assert [[row[f"image:{name}"] for name in NAMES] for row in kept] == [
        [row[f"image:{name}"] for name in NAMES] for row in rows
    ]
    info = read_info(run / "release")
    assert info.prepare.channel_names == ("t1", "adc") and info.prepare.input_channels == 4
    assert json.loads((run / "release" / "release.json").read_text())["prepare"]["channels"] == NAMES
    assert "Images of a case, in this order: t1, adc" in (run / "release" / "CARD.md").read_text()
    assert (run / "release" / "golden" / "case-1-adc.nii.gz").is_file()
    assert call("verify", run / "release").code == 0


def test_predict_answers_a_table_and_single_cases_as_the_run_did(finished: Any, tmp_path: Path) -> None:
    folder, run, rows = finished
    table = next(one for one in read_predictions(run / "predictions.csv") if one.model == "int8")
    with (run / "manifest.csv").open(newline="") as stream:
        places = {row["case_id"]: at for at, row in enumerate(csv.DictReader(stream))}
    known = {places[case]: logit for case, logit in zip(table.case_id, table.logits[:, 0], strict=True)}
    release = Release.open(run / "release", "int8", threads=1)
    place = folder / "scans"
    for at, expected in list(known.items())[:6]:
        cells = [rows[at][f"image:{name}"] for name in NAMES]
        paths = tuple(f"{place / cell}" if cell else "" for cell in cells)
        assert release.predict(paths).logits == pytest.approx([expected], abs=1e-4)
    write_rows(place / "cases.csv", [{key: row[key] for key in ("image:t1", "image:adc")} for row in rows])
    out, lone = tmp_path / "answers.csv", tmp_path / "one.csv"
    done = call("predict", run, place / "cases.csv", "--out", out, "--json")
    assert (done.code, done.summary["scans"], done.summary["refused"]) == (0, COUNT, 0), done.stderr
    words = [f"adc={place / '000_adc.nii.gz'}", f"t1={place / '000_t1.nii.gz'}"]
    single = call("predict", run, *words, "--out", lone, "--json")
    assert (single.code, single.summary["scans"]) == (0, 1), single.stderr
    answers, one = (list(csv.DictReader(path.open(newline=""))) for path in (out, lone))
    assert one[0]["probability_near"][:6] == answers[0]["probability_near"][:6]
    wrong = call("predict", run, folder / "scans" / "000_t1.nii.gz", "--out", tmp_path / "no.csv")
    assert wrong.code == 3 and "t1=FILE adc=FILE" in wrong.stderr


def test_what_takes_one_image_refuses_such_a_release(finished: Any) -> None:
    _, run, _ = finished
    said = "has 2 images \\(t1, adc\\)"
    with pytest.raises(ReleaseError, match=f"{said}: the server takes one image a request"):
        open_release(run / "release", "int8")
    with pytest.raises(ReleaseError, match=f"{said}: the node chooses one series a study"):
        StudyInference(run / "release", "int8", None, None)  # type: ignore[arg-type]
    with pytest.raises(ReleaseError, match=f"{said}: an export takes one image a case"):
        ExportSource.read(run / "release")
    with pytest.raises(ReleaseError, match=f"{said}: a row of an MLflow model is one scan"):
        ReleaseModel().load_context(SimpleNamespace(artifacts={ARTIFACT: str(run / "release")}))
    with pytest.raises(DataError, match="is one image, and a case of this study has 2"):
        Release.open(run / "release").predict("scan.nii.gz")


def test_check_and_plan_read_every_image(finished: Any, tmp_path: Path) -> None:
    folder, _, rows = finished
    done = call("manifest", "check", folder / "manifest.csv", "--data", folder / "scans", "--json")
    assert done.code == 0, done.stderr
    planned = call("plan", folder / "manifest.csv", "--data", folder / "scans", "--positive", "near", "--out",
                   tmp_path / "plan.yaml", "--json")  # fmt: skip
    assert planned.code == 0, planned.stderr
    prepare = planned.summary["study"]["prepare"]
    assert (prepare["channels"], prepare["missing_channel"]) == (NAMES, "zeros")
    other = np.diag([1.0, 1.0, 3.0, 1.0])
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).random((10, 12, 14)), other), folder / "scans" / "odd.nii.gz"
    )
    write_rows(tmp_path / "odd.csv", [rows[0] | {"image:adc": "odd.nii.gz"}, *rows[1:]])
    refused = call("manifest", "check", tmp_path / "odd.csv", "--data", folder / "scans", "--json")
    assert refused.code == 3 and "different grids" in refused.stderr
    write_rows(tmp_path / "gone.csv", [rows[0] | {"image:adc": "gone.nii.gz"}, *rows[1:]])
    gone = call("manifest", "check", tmp_path / "gone.csv", "--data", folder / "scans", "--json")
    assert gone.code == 3 and "gone.nii.gz (not there)" in gone.stderr
