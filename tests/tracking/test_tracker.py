"""What MLflow knows of a run: asked of its own client, on sqlite and on a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from clinic import STUDY, make_clinic, useless_data, write_study
from clinic_fixtures import Finished, call, only_folder
from mlflow import MlflowClient, MlflowException
from mlflow.entities import Run
from ports import free_port

from medopt.config import Study
from medopt.core.records import EpochRecord
from medopt.tracking.pages import COLUMNS
from medopt.tracking.settings import changes, flatten, parameters
from medopt.tracking.tracker import Tracker

SERVER = Path(__file__).parents[2] / "mlflow" / "server.sh"


@pytest.fixture
def store(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowClient]:
    """The finished run's store, also for MLflow's functions that take no address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.store)
    mlflow.set_tracking_uri(finished.store)
    yield MlflowClient(finished.store)
    mlflow.set_tracking_uri(None)


@pytest.fixture
def tracked(store: MlflowClient, finished: Finished) -> Run:
    return store.get_run(finished.metrics["mlflow_run_id"])


@pytest.fixture
def runs(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with a store (copied: to make one takes seconds) and prepared images."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs"
    shutil.copytree(finished.runs / "cache", folder / "cache")
    shutil.copy(finished.runs / "mlflow.db", folder)
    return folder


def test_parameters_are_what_differs_from_the_defaults_and_the_digest_of_the_rest(
    tracked: Run, store: MlflowClient, finished: Finished
) -> None:
    text = (finished.folder / "study.yaml").read_text()
    resolved = {key: str(value) for key, value in flatten(yaml.safe_load(text)).items()}
    params = dict(tracked.data.params)
    count, _, digest = params.pop("defaults").partition(" settings, sha256 ")
    assert params.items() <= resolved.items()
    assert params["training.epochs"] == "4" and params["data.labels"] == "['clear', 'blob']"
    assert params["seed"] == "0"  # a default, but it tells runs apart
    assert not {"training.patience", "domain.enabled", "evaluation.confidence"} & params.keys()  # these are defaults
    assert len(params) + int(count) == len(resolved)
    assert len(params) < 40 and len(digest) == 16


def test_the_same_defaults_have_the_same_digest(tiny_study: Callable[..., Study]) -> None:
    study = tiny_study()
    other = study.model_copy(update={"seed": 5})
    changed = study.model_copy(update={"evaluation": study.evaluation.model_copy(update={"confidence": 0.9})})
    assert parameters(study)["defaults"] == parameters(other)["defaults"] != parameters(changed)["defaults"]
    assert parameters(changed)["evaluation.confidence"] == "0.9"
    assert changes(parameters(study), changed) == ["evaluation.confidence: 0.95 -> 0.9"]
    assert changes(parameters(changed), study) == ["evaluation.confidence: 0.9 -> 0.95"]
    every = {key: str(value) for key, value in flatten(study.model_dump(mode="json")).items()}
    assert changes(every, study) == []  # a run of an older version has all of them
    assert changes(every, changed) == ["evaluation.confidence: 0.95 -> 0.9"]


def test_dataset_inputs_have_the_digest_and_their_split(tracked: Run) -> None:
    found = {
        item.dataset.name: (item.dataset, {tag.key: tag.value for tag in item.tags})
        for item in tracked.inputs.dataset_inputs
    }
    assert set(found) == {"clinic-train", "clinic-val", "clinic-test"}
    for split, count in (("train", 36), ("val", 18), ("test", 18)):
        dataset, tags = found[f"clinic-{split}"]
        assert dataset.digest == tracked.data.tags["manifest_digest"][:16]
        assert tags == {"mlflow.data.context": split, "images": str(count)}


def test_tags_say_where_the_run_comes_from(tracked: Run, finished: Finished) -> None:
    provenance = json.loads((finished.release / "release.json").read_text())["provenance"]
    tags = tracked.data.tags
    assert tracked.info.status == "FINISHED"
    assert (tags["study"], tags["outcome"], tags["run_folder"]) == ("clinic", "released", finished.folder.name)
    assert (tags["gate"], tags["device"], tags["seed"]) == ("passed", "cpu", "0")
    assert tags["model verdict"] == "better than chance"
    day, time_of_day, short = finished.folder.name.split("-")
    assert tracked.info.run_name == (
        f"{short} seed 0 {tags['model']} {day[:4]}-{day[4:6]}-{day[6:]} "
        f"{time_of_day[:2]}:{time_of_day[2:4]}:{time_of_day[4:]}"
    )
    assert "mlflow.user" in tags and "mlflow.source.name" in tags
    assert tags["manifest_digest"] == provenance["manifest_digest"]
    assert tags["code"] == provenance["code"].get("commit", provenance["code"]["version"])
    assert tags["machine"] == provenance["machine"]["cpu"]


def test_description_is_the_first_page_of_the_report(tracked: Run, finished: Finished) -> None:
    told, test = tracked.data.tags["mlflow.note.content"], finished.metrics["test"]
    assert told.startswith("🟢 **the model is better than chance**: test AUC of int8 ")
    assert "🟢 **int8 passed the gate**: " in told and "Is there a bright blob?" in told
    for kind in ("float", "int8"):
        area = test[kind]["auc"]
        assert told.count(f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})") >= 2, kind
    assert "| operating point (youden) |" in told and "**For whom not?**" in told
    assert len(told) < 8000


