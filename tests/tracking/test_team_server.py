"""From a laptop to a team's server: 20 runs moved, looked at in a real browser, backed up, destroyed and restored."""

from __future__ import annotations

import hashlib
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import onnx
import psutil
import pytest
from browser import CHROMIUM, Page, browser
from clinic_fixtures import Finished, call, start
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.server.auth.client import AuthServiceClient
from onnx import TensorProto, helper
from team_server import Team, team_server, why_not

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.records import EpochRecord
from medopt.release.layout import SUMS
from medopt.tracking.fetch import fetch_release
from medopt.tracking.parent import ParentRun
from medopt.tracking.store import MIGRATED_FROM
from medopt.tracking.tracker import PARENT, Tracker

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(why_not()), reason=why_not() or "here")]
COUNT = 20


def epochs(count: int) -> list[EpochRecord]:
    return [EpochRecord(e, 1 / (e + 1), 0.5, 0.1 * e, 1e-3, 100.0, 1.0, 0.01) for e in range(count)]


@pytest.fixture(scope="module")
def alone() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield patched
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def team(alone: pytest.MonkeyPatch) -> Iterator[Team]:
    with team_server() as found:
        alone.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        alone.setenv("MLFLOW_TRACKING_PASSWORD", found.password)
        yield found


@pytest.fixture(scope="module")
def laptop(
    finished: Finished,
    tiny_study: Callable[..., Study],
    tmp_path_factory: pytest.TempPathFactory,
    alone: pytest.MonkeyPatch,
) -> Path:
    """A runs folder with a whole run, and 19 small ones of the real tracker: some below another, one with models."""
    runs = tmp_path_factory.mktemp("laptop") / "runs"
    runs.mkdir()
    shutil.copy(finished.runs / "mlflow.db", runs)
    study = tiny_study()
    group = ParentRun(study, runs, None, "tiny group", {"kind": "seeds and folds"})
    for number in range(COUNT - 2):
        tracker = Tracker(study, runs, None, f"tiny {number}", group.run_id if number < 3 else "")
        tracker.log_start(study, "d" * 64, {"study": "tiny", "number": str(number)}, {"train": 4, "val": 2})
        tracker.sync_history(epochs(2 + number % 3))
        tracker.log_figures({"test": {"int8": {"auc": {"value": number / COUNT, "low": None}}}})
        note = runs / "note.txt"
        note.write_text(f"note {number}")
        tracker.log_files({"tables": note})
        if number == 0:
            model = onnx.load(small_model(runs / "small.onnx"))
            with mlflow.start_run(run_id=tracker.run_id):
                mlflow.onnx.log_model(model, name="float")  # as older versions did
                mlflow.onnx.log_model(model, name="int8", registered_model_name="tiny")
        if number == 1:
            tracker.end("DataError", "FAILED")
        else:
            tracker.end("released")
    group.log_figures({"mean": {"int8": {"auc": 0.5}}})
    group.end("done")
    return runs


def small_model(path: Path) -> Path:
    shape = ["batch", 1, 16, 16]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def every(client: MlflowClient) -> list[Run]:
    ids = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(ids, max_results=1000))


