"""Cases of several images, from the manifest by way of a run to the release and its answers."""

from __future__ import annotations

import base64
import csv
import importlib
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import nibabel
import numpy as np
import pandas as pd
import pytest
from clinic import STUDY, write_rows, write_study
from clinic_fixtures import call, only_folder
from pydicom import dcmread
from pydicom.uid import MRImageStorage
from report_groups import measurement_groups, source_uids

from medopt.config import SeriesRules
from medopt.core.errors import DataError, ReleaseError
from medopt.evaluation.predictions_io import read_predictions
from medopt.exports.folder import ExportSource
from medopt.imaging import read_scan
from medopt.pacs.settings import ResultSettings
from medopt.pacs.study_inference import StudyInference
from medopt.pacs.worker_protocol import StudyRequest, StudyResponse
from medopt.release.evidence_picture import evidence_picture
from medopt.release.layout import read_info
from medopt.release.predictor import Release
from medopt.tracking.release import ARTIFACT, ReleaseModel, example, signature_of
from medopt.transforms.display import displayed, displayed_images
from tests.scans_of_patients import mr_series
from tests.serving.server_process import Server, arrays, served

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


@pytest.fixture(scope="module")
def server(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    with served(finished[1] / "release", "--try", TMPDIR=str(folder)) as found:
        yield found
        assert list(folder.glob("medopt-serve-*")) == []
        assert [one for one in found.events if one["event"] == "failure" or one.get("code") == "500"] == []
        assert ".nii" not in "".join(found.raw)


def files_of(finished: Any, at: int) -> dict[str, bytes]:
    folder, _, rows = finished
    cells = {name: rows[at][f"image:{name}"] for name in NAMES}
    return {name: (folder / "scans" / cell).read_bytes() if cell else b"" for name, cell in cells.items()}


def told(finished: Any, *places: int) -> list[list[float]]:
    """What the release says of cases, without a server: the probabilities of each."""
    folder, run, rows = finished
    release = Release.open(run / "release", mode="throughput")
    cases = [[rows[at][f"image:{name}"] for name in NAMES] for at in places]
    paths = [tuple(f"{folder / 'scans' / cell}" if cell else "" for cell in cells) for cells in cases]
    return [list(release.predict(path).probabilities.values()) for path in paths]


def test_the_server_takes_a_field_for_each_image_of_a_case(finished: Any, server: Server) -> None:
    url = server.url("/v2/models/channels/infer")
    files = files_of(finished, 0)
    fields = [("adc", ("b", files["adc"])), ("t1", ("a", files["t1"]))]
    assert arrays(httpx.post(url, files=fields, timeout=60))["probabilities"].tolist() == pytest.approx(
        np.array(told(finished, 0)), abs=1e-6
    )
    two = [(name, ("x", data)) for at in (0, 1) for name, data in files_of(finished, at).items()]
    assert arrays(httpx.post(url, files=two, timeout=60))["probabilities"] == pytest.approx(
        np.array(told(finished, 0, 1)), abs=1e-6
    )
    gap = [("adc", ("x", files_of(finished, 3)["adc"]))]  # its first image is missing
    assert arrays(httpx.post(url, files=gap, timeout=60))["probabilities"] == pytest.approx(
        np.array(told(finished, 3)), abs=1e-6
    )
    for words, fields in (
        ("2 images: curl -F t1=@FILE -F adc=@FILE", [("scan", ("x", files["adc"]))]),
        (
            "is refused. The image adc and t1 have the same pixels",
            [(n, ("x", files["adc"])) for n in NAMES],
        ),
        ("The image adc is not a format that is read", [("t1", ("x", files["t1"])), ("adc", ("SECRET", b"SECRET"))]),
    ):
        refused = httpx.post(url, files=fields, timeout=60)
        assert refused.status_code == 400 and words in refused.json()["error"], refused.text
        assert "SECRET" not in refused.text
    whole = httpx.post(url, content=files["t1"], headers={"Inference-Header-Content-Length": "0"})
    assert whole.status_code == 400 and "send a form or an input for each of t1, adc" in whole.json()["error"]


def test_metadata_and_the_openapi_document_name_the_inputs(server: Server) -> None:
    metadata = httpx.get(server.url("/v2/models/channels")).json()
    assert [(one["name"], one["datatype"], one["shape"]) for one in metadata["inputs"]] == [
        ("image", "FP32", [-1, 4, 12, 12, 12]), ("t1", "BYTES", [-1]), ("adc", "BYTES", [-1])
    ]  # fmt: skip
    document = httpx.get(server.url("/openapi.json")).json()
    post = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"t1", "adc", "id"} <= post["schema"]["properties"].keys() and "channels: t1, adc" in str(post)
    schemas = document["components"]["schemas"]
    assert {"t1", "adc"} <= set(schemas["InferInput"]["properties"]["name"]["enum"])
    assert schemas["InferRequest"]["properties"]["inputs"]["maxItems"] == 2


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_tritons_client_sends_an_input_for_each_image(finished: Any, server: Server, door: str) -> None:
    triton = pytest.importorskip(f"tritonclient.{door}")
    columns = [files_of(finished, at) for at in (0, 3)]  # the second has no t1
    with closing(triton.InferenceServerClient(f"127.0.0.1:{server.rest if door == 'http' else server.grpc}")) as client:

        def ask(*names: str) -> Any:
            tensors = []
            for name in names:
                tensors.append(triton.InferInput(name, [2], "BYTES"))
                tensors[-1].set_data_from_numpy(np.array([column[name] for column in columns], object))
            return client.infer("channels", tensors)

        found = ask("adc", "t1").as_numpy("probabilities")
        assert found == pytest.approx(np.array(told(finished, 0, 3)), abs=1e-6)
        blind = ask("adc").as_numpy("probabilities")
        assert blind[1] == pytest.approx(found[1]) and blind[0] != pytest.approx(found[0], abs=1e-9)
        with pytest.raises(triton.InferenceServerException, match="Case 2 of 2 has none of its images"):
            ask("t1")


