"""Covariates beside the image, from the manifest to every door: the image tells one half, the age the other."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from clinic import STUDY, write_rows, write_study
from clinic_fixtures import Done, call, only_folder
from numpy.typing import NDArray
from pydicom import dcmread

from medopt.core.errors import DataError, ReleaseError
from medopt.evaluation.predictions_io import read_predictions
from medopt.evaluation.run_metrics import RunMetrics
from medopt.exports.folder import ExportSource
from medopt.inference.engines import open_engine
from medopt.manifest.covariates import CovariateEncoder
from medopt.metrics.weighted import auc
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import StudyRequest, StudyResponse
from medopt.phantom import Radiograph, write_radiograph
from medopt.pipeline.study_cases import read_run
from medopt.release.golden import replay
from medopt.release.layout import ReleaseInfo, read_info
from medopt.release.predictor import Release
from medopt.tracking.release import ARTIFACT, ReleaseModel, signature_of
from medopt.transforms.prepare import PrepareChain
from tests.serving.server_process import Server, arrays, served

COUNT = 160
SPLITS = ("train",) * 6 + ("val",) * 5 + ("test",) * 5
COVARIATES = [{"column": "age", "tag": "PatientAge"}, {"column": "smoker", "kind": "category"}]
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def rows_of(folder: Path, *, shuffled: bool = False) -> list[dict[str, Any]]:
    """A blob's brightness and an age, of which the sum decides; smokers are drawn at random, every ninth unknown."""
    (folder / "scans").mkdir(parents=True)
    random = np.random.default_rng(5)
    bright, ages = random.uniform(0, 1, COUNT), random.integers(20, 91, COUNT)
    told = random.permutation(ages) if shuffled else ages
    rows = []
    for at in range(COUNT):
        header = Radiograph(patient_id=f"MRN{at}", age=int(ages[at]), study_uid=f"1.2.826.9.{at}", sex="F")
        write_radiograph(folder / "scans" / f"{at:03d}.dcm", scan(float(bright[at]), at), header)
        label = ("below", "above")[int(bright[at] + (ages[at] - 20) / 70 > 1)]
        smoker = "" if at % 9 == 4 else ("never", "current")[int(random.integers(2))]
        rows.append(
            {"image": f"{at:03d}.dcm", "patient_id": f"P{at}", "split": SPLITS[at % 16], "label": label}
            | {"age": int(told[at]), "smoker": smoker}
        )
    return rows


def scan(brightness: float, seed: int) -> NDArray[np.float32]:
    """(24, 24): noise, and a disc somewhere."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[:24, :24] - random.integers(8, 16, 2)[:, None, None]
    disc = (0.15 + 0.7 * brightness) * (down**2 + across**2 < 30)
    return np.asarray(np.clip(random.uniform(0, 0.1, (24, 24)) + disc, 0, 1), np.float32)


def finished_run(folder: Path, name: str, *, shuffled: bool = False) -> tuple[Done, Path, list[dict[str, Any]]]:
    rows = rows_of(folder, shuffled=shuffled)
    write_rows(folder / "manifest.csv", rows)
    described = STUDY | {
        "name": name,
        "data": {
            "manifest": "manifest.csv",
            "root": "scans",
            "labels": ["below", "above"],
            "covariates": COVARIATES,
            "accept": ["near_duplicates"],
        },
        "augment": {"brightness": 0, "contrast": 0, "gamma": 0},
        "prepare": {"size": [24, 24], "intensity": {"method": "range", "low": 0, "high": 4095}},
        "training": {"epochs": 20, "batch_size": 8, "optimizer": {"lr": 0.004}, "mixup": 0, "ema_decay": 0},
        "compression": STUDY["compression"] | {"engines": ["onnxruntime"]},
        "evaluation": {"bootstrap": 100, "shift_cases": 8, "shift_families": ["noise"], "explain": 2},
    }
    named = ("--override", "A. Tester", "--reason", "what is tested is the way")
    words = ("--data", folder, "--runs", folder / "runs", *named, "--json")
    done = call("run", write_study(folder, described), *words)
    assert done.code == 0, done.stderr
    return done, only_folder(folder / "runs", name), rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path, list[dict[str, Any]]]:
    return finished_run(tmp_path_factory.mktemp("beside"), "beside")


@pytest.fixture(scope="module")
def release(finished: Any) -> Release:
    return Release.open(finished[1] / "release", threads=1)


def scan_of(finished: Any, at: int) -> Path:
    return Path(finished[1]).parents[2] / "scans" / f"{at:03d}.dcm"


def given(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("age", "smoker")}


def known_logits(finished: Any, kind: str = "int8") -> dict[int, float]:
    """What the run's table says of validation and test, by the number of the scan."""
    table = next(one for one in read_predictions(finished[1] / "predictions.csv") if one.model == kind)
    with (finished[1] / "manifest.csv").open(newline="") as stream:
        places = {row["case_id"]: int(row["image"][:3]) for row in csv.DictReader(stream)}
    return {places[case]: logit for case, logit in zip(table.case_id.tolist(), table.logits[:, 0], strict=True)}