def test_every_epoch_stands_there_once(store: MlflowClient, tracked: Run, finished: Finished) -> None:
    history = json.loads((finished.folder / "stages" / "train.json").read_text())["facts"]["history"]
    for name, key in (
        ("curves/loss_train", "train_loss"),
        ("curves/loss_val", "val_loss"),
        ("curves/auc_val", "val_metric"),
    ):
        points = store.get_metric_history(tracked.info.run_id, name)
        assert [point.step for point in points] == [1, 2, 3, 4]
        assert [point.value for point in points] == [epoch[key] for epoch in history]
    assert [name for name in tracked.data.metrics if name.startswith("system/")]


def test_figures_are_metrics(tracked: Run, finished: Finished) -> None:
    found, metrics = tracked.data.metrics, finished.metrics
    for kind in ("float", "int8"):
        for name in ("auc", "average_precision", "accuracy", "sensitivity", "specificity", "brier", "ece"):
            assert found[f"test_{kind}/{name}"] == metrics["test"][kind][name]["value"]
        assert found[f"size_bytes/{kind}"] == metrics["size_bytes"][kind]
    assert found["time_ms/onnxruntime_int8"] == metrics["latency_ms"]["onnxruntime_int8"]
    assert len([name for name in found if not name.startswith("system/")]) < 70


def test_the_headline_is_of_the_network_and_of_the_int8_model(tracked: Run, finished: Finished) -> None:
    metrics, test = finished.metrics, finished.metrics["test"]
    told = {name.partition("/")[2]: value for name, value in tracked.data.metrics.items() if name[:9] == "headline/"}
    served = metrics["latency_ms"][f"{metrics['engine']['int8']}_int8"]
    assert told == {
        "auc_val": metrics["validation"]["float"]["auc"]["value"],
        "auc_test": test["float"]["auc"]["value"],
        "sensitivity_test": test["float"]["sensitivity"]["value"],
        "specificity_test": test["float"]["specificity"]["value"],
        "auc_test_int8": test["int8"]["auc"]["value"],
        "sensitivity_test_int8": test["int8"]["sensitivity"]["value"],
        "specificity_test_int8": test["int8"]["specificity"]["value"],
        "time_ms_int8": served,
    }
    assert told.keys() == set(COLUMNS)  # what the list of runs shows


