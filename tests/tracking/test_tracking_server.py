"""A study tracked on a real MLflow server over HTTP, which goes away twice and comes back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clinic import STUDY, Clinic, write_study
from clinic_fixtures import call, only_folder
from mlflow import MlflowClient
from ports import free_port

from medopt.config.study_file import load_study
from medopt.core.errors import ConfigError
from medopt.core.reporter import SilentReporter
from medopt.pipeline.run import run_study

SCRIPT = Path(__file__).resolve().parents[2] / "mlflow" / "server.sh"


@dataclass
class Server:
    """MLflow's server as mlflow/server.sh starts it, on a free port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["bash", str(SCRIPT), str(self.folder), str(self.port)],
            env={key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING")}
            | {"PYTHON": sys.executable},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        limit = time.monotonic() + 180
        while time.monotonic() < limit:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            except OSError:
                time.sleep(0.2)
            else:
                return
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"), free_port())
    yield found
    found.kill()


@dataclass
class Outage(SilentReporter):
    """Takes the server away while epoch 2 is logged, brings it back before epoch 3 is, and takes it before the end."""

    server: Server
    heard: list[str] = field(default_factory=list)

    def message(self, text: str) -> None:
        self.heard.append(text)
        if text.startswith("epoch   2"):
            self.server.kill()
        if text.startswith("epoch   3"):
            self.server.start()

    def stage(self, name: str, note: str) -> None:
        if name == "record":
            self.server.kill()


@dataclass(frozen=True, slots=True)
class Tracked:
    heard: list[str]
    trouble: str
    outcome: str
    summary: dict[str, Any]
    words: list[object]
    runs: Path


@pytest.fixture(scope="module")
def tracked(server: Server, clinic: Clinic, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    """The run with both outages, then the same command with the server back."""
    folder = tmp_path_factory.mktemp("served")
    compression = STUDY["compression"] | {"engines": ["onnxruntime"]}
    study_file, runs = write_study(folder, STUDY | {"name": "served", "compression": compression}), folder / "runs"
    words: list[object] = ["run", study_file, "--data", clinic.data, "--json"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", server.uri)
        patched.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        server.start()
        outage = Outage(server)
        with pytest.raises(ConfigError) as refused:
            run_study(load_study(study_file), study_file, clinic.data, runs, outage)
        outcome = json.loads((only_folder(runs, "served") / "run.json").read_text())["outcome"]
        server.start()
        done = call(*words, "--runs", runs)
        assert done.code == 0, done.stderr
        yield Tracked(outage.heard, str(refused.value), outcome, done.summary, words, runs)


@pytest.mark.long
def test_the_server_is_used_and_nothing_is_tracked_beside_it(tracked: Tracked, server: Server) -> None:
    assert {path.name for path in tracked.runs.iterdir()} == {"cache", "served"}
    run = MlflowClient(server.uri).get_run(tracked.summary["mlflow_run_id"])
    assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "released")
    assert tracked.summary["mlflow_link"].startswith(f"{server.uri}/#/experiments/")


@pytest.mark.long
def test_training_goes_on_without_the_server_and_is_caught_up(tracked: Tracked, server: Server) -> None:
    troubles = [text for text in tracked.heard if "MLflow is caught up later" in text]
    assert len(troubles) == 1
    assert server.uri in troubles[0]
    client, run_id = MlflowClient(server.uri), tracked.summary["mlflow_run_id"]
    for name in (
        "curves/loss_train",
        "curves/loss_val",
        "curves/auc_val",
        "epoch/learning_rate",
        "epoch/images_per_second",
    ):
        assert [metric.step for metric in client.get_metric_history(run_id, name)] == [1, 2, 3, 4], name


@pytest.mark.long
def test_server_that_is_gone_at_the_end_is_a_clear_refusal_and_the_same_command_ends_it(tracked: Tracked) -> None:
    assert f"MLflow at {tracked.summary['mlflow_link'].split('/#')[0]} does not answer: " in tracked.trouble
    assert "Then give the same command again" in tracked.trouble
    assert tracked.outcome == "ConfigError"


@pytest.mark.long
def test_artifacts_and_models_went_through_the_server(tracked: Tracked, server: Server) -> None:
    client = MlflowClient(server.uri)
    names = {item.path for item in client.list_artifacts(tracked.summary["mlflow_run_id"])}
    assert {"figures", "metrics.json", "release", "study.yaml", "tables"} <= names
    version = client.get_model_version_by_alias("served", "candidate")
    assert version.run_id == tracked.summary["mlflow_run_id"]
    assert list((server.folder / "artifacts").rglob("model.int8.onnx"))


def test_server_that_is_not_there_at_the_start_is_2_and_leaves_nothing(
    tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    call(*tracked.words, "--runs", tmp_path / "runs").refused(2, "MLflow at http://127.0.0.1", "unset MLFLOW_TRACKING")
    assert list((tmp_path / "runs").rglob("*")) == [tmp_path / "runs" / "served"]