def test_image_and_table_together_are_better_than_each_alone(finished: Any) -> None:
    metrics = RunMetrics.read(finished[1])
    assert metrics.baselines is not None
    image, table = metrics.baselines.models["image"], metrics.baselines.models["covariates"]
    for alone in (image, table):
        assert alone.gain.value is not None and alone.gain.value > 0.05, alone
        assert alone.gain.low is not None and alone.gain.low < alone.gain.value, alone
        assert alone.auc.value is not None and 0.6 < alone.auc.value < 0.95
    assert metrics.test.int8.auc.value is not None and metrics.test.int8.auc.value > 0.93


def test_the_coefficients_stand_in_metrics_release_card_report_and_console(finished: Any) -> None:
    done, run, _ = finished
    metrics, info = RunMetrics.read(run), read_info(run / "release")
    assert metrics.covariates is not None
    for kind in ("float", "int8"):
        term = info.models[kind].covariates  # type: ignore[index]
        assert term == metrics.covariates[kind] and term is not None  # type: ignore[index]
        names = ("age", "smoker never", "smoker current", "smoker missing")
        assert set(term.names) == set(names) and term.weights[0][0] > 1
    fitted = {one.column: one.fitted for one in info.covariates}
    assert fitted["age"] is not None and not fitted["age"].has_missing and 20 <= fitted["age"].low <= 30
    assert fitted["smoker"] is not None and fitted["smoker"].has_missing
    card, page = (run / "release" / "CARD.md").read_text(), (run / "report.html").read_text()
    for text in (card, page):
        assert "age: " in text and " more" in text and "smoker: missing instead of" in text and "odds ratio" in text
    for words in ("the same network without its covariates", "linear model on the covariates alone"):
        assert words in page, words
        assert words in " ".join((done.stdout + done.stderr).split())


def test_the_file_in_the_release_answers_the_image_alone(finished: Any) -> None:
    """So engines, int8 and the evidence map are what they are without covariates."""
    _, run, rows = finished
    info, chain = read_info(run / "release"), PrepareChain(read_info(run / "release").prepare)
    at, expected = next(iter(known_logits(finished).items()))
    image = chain.consume(chain.read(scan_of(finished, at)), "").numpy()[None]
    bare = open_engine("onnxruntime", run / "release" / "model.int8.onnx", 1).run(image)
    term = info.models["int8"].covariates
    assert term is not None
    cells = {name: str(value) for name, value in given(rows[at]).items()}
    added = term.logits(np.array([CovariateEncoder(info.covariates).encode(cells).values]))
    assert (bare + added)[0, 0] == pytest.approx(expected, abs=1e-4) and abs(added[0, 0]) > 1e-3


def test_a_release_answers_as_the_run_did(finished: Any, release: Release) -> None:
    _, _, rows = finished
    for at, expected in list(known_logits(finished).items())[:8]:
        answer = release.predict(scan_of(finished, at), given(rows[at]))
        assert answer.logits == pytest.approx([expected], abs=1e-4)
        assert answer.missing == (() if rows[at]["smoker"] else ("smoker",))


def test_the_header_gives_what_the_request_does_not(finished: Any, release: Release, tmp_path: Path) -> None:
    _, _, rows = finished
    place = scan_of(finished, 11)
    whole = release.predict(place, given(rows[11]))
    assert release.predict(place, {"smoker": rows[11]["smoker"]}).logits == pytest.approx(whole.logits)
    other = release.predict(place, given(rows[11]) | {"age": 20 if rows[11]["age"] > 50 else 90})
    assert abs(other.logits[0] - whole.logits[0]) > 0.5
    bare = dcmread(place)
    del bare.PatientAge
    bare.PatientBirthDate = ""
    bare.save_as(tmp_path / "bare.dcm")
    answer = release.predict(tmp_path / "bare.dcm", {"smoker": "never"})
    assert answer.missing == ("age",) and not answer.decision
    assert answer.declined is not None and "age is missing, and training had no case without it" in answer.declined