def test_artifacts_are_the_files_of_the_run(
    store: MlflowClient, tracked: Run, finished: Finished, tmp_path: Path
) -> None:
    got = Path(store.download_artifacts(tracked.info.run_id, "", str(tmp_path)))
    files = {path.relative_to(got).as_posix(): path.read_bytes() for path in got.rglob("*") if path.is_file()}
    kept = {"tables/predictions.csv": "predictions.csv", "tables/shift_predictions.csv": "shift_predictions.csv"}
    kept |= {name: name for name in ("study.yaml", "metrics.json", "report.html")}
    kept |= {f"models/{kind}.onnx": f"models/{kind}.onnx" for kind in ("float", "int8")}
    for place in ("figures", "release"):
        kept |= {
            name: name
            for path in (finished.folder / place).rglob("*")
            if path.is_file()
            for name in [path.relative_to(finished.folder).as_posix()]
        }
    assert files == {name: (finished.folder / place).read_bytes() for name, place in kept.items()}


def epochs(count: int) -> list[EpochRecord]:
    return [EpochRecord(e, 1 / (e + 1), 0.5, 0.1 * e, 1e-3, 100.0, 1.0, 0.01) for e in range(count)]


def steps(client: MlflowClient, run_id: str) -> list[int]:
    found = [
        [p.step for p in client.get_metric_history(run_id, name)] for name in ("curves/loss_train", "epoch/seconds")
    ]
    assert found[0] == found[1]
    return found[0]


def test_history_goes_on_after_a_crash(runs: Path, tiny_study: Callable[..., Study]) -> None:
    study, client = tiny_study(), MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    first = Tracker(study, runs, None, "tiny")
    assert first.sync_history(epochs(2)) is None
    second = Tracker(study, runs, first.run_id, "tiny")
    assert second.run_id == first.run_id
    for count in (2, 3, 3, 5):
        assert second.sync_history(epochs(count)) is None
    second.end("released")
    assert steps(client, first.run_id) == [1, 2, 3, 4, 5]
    assert [p.value for p in client.get_metric_history(first.run_id, "curves/loss_train")] == [
        1 / e for e in range(1, 6)
    ]