def test_json_holds_the_images_as_base64(finished: Any, server: Server) -> None:
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(data).decode()]}
        | {"parameters": {"content_type": "base64"}}
        for name, data in files_of(finished, 1).items()
    ]
    found = arrays(httpx.post(server.url("/v2/models/channels/infer"), json={"inputs": inputs}, timeout=60))
    assert found["probabilities"] == pytest.approx(np.array(told(finished, 1)), abs=1e-6)


def test_the_page_has_a_field_for_each_image_and_shows_both(finished: Any, server: Server) -> None:
    page = httpx.get(server.url("/try")).text
    assert 'name="t1"' in page and 'name="adc"' in page and "t1 (may be missing)" in page
    fields = [(name, ("x", data)) for name, data in files_of(finished, 1).items()]
    answer = httpx.post(server.url("/try"), files=fields, data={"model": "channels"}, timeout=60)
    assert answer.status_code == 200 and "Calibrated probability" in answer.text
    empty = [("t1", ("", b"")), ("adc", ("x", files_of(finished, 3)["adc"]))]
    assert httpx.post(server.url("/try"), files=empty, data={"model": "channels"}, timeout=60).status_code == 200


def test_heat_maps_have_a_column_for_each_image(finished: Any, tmp_path: Path) -> None:
    folder, run, _ = finished
    words = [f"{name}={folder / 'scans' / f'001_{name}.nii.gz'}" for name in NAMES]
    done = call("predict", run, *words, "--out", tmp_path / "a.csv", "--heatmaps", tmp_path / "maps", "--json")
    assert done.code == 0, done.stderr
    release = Release.open(run / "release")
    volume = release.chain.read(tuple(word.partition("=")[2] for word in words))
    evidence = np.zeros((2, 2, 2))
    both = evidence_picture(release.info.prepare, "near", 0.5, volume, evidence)
    alone = replace(volume, channels=(None, volume.channels[1]))
    one = evidence_picture(release.info.prepare, "near", 0.5, alone, evidence)
    own = [displayed(part, release.info.prepare) for part in volume.channels if part is not None]
    assert [name for name, _ in displayed_images(volume, release.info.prepare)] == NAMES
    assert [name for name, _ in displayed_images(alone, release.info.prepare)] == ["adc"]
    assert not np.array_equal(*own) and both.shape[0] < one.shape[0]
    assert {path.suffix for path in (tmp_path / "maps").glob("*")} <= {".png"}
    assert (run / "figures" / "explain" / "cases.png").is_file()