def test_wrong_covariates_are_refused_without_being_quoted(finished: Any, release: Release) -> None:
    for covariates, said in (
        ({"age": "SECRET"}, "The covariate age is not an age"),
        ({"SECRET": 1}, "its covariates are age, smoker"),
    ):
        with pytest.raises(DataError, match=said) as refused:
            release.predict(scan_of(finished, 11), covariates)
        assert "SECRET" not in str(refused.value)
    far = release.predict(scan_of(finished, 11), {"age": 4, "smoker": "sometimes"})
    assert far.missing == ("smoker",)


def test_predict_takes_a_table_and_says_what_was_missing(finished: Any, tmp_path: Path) -> None:
    _, run, rows = finished
    table, out = tmp_path / "covariates.csv", tmp_path / "answers.csv"
    write_rows(table, [{"image": f"scans/{row['image']}", "age": row["age"], "smoker": row["smoker"]} for row in rows])
    done = call("predict", run, scan_of(finished, 0).parent, "--covariates", table, "--out", out, "--json")
    assert done.code == 0, done.stderr
    count = sum(not row["smoker"] for row in rows)
    assert f"the covariate smoker counted as missing in {count} scans of {COUNT}" in done.stdout
    with out.open(newline="") as stream:
        answers = {Path(row["path"]).name: row for row in csv.DictReader(stream)}
    model = read_info(run / "release").models["int8"]
    for at, logit in list(known_logits(finished).items())[:6]:
        row = answers[f"{at:03d}.dcm"]
        expected = model.calibration.probabilities(np.array([[logit]]), "binary")[0, 0]
        if not row["declined"]:
            assert float(row["probability_above"]) == pytest.approx(expected, abs=1e-4)
        assert row["missing_covariates"] == ("" if rows[at]["smoker"] else "smoker")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": "000.dcm", "age": 50}, "needs the columns path or image and age, smoker"),
        ({"image": "elsewhere.dcm", "age": 50, "smoker": ""}, "has no row for any of the scans"),
        ({"image": "000.dcm", "age": 50, "smoker": "", "path": "000.dcm"}, ""),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    finished: Any, tmp_path: Path, columns: dict[str, Any], said: str
) -> None:
    write_rows(tmp_path / "t.csv", [columns])
    words = ("--covariates", tmp_path / "t.csv", "--out", tmp_path / "a.csv")
    done = call("predict", finished[1], scan_of(finished, 0), *words)
    assert (done.code, said in done.stderr) == (3 if said else 0, True), done.stderr