def test_history_has_no_gap_after_a_store_that_failed(
    runs: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, real = Tracker(tiny_study(), runs, None, "tiny"), MlflowClient.log_batch
    fails = iter(["before", "before", "after", "no", "no", "no", "no", "no"])

    def log_batch(client: MlflowClient, *args: Any, **named: Any) -> None:
        """Gone before it wrote, or gone after, so that its answer was lost."""
        fault = next(fails)
        if fault != "before":
            real(client, *args, **named)
        if fault != "no":
            raise MlflowException("the store is gone")

    assert tracker.sync_history(epochs(1)) is None
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    for count in (2, 3, 4):
        told = tracker.sync_history(epochs(count)) or ""
        assert "Training goes on" in told and "the store is gone" in told
    assert tracker.sync_history(epochs(5)) is None
    assert tracker.sync_history(epochs(5)) is None
    monkeypatch.undo()
    tracker.end("released")
    assert steps(MlflowClient(tracker.uri), tracker.run_id) == [1, 2, 3, 4, 5]


def only_run(runs: Path, name: str) -> Run:
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return found


def test_refused_gate_leaves_no_release_and_no_candidate(finished: Finished, runs: Path, tmp_path: Path) -> None:
    study = STUDY | {"name": "strict", "compression": STUDY["compression"] | {"engines": ["onnxruntime"]}}
    words = [write_study(tmp_path, study), "--data", finished.clinic.data, "--runs", runs, "--json"]
    strict = ("--set", "compression.gate.min_speedup=1000")
    done = call("run", *words, *strict)
    done.refused(5, "ReleaseRefused", "not faster", "wanted above 1000x", "there is no release")
    folder, found = only_folder(runs, "strict"), only_run(runs, "strict")
    gate = json.loads((folder / "metrics.json").read_text())["gate"]
    assert gate["passed"] is False
    assert "wanted above 1000x" in gate["reasons"][0]
    assert done.summary["gate"] == gate
    assert not (folder / "release").exists()
    assert (found.info.status, found.data.tags["outcome"]) == ("FINISHED", "gate refused")
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert [model.name for model in client.search_registered_models()] == ["clinic"]
    kept = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert "release" not in kept and "models" in kept  # to see what was refused
    again = call("run", *words, *strict)
    lines = [line.rstrip() for line in again.stderr.splitlines()]
    assert again.code == 5
    assert "train      unchanged, skipped" in lines and "judge" in lines  # the same command measures anew
    call("run", *words, *strict, "--override", "Dr. Winter").refused(2, "ConfigError", "go together")
    named = ("--override", "Dr. Winter", "--reason", "the server has another processor")
    released = call("run", *words, *strict, *named)
    assert released.code == 0 and "released all the same by Dr. Winter" in released.stdout
    for text in ((folder / "release" / "CARD.md").read_text(), (folder / "report.html").read_text()):
        assert "Dr. Winter" in text and "the server has another processor" in text
    assert call("verify", folder / "release").code == 0
    found = only_run(runs, "strict")
    assert found.data.tags["outcome"] == "released against the gate"
    assert client.get_registered_model("strict").aliases == {}  # nobody's candidate
    call("promote", "strict", "1", "--reason", "x", "--runs", runs).refused(5, "ReleaseRefused", "overridden")
    assert call("run", *words, *strict).code == 0  # the name stays with the run
    told = json.loads((folder / "run.json").read_text())
    told["override"]["model"] = "0" * 64  # as where the model is another one since
    (folder / "run.json").write_text(json.dumps(told))
    call("run", *words, *strict).refused(5, "ReleaseRefused", "not faster")
    assert not (folder / "release").exists()


def test_a_useless_model_has_no_release_and_no_alias_without_a_name(
    finished: Finished, runs: Path, tmp_path: Path
) -> None:
    """No image tells the labels; int8 passes its gate all the same."""
    data = useless_data(finished.clinic, tmp_path / "data")
    quick = {"evaluation": {"bootstrap": 100, "shift_cases": 0, "explain": 0}, "domain": {"enabled": False}}
    compression = STUDY["compression"] | {"engines": ["onnxruntime"]}
    training = STUDY["training"] | {"epochs": 1}
    study = STUDY | quick | {"name": "useless", "compression": compression, "training": training}
    words = ["run", write_study(tmp_path, study), "--data", data, "--runs", runs, "--json"]
    done = call(*words)
    done.refused(5, "ReleaseRefused", "the model is not shown to be better than chance", "--override NAME")
    assert done.summary["gate"]["passed"] and done.summary["verdict"]["reasons"]
    assert done.stdout.startswith("the model is not shown to be better than chance: ")
    folder, found = only_folder(runs, "useless"), only_run(runs, "useless")
    assert not (folder / "release").exists()
    assert (found.data.tags["outcome"], found.data.tags["gate"]) == ("model refused", "passed")
    assert found.data.tags["model verdict"] == "not shown to be better than chance"
    assert found.data.tags["mlflow.note.content"].startswith("🔴 **the model is not shown to be better than chance**")
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    assert "useless" not in [model.name for model in client.search_registered_models()]
    again = call(*words)
    assert again.code == 5 and "evaluate   unchanged, skipped" in again.stderr  # nothing is measured anew for it
    compared = call("compare", folder)
    assert "not shown to be better than chance" in compared.stdout.splitlines()[0]
    released = call(*words, "--override", "Dr. Winter", "--reason", "for a class on leaks")
    assert released.code == 0, released.stderr
    card = (folder / "release" / "CARD.md").read_text()
    assert card.index("not shown to be better than chance") < card.index("Dr. Winter") < card.index("Intended use")
    assert client.get_registered_model("useless").aliases == {}
    (version,) = client.search_model_versions("name='useless'")
    assert (version.tags["gate"], version.tags["model verdict"].partition(":")[0]) == ("passed", "overridden")
    call("promote", "useless", "1", "--reason", "x", "--runs", runs).refused(5, "ReleaseRefused", "better than chance")


def test_run_that_fails_is_marked_failed(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic = make_clinic(tmp_path)
    study = write_study(tmp_path, STUDY | {"name": "failing"})
    words = ["run", study, "--data", clinic.data, "--runs", runs]
    scan = clinic.data / "scans" / "007.dcm"
    whole = scan.read_bytes()
    scan.write_bytes(whole[:-500])
    call(*words).refused(3, "DataError", "007.dcm")
    first = only_run(runs, "failing")
    assert (first.info.status, first.data.tags["outcome"]) == ("FAILED", "DataError")
    scan.write_bytes(whole)

    def broken(*args: Any, **named: Any) -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("medopt.pipeline.stages.train.train", broken)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        call(*words)
    second = only_run(runs, "failing")
    assert second.info.run_id == first.info.run_id  # it went on in the same run
    assert (second.info.status, second.data.tags["outcome"]) == ("FAILED", "crashed")
    assert mlflow.active_run() is None


@pytest.fixture
def server(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """mlflow/server.sh on a free port."""
    port = free_port()
    command = ["bash", str(SERVER), str(runs), str(port)]
    kept = os.environ | {"PYTHON": sys.executable}
    process = subprocess.Popen(
        command, env=kept, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    uri, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        mlflow.set_tracking_uri(None)


def test_server_is_used_and_may_go(
    server: tuple[str, subprocess.Popen[bytes]],
    runs: Path,
    tmp_path: Path,
    tiny_study: Callable[..., Study],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, process = server
    study, elsewhere = tiny_study(), tmp_path / "elsewhere"
    tracker = Tracker(study, elsewhere, None, "tiny")
    assert tracker.link.startswith(f"{uri}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}")
    tracker.log_start(study, "d" * 64, {"study": "tiny"}, {"train": 4})
    assert tracker.sync_history(epochs(3)) is None
    (tmp_path / "note.txt").write_text("kept by the server")
    tracker.log_files({"tables": tmp_path / "note.txt"})
    tracker.end("released")
    assert not elsewhere.exists()
    client = MlflowClient(uri)
    found = client.get_run(tracker.run_id)
    assert (found.info.status, found.data.tags["outcome"]) == ("FINISHED", "released")
    assert found.data.params["name"] == "tiny"
    assert found.inputs.dataset_inputs[0].dataset.digest == "d" * 16
    assert steps(client, tracker.run_id) == [1, 2, 3]
    (kept,) = (runs / "artifacts").rglob("note.txt")
    assert kept.read_text() == "kept by the server"

    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told = [tracker.sync_history(epochs(4)) or "" for _ in range(2)]
    assert all("Training goes on" in text and uri in text and "unset MLFLOW_TRACKING_URI" in text for text in told)


def test_a_run_whose_id_was_never_written_down_is_found_by_its_name(
    tmp_path: Path, tiny_study: Callable[..., Study]
) -> None:
    """A process may be killed between MLflow's answer and the run folder's note of it."""
    first = Tracker(tiny_study(), tmp_path, None, "tiny 1")
    first.end("interrupted", "KILLED")
    again, other = Tracker(tiny_study(), tmp_path, None, "tiny 1"), None
    again.end("released")
    other = Tracker(tiny_study(), tmp_path, None, "tiny 2")
    other.end("released")
    assert again.run_id == first.run_id != other.run_id


def test_a_store_is_made_whole_or_not_at_all(tmp_path: Path, tiny_study: Callable[..., Study]) -> None:
    """Killed while MLflow's tables are made, a half-made store would stop every later run."""
    (tmp_path / ".mlflow.db.1-2.part").write_bytes(b"half a store, left by a process that was killed")
    script = (
        "import os, sys; from pathlib import Path; import medopt.tracking.store as store\n"
        "store._initialize_tables = lambda engine: (engine.connect().exec_driver_sql('create table runs (a)'), "
        "os._exit(9))\n"
        "store.open_store(Path(sys.argv[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    assert not (tmp_path / "mlflow.db").exists()
    Tracker(tiny_study(), tmp_path, None, "tiny").end("released")
    assert sorted(path.name for path in tmp_path.iterdir() if "mlflow" in path.name) == [".mlflow.lock", "mlflow.db"]