def files_of(client: MlflowClient, run_id: str, folder: Path) -> dict[str, str]:
    got = Path(client.download_artifacts(run_id, "", str(folder)))
    paths = [path for path in got.rglob("*") if path.is_file()]
    return {path.relative_to(got).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def told(client: MlflowClient, run: Run, folder: Path) -> dict[str, Any]:
    """All that the API says of a run but the ids and addresses of its store."""
    histories = {
        key: {(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, key)}
        for key in run.data.metrics
    }
    inputs = [(one.dataset.to_dictionary(), sorted((t.key, t.value) for t in one.tags)) for one in
              run.inputs.dataset_inputs]  # fmt: skip
    models = [client.get_logged_model(one.model_id) for one in run.outputs.model_outputs] if run.outputs else []
    return {
        "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
        "params": run.data.params,
        "tags": {k: v for k, v in run.data.tags.items() if k != PARENT and "medopt.migrated" not in k},
        "histories": histories,
        "inputs": sorted(inputs, key=str),
        "models": sorted(
            (m.name, str(m.status), sorted(m.params.items()), sorted((x.key, x.value) for x in m.metrics or []))
            for m in models
        ),
        "files": files_of(client, run.info.run_id, folder / run.info.run_id),
    }


@pytest.fixture(scope="module")
def moved(team: Team, laptop: Path) -> dict[str, Any]:
    """The move, killed in the middle, and the same command again; what it said."""
    client, words = MlflowClient(team.uri), ["mlflow", "migrate", "--runs", laptop, "--to", team.uri, "--json"]
    process = start(*words, MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=team.password)
    limit = time.monotonic() + 120
    while len(every(client)) < 4:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert 4 <= len(every(client)) < COUNT
    done = call(*words)
    assert done.code == 0, done.stderr
    return done.summary


def test_it_says_where_it_listens_and_keeps_its_passwords_to_itself(team: Team) -> None:
    for path in (team.folder / "secrets").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{team.uri}/api/2.0/mlflow/experiments/search?max_results=1")
    words = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    secrets = [path.read_text().strip() for path in (team.folder / "secrets").glob("*_*")]
    assert len(secrets) == 3 and not any(secret in line for secret in secrets for line in words)


def test_twenty_runs_are_the_same_by_api(moved: dict[str, Any], team: Team, laptop: Path, tmp_path: Path) -> None:
    here, there = MlflowClient(f"sqlite:///{laptop / 'mlflow.db'}"), MlflowClient(team.uri)
    before, after = every(here), {run.data.tags[MIGRATED_FROM]: run for run in every(there)}
    assert len(before) == len(after) == len(every(there)) == COUNT
    for run in before:
        copy = after[run.info.run_id]
        assert told(there, copy, tmp_path / "there") == told(here, run, tmp_path / "here"), run.info.run_name
        parent = run.data.tags.get(PARENT)
        assert copy.data.tags.get(PARENT) == (after[parent].info.run_id if parent else None)
    assert sum(PARENT in run.data.tags for run in before) == 3
    rows = {row["what"]: row for row in moved["rows"]}
    assert (rows["runs"]["found"], moved["checked"]) == (COUNT, COUNT)
    assert 0 < rows["runs"]["copied"] < COUNT  # those of the first try were not sent again


def test_models_versions_and_aliases_work_from_the_server(
    moved: dict[str, Any], team: Team, finished: Finished, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(team.uri)
    client = MlflowClient(team.uri)
    assert {model.name for model in client.search_registered_models()} == {"clinic", "tiny"}
    version = client.get_model_version_by_alias("clinic", "candidate")
    run = client.get_run(version.run_id)
    assert run.data.tags[MIGRATED_FROM] == finished.metrics["mlflow_run_id"]
    info = mlflow.models.get_model_info("models:/clinic@candidate")
    assert (info.run_id, info.model_id) == (version.run_id, version.source.removeprefix("models:/"))
    assert version.tags["gate"] == "passed"
    kept = fetch_release("models:/clinic@candidate", team.uri, tmp_path)
    assert (kept.place / SUMS).read_bytes() == (finished.release / SUMS).read_bytes()


def test_the_same_command_again_moves_nothing(moved: dict[str, Any], team: Team, laptop: Path) -> None:
    done = call("mlflow", "migrate", "--runs", laptop, "--to", team.uri, "--json")
    assert [row["copied"] for row in done.summary["rows"]] == [0] * 6
    assert len(every(MlflowClient(team.uri))) == COUNT


def test_a_run_folder_goes_on_in_the_copy_of_its_run(
    moved: dict[str, Any], team: Team, laptop: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = MlflowClient(f"sqlite:///{laptop / 'mlflow.db'}"), MlflowClient(team.uri)
    begun = next(run for run in every(here) if run.info.run_name == "tiny 2").info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    tracker = Tracker(tiny_study(), laptop, begun, "a name that it was not begun with")
    assert tracker.sync_history(epochs(6)) is None
    tracker.end("released")
    assert tracker.origin == begun != tracker.run_id
    assert [m.step for m in there.get_metric_history(tracker.run_id, "curves/loss_train")] == [1, 2, 3, 4, 5, 6]
    assert len(every(there)) == COUNT


def test_who_is_not_let_in_is_told_how(
    team: Team, laptop: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    AuthServiceClient(team.uri).create_user("reader", "a long enough password")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    MlflowClient(team.uri).create_experiment("closed")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    with pytest.raises(ConfigError, match=r"401.*MLFLOW_TRACKING_PASSWORD.*credentials"):
        Tracker(tiny_study(), laptop, None, "nobody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long enough password")
    closed = tiny_study().model_copy(update={"name": "closed"})
    with pytest.raises(ConfigError, match=r"403.*EDIT on the experiment"):
        Tracker(closed, laptop, None, "reads only")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium"), 1440, 1300) as found:
        yield found


@pytest.fixture(scope="module")
def run(moved: dict[str, Any], team: Team, finished: Finished) -> Run:
    wanted = finished.metrics["mlflow_run_id"]
    return next(run for run in every(MlflowClient(team.uri)) if run.data.tags[MIGRATED_FROM] == wanted)


def at(team: Team, run: Run, part: str = "") -> str:
    base = f"{team.uri}/#/experiments/{run.info.experiment_id}/runs"
    return f"{base}/{run.info.run_id}{part}?workflowType=machine_learning" if part != "list" else (
        f"{base}?workflowType=machine_learning"
    )  # fmt: skip


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_signs_in_and_finds_the_run_in_its_list(page: Page, team: Team, run: Run) -> None:
    page.open(team.uri)
    page.until("location.protocol === 'chrome-error:'")  # not let in
    page.open(team.uri.replace("://", f"://admin:{team.password}@"))
    page.shows("Experiments", seconds=60)
    assert not page.run("document.body.innerText.includes('telemetry')")
    page.open(at(team, run, "list"))
    page.shows("seed 0 ResNet-14", "matching run", "admin")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_run_page_begins_with_the_verdict(page: Page, team: Team, run: Run) -> None:
    page.open(at(team, run))
    page.shows(str(run.info.run_name), "passed the gate", "AUC on 18 test images", "clinic-train", "outcome")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_charts_are_drawn(page: Page, team: Team, run: Run) -> None:
    page.open(at(team, run, "/model-metrics"))
    page.shows("curves (3)", "epoch (4)", "loss_train", "auc_val", "learning_rate")
    page.until("document.querySelectorAll('.js-plotly-plot .scatterlayer .js-line').length >= 3")
    for number in range(3):  # a line of the plot's own blue, not a spinner
        seen = page.pixels(f"document.querySelectorAll('.js-plotly-plot')[{number}]").astype(int)
        blue = (seen[..., 2] > 120) & (seen[..., 2] - seen[..., 0] > 60)
        assert blue.sum() > 50, number


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_report_opens_among_the_artifacts(page: Page, team: Team, run: Run) -> None:
    page.open(at(team, run, "/artifacts/report.html"))
    limit = time.monotonic() + 30
    while "Does it work?" not in str(page.framed("document.body && document.body.innerText")):
        assert time.monotonic() < limit
        time.sleep(0.2)
    drawings = "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().width > 0)"
    assert page.framed(f"{drawings}.length") >= 6
    assert page.framed("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_models_page_shows_the_alias(page: Page, team: Team, moved: dict[str, Any]) -> None:
    page.open(f"{team.uri}/#/models/clinic?workflowType=machine_learning")
    page.shows("clinic", "@ candidate", "Version")


def test_backup_destroyed_and_restored_is_the_same_by_api(moved: dict[str, Any], team: Team, tmp_path: Path) -> None:
    client = MlflowClient(team.uri)
    chosen = [run for run in every(client) if run.data.tags["mlflow.runName"] in ("tiny 0", "tiny group")]
    names = sorted(str(run.info.run_name) for run in every(client))
    before = [told(client, run, tmp_path / "before") for run in chosen]
    backups = tmp_path / "backups"
    done = team.script("backup.sh", backups)
    assert done.returncode == 0, done.stderr
    refused = team.script("restore.sh", next(backups.glob("mlflow-*")))
    assert refused.returncode == 2 and "stop MLflow's server first" in refused.stderr
    assert team.stop() == 0
    for left in ("postgres", "artifacts"):  # the disk is lost; the passwords are kept somewhere else
        shutil.rmtree(team.folder / left)
    (team.folder / "artifacts").mkdir()
    team.start(DATABASE_ONLY="1")
    broken = tmp_path / "broken"
    shutil.copytree(next(backups.glob("mlflow-*")), broken)
    with next(broken.glob("*.dump")).open("r+b") as stream:
        stream.write(b"torn")
    torn = team.script("restore.sh", broken)
    assert torn.returncode == 2 and "not what was backed up" in torn.stderr
    done = team.script("restore.sh", next(backups.glob("mlflow-*")))
    assert done.returncode == 0, done.stderr
    team.stop()
    team.start()
    assert sorted(str(run.info.run_name) for run in every(client)) == names
    assert [told(client, client.get_run(run.info.run_id), tmp_path / "after") for run in chosen] == before
    assert client.get_model_version_by_alias("clinic", "candidate").version