def test_a_row_that_fits_two_scans_is_refused(finished: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_bytes(scan_of(finished, 0).read_bytes())
    write_rows(tmp_path / "t.csv", [{"path": "1.dcm", "age": 50, "smoker": ""}])
    words = ("--covariates", tmp_path / "t.csv", "--out", tmp_path / "out.csv")
    refused = call("predict", finished[1], tmp_path / "a", tmp_path / "b", *words)
    assert refused.code == 3 and "row 2 fits" in refused.stderr
    write_rows(tmp_path / "t.csv", [{"path": f"{name}/1.dcm", "age": 50, "smoker": ""} for name in "ab"])
    assert call("predict", finished[1], tmp_path / "a", tmp_path / "b", *words).code == 0


@pytest.fixture(scope="module")
def server(finished: Any) -> Iterator[Server]:
    with served(finished[1] / "release", "--try") as found:
        yield found
        assert [one for one in found.events if one["event"] == "failure" or one.get("code") == "500"] == []
        assert "SECRET" not in "".join(found.raw)


def expected_of(finished: Any, release: Release, at: int) -> list[float]:
    return list(release.predict(scan_of(finished, at), given(finished[2][at])).probabilities.values())


def test_the_server_takes_fields_and_inputs_beside_the_scan(finished: Any, release: Release, server: Server) -> None:
    _, _, rows = finished
    url, scans = server.url("/v2/models/beside/infer"), [scan_of(finished, at).read_bytes() for at in (11, 12)]
    want = np.array([expected_of(finished, release, at) for at in (11, 12)])
    fields = {"age": str(rows[11]["age"]), "smoker": rows[11]["smoker"]}
    form = arrays(httpx.post(url, files=[("scan", ("x", scans[0]))], data=fields, timeout=60))
    assert form["probabilities"] == pytest.approx(want[:1], abs=1e-6)
    inputs = [
        {"name": "scan", "datatype": "BYTES", "shape": [2], "data": [base64.b64encode(one).decode() for one in scans],
         "parameters": {"content_type": "base64"}},
        {"name": "age", "datatype": "BYTES", "shape": [2], "data": [rows[11]["age"], str(rows[12]["age"])]},
        {"name": "smoker", "datatype": "BYTES", "shape": [2], "data": [rows[11]["smoker"], None]},
    ]  # fmt: skip
    both = arrays(httpx.post(url, json={"inputs": inputs}, timeout=60))
    assert both["probabilities"][0] == pytest.approx(want[0], abs=1e-6)
    assert both["missing_covariates"].tolist()[1] == "smoker"
    header = arrays(httpx.post(url, content=scans[0], headers={"Inference-Header-Content-Length": "0"}, timeout=60))
    assert header["missing_covariates"].tolist() == ["smoker"]  # its age is in the scan's header
    for changed, said in (
        ([inputs[0], inputs[1] | {"data": ["SECRET", "1"]}], "The covariate age is not an age"),
        ([inputs[0], inputs[1] | {"shape": [1], "data": ["60"]}], "The input age has 1 values for 2 cases"),
        ([inputs[0], inputs[1] | {"data": [True, "1"]}], "The input age holds texts or numbers"),
        ([inputs[1]], "Give exactly one input"),
    ):
        refused = httpx.post(url, json={"inputs": changed}, timeout=60)
        assert refused.status_code == 400 and said in refused.json()["error"], refused.text
        assert "SECRET" not in refused.text
    two = [("scan", ("x", one)) for one in scans]
    assert "holds one case" in httpx.post(url, files=two, data=fields, timeout=60).json()["error"]


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_tritons_client_sends_an_input_for_each_covariate(
    finished: Any, release: Release, server: Server, door: str
) -> None:
    triton = pytest.importorskip(f"tritonclient.{door}")
    row, port = finished[2][11], server.rest if door == "http" else server.grpc
    with closing(triton.InferenceServerClient(f"127.0.0.1:{port}")) as client:
        tensors = []
        columns = {"scan": scan_of(finished, 11).read_bytes(), "age": str(row["age"]).encode()}
        for name, value in (columns | {"smoker": str(row["smoker"]).encode()}).items():
            tensors.append(triton.InferInput(name, [1], "BYTES"))
            tensors[-1].set_data_from_numpy(np.array([value], object))
        found = client.infer("beside", tensors)
    assert found.as_numpy("probabilities")[0] == pytest.approx(expected_of(finished, release, 11), abs=1e-6)


def test_metadata_openapi_and_page_name_the_covariates(finished: Any, release: Release, server: Server) -> None:
    metadata = httpx.get(server.url("/v2/models/beside")).json()
    assert [one["name"] for one in metadata["inputs"]] == ["image", "scan", "age", "smoker"]
    assert "missing_covariates" in [one["name"] for one in metadata["outputs"]]
    document = httpx.get(server.url("/openapi.json")).json()
    post = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"scan", "age", "smoker"} <= post["schema"]["properties"].keys()
    assert "age (a number)" in post["schema"]["description"] and "never" in post["schema"]["description"]
    assert document["components"]["schemas"]["InferRequest"]["properties"]["inputs"]["maxItems"] == 3
    page = httpx.get(server.url("/try")).text
    assert 'name="age"' in page and 'name="smoker"' in page and "<option>never</option>" in page
    row = finished[2][11]
    files = [("scan", ("x", scan_of(finished, 11).read_bytes()))]
    fields = {"model": "beside", "age": str(row["age"]), "smoker": ""}
    answer = httpx.post(server.url("/try"), files=files, data=fields, timeout=60)
    assert answer.status_code == 200 and "Counted as missing: smoker" in answer.text, answer.text


def answered(inference: StudyInference, folder: Path) -> StudyResponse:
    digests = {path.name: path.name for path in folder.iterdir()}
    return inference.answer(StudyRequest(folder=folder, digests=digests, previous={}, now=NOW))