RULES = {"modality": ["MR"], "channels": {"t1": {"description": ["^t1"]}, "adc": {"description": ["^adc"]}}}
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def dicom(finished: Any, folder: Path, at: int, *names: str) -> Path:
    """The images of a case as DICOM series of one study, all files in one folder as a node receives them."""
    for name in names:
        planes = read_scan(finished[0] / "scans" / f"{at:03d}_{name.split('_')[0]}.nii.gz").array[0]
        mr_series(folder, "MRN1", "1.2.840.77", name, slices=len(planes), name=f"{name}-")
        for place, plane in enumerate(planes):
            image = dcmread(folder / f"{name}-{place}")
            image.Rows, image.Columns = plane.shape
            image.PixelData = plane.astype(np.uint16).tobytes()
            image.save_as(folder / f"{name}-{place}")
    return folder


@pytest.fixture(scope="module")
def inference(finished: Any) -> StudyInference:
    return StudyInference(finished[1] / "release", "int8", SeriesRules.model_validate(RULES), ResultSettings())


def answered(inference: StudyInference, folder: Path) -> StudyResponse:
    digests = {path.name: path.name for path in folder.iterdir()}
    return inference.answer(StudyRequest(folder=folder, digests=digests, previous={}, now=NOW))


def sources(response: StudyResponse) -> set[str]:
    """The series of the images that the report's groups are about, all of which are its evidence."""
    report = dcmread(io.BytesIO(response.objects[0].content))
    named = {uid for group in measurement_groups(response.objects[0].content) for uid in source_uids(group)}
    evidence = {
        str(image.ReferencedSOPInstanceUID): str(series.SeriesInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for image in series.ReferencedSOPSequence
    }
    assert named <= evidence.keys()  # the report's heat maps are evidence, too
    return {evidence[uid] for uid in named}


def test_the_node_chooses_a_series_for_each_image_of_a_case(
    finished: Any, inference: StudyInference, tmp_path: Path
) -> None:
    folder = dicom(finished, tmp_path / "study", 1, "t1", "adc")
    mr_series(folder, "MRN1", "1.2.840.77", "scout", name="scout-", kind=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    response = answered(inference, folder)
    uids = {name: str(dcmread(folder / f"{name}-0").SeriesInstanceUID) for name in NAMES}
    release = Release.open(finished[1] / "release", "int8")
    expected = release.predict(tuple(f"{folder}#{uids[name]}" for name in NAMES))
    assert (response.ending, response.decisions) == ("done", (expected.decision,)), response.reason
    assert sources(response) == set(uids.values())
    text = next(one.content for one in response.objects if one.result_type == "text")
    assert f"probability {100 * expected.probabilities['near']:.1f} %".encode() in text
    alone = dicom(finished, tmp_path / "alone", 3, "adc")  # missing_channel: zeros
    assert answered(inference, alone).ending == "done" and len(sources(answered(inference, alone))) == 1


def test_the_node_parks_what_is_no_case(finished: Any, inference: StudyInference, tmp_path: Path) -> None:
    twice = dicom(finished, tmp_path / "twice", 1, "t1", "adc", "adc_2")
    for folder, reason in (
        (twice, "adc: 2 of 3 series are left"),
        (torn(dicom(finished, tmp_path / "torn", 1, "t1", "adc")), "different frames of reference"),
    ):
        response = answered(inference, folder)
        assert response.ending == "parked" and reason in response.reason and not response.objects, response.reason
        assert "1.2.8" not in response.reason
    other = mr_series_of(tmp_path / "other")
    response = answered(inference, other)
    assert response.ending == "declined" and "for any image of a case (t1: no series of 1 is left" in response.reason
    with pytest.raises(ReleaseError, match=r"has 2 images \(t1, adc\), and there are rules for the series of none"):
        StudyInference(finished[1] / "release", "int8", None, ResultSettings())


def torn(folder: Path) -> Path:
    """The second series in another frame of reference."""
    for path in folder.glob("adc-*"):
        image = dcmread(path)
        image.FrameOfReferenceUID = "1.2.826.9"
        image.save_as(path)
    return folder


def mr_series_of(folder: Path) -> Path:
    mr_series(folder, "MRN1", "1.2.840.77", "knee")
    return folder


def test_a_running_node_answers_a_study_of_two_series(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "pacs"))
    node_process, peers = importlib.import_module("node_process"), importlib.import_module("peers")
    archive = peers.Archive()
    archive.start()
    node = node_process.NodeProcess(tmp_path, finished[1] / "release", archive, series=RULES)
    try:
        node.start()
        folder = dicom(finished, tmp_path / "study", 1, "t1", "adc")
        node.deliver(folder / "adc-0")
        assert set(peers.send(node.port, sorted(folder.iterdir()))) == {0}
        node_process.wait_for(lambda: len(archive.kept) >= 2, node)
        (report,) = [one for one in archive.objects() if str(one.SOPClassUID).endswith(".88.34")]
        (study,) = report.CurrentRequestedProcedureEvidenceSequence
        classes = [one.ReferencedSOPSequence[0].ReferencedSOPClassUID for one in study.ReferencedSeriesSequence]
        assert classes.count(MRImageStorage) == 2  # both images; beside them the heat map
    finally:
        node.close()
        archive.stop()


def test_what_takes_one_image_refuses_such_a_release(finished: Any) -> None:
    _, run, _ = finished
    said = "has 2 images \\(t1, adc\\)"
    with pytest.raises(ReleaseError, match=f"{said}: an export takes one image a case"):
        ExportSource.read(run / "release")
    with pytest.raises(DataError, match="is one image, and a case of this study has 2"):
        Release.open(run / "release").predict("scan.nii.gz")


def test_the_mlflow_model_has_a_column_for_each_image(finished: Any) -> None:
    folder, run, rows = finished
    place, model = run / "release", ReleaseModel()
    model.load_context(SimpleNamespace(artifacts={ARTIFACT: str(place)}))
    info = read_info(place)
    assert signature_of(info).inputs.input_names() == ["scan:t1", "scan:adc", "path:t1", "path:adc"]
    first, missing = rows[0], rows[3]
    paths = [str(folder / "scans" / first[f"image:{name}"]) for name in NAMES]
    asked = [
        dict(zip(("path:t1", "path:adc"), paths, strict=True)),
        dict(zip(("scan:t1", "scan:adc"), (Path(path).read_bytes() for path in paths), strict=True)),
        {"scan:adc": (folder / "scans" / missing["image:adc"]).read_bytes()},
        {"path": paths[0]},
        example(place, info),
    ]
    answers = model.predict(None, pd.DataFrame(asked)).to_dict("records")
    release = Release.open(place)
    wanted = release.predict(tuple(paths))
    for row in answers[:2]:
        assert row["decision"] == wanted.decision and not row["refused"]
        if not wanted.declined:
            assert row["probability_near"] == pytest.approx(wanted.probabilities["near"], abs=1e-9)
    alone = release.predict(("", str(folder / "scans" / missing["image:adc"])))
    assert (answers[2]["decision"], answers[2]["declined"]) == (alone.decision, alone.declined or "")
    assert "`scan:t1` and `scan:adc`" in answers[3]["refused"]
    assert not answers[4]["refused"]


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