def test_the_node_reads_the_age_that_all_images_of_a_study_agree_on(
    finished: Any, release: Release, tmp_path: Path
) -> None:
    inference = StudyInference(finished[1] / "release", "int8", None, ResultSettings())
    study = tmp_path / "study"
    study.mkdir()
    (study / "1.dcm").write_bytes(scan_of(finished, 11).read_bytes())
    expected = release.predict(scan_of(finished, 11))
    response = answered(inference, study)
    assert response.ending == "done" and response.decisions == (expected.decision,), response.reason
    text = next(one.content for one in response.objects if one.result_type == "text")
    assert f"probability {100 * expected.probabilities['above']:.1f} %".encode() in text
    assert b"Counted as missing: smoker" in text
    other = dcmread(study / "1.dcm")
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.826.9.99.1"
    other.PatientAge = "020Y"
    other.save_as(study / "2.dcm")
    torn = answered(inference, study)
    assert torn.ending == "declined" and "age is missing" in torn.reason, torn.reason


def test_the_mlflow_model_takes_columns_of_their_names(finished: Any, release: Release) -> None:
    model = ReleaseModel()
    model.load_context(SimpleNamespace(artifacts={ARTIFACT: str(finished[1] / "release")}))
    row = finished[2][11]
    frame = pd.DataFrame(
        [{"scan": scan_of(finished, 11).read_bytes(), "age": str(row["age"]), "smoker": row["smoker"]},
         {"path": str(scan_of(finished, 11)), "age": float("nan"), "smoker": None}]
    )  # fmt: skip
    found = model.predict(None, frame)
    assert found["probability_above"][0] == pytest.approx(expected_of(finished, release, 11)[1], abs=1e-6)
    assert found["missing_covariates"].tolist() == ["", "smoker"]
    info = read_info(finished[1] / "release")
    assert {"age", "smoker"} <= set(signature_of(info).inputs.input_names())


def test_exports_refuse_and_golden_cases_hold_covariates(finished: Any, tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"by covariates \(age, smoker\): an export takes images alone"):
        ExportSource.read(finished[1] / "release")
    assert call("verify", finished[1]).code == 0
    info = json.loads((finished[1] / "release" / "release.json").read_text())
    changed = json.loads(json.dumps(info))
    changed["models"]["int8"]["covariates"]["weights"][0][0] += 1.5
    opened = Release.open(finished[1] / "release", threads=1)
    wrong = ReleaseInfo.model_validate(changed)
    object.__setattr__(opened, "info", wrong)
    with pytest.raises(ReleaseError, match="answers differ"):
        replay(finished[1] / "release", wrong, [opened])


def test_the_gate_saw_both_parts(finished: Any) -> None:
    """The validation AUC of the gate is that of the sum, which the image alone does not reach."""
    _, run, _ = finished
    metrics = RunMetrics.read(run)
    table = next(one for one in read_predictions(run / "predictions.csv") if one.model == "float").of_split("val")
    cases = [case for case in read_run(run, run.parents[2]).cases if case.split == "val"]
    info = read_info(run / "release")
    term = info.models["float"].covariates
    assert term is not None
    image = table.logits - term.logits(CovariateEncoder(info.covariates).table(cases))

    def area(logits: NDArray[np.float64]) -> float:
        return float(auc(logits, table.labels[:, None] == 1)[0])

    assert area(table.logits) > area(image) + 0.05
    assert metrics.gate.figures.auc_float == pytest.approx(area(table.logits), abs=1e-9)


def test_evaluate_and_a_second_run_change_nothing(finished: Any) -> None:
    _, run, _ = finished
    done = call("evaluate", run, "--json")
    kept = RunMetrics.read(run).test.int8.auc.value
    assert done.code == 0 and done.summary["models"]["int8"]["figures"]["auc"]["value"] == pytest.approx(kept)
    data = run.parents[2]
    again = call("run", data / "beside.yaml", "--data", data, "--runs", data / "runs", "--json")
    assert again.code == 0 and again.stderr.count("unchanged, skipped") + again.stdout.count("unchanged") >= 8


@pytest.mark.long
def test_a_shuffled_table_brings_nothing(tmp_path: Path) -> None:
    _, run, _ = finished_run(tmp_path / "shuffled", "shuffled", shuffled=True)
    metrics = RunMetrics.read(run)
    assert metrics.baselines is not None and metrics.covariates is not None
    gain, alone = metrics.baselines.models["image"].gain, metrics.baselines.models["covariates"].auc
    assert gain.low is not None and gain.low <= 0
    assert alone.low is not None and alone.low < 0.5
    assert abs(metrics.covariates.float.weights[0][0]) < 0.6
