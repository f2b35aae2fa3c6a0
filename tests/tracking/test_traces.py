"""Traces of served predictions: linked to the version, without anything of a patient, and never waited for."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path

import mlflow
import pytest
from clinic_fixtures import Finished
from mlflow import MlflowClient

from medopt.tracking.fetch import DIGEST
from medopt.tracking.traces import Traces


def line(**told: object) -> logging.LogRecord:
    return logging.LogRecord("medopt.serve", logging.INFO, "", 0, json.dumps(told), None, None)


def test_a_request_becomes_a_trace_of_its_version(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"):
        monkeypatch.setenv(name, "")
    shutil.copy(finished.runs / "mlflow.db", tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store)
    version = client.get_model_version_by_alias("clinic", "candidate")
    told = {
        "event": "request", "door": "rest", "model": "clinic", "version": version.tags[DIGEST][:12], "request": "ab12",
        "images": 2, "declined": 1, "code": "200", "ms": 12.5,
    }  # fmt: skip
    traces = Traces(store)
    traces.emit(line(event="release", model="clinic", state="READY"))
    traces.emit(line(**told))
    traces.emit(line(**told | {"code": "400", "refused": "malformed", "reason": "Scan 1 of 1 is refused."}))
    traces.close()
    place = client.get_experiment_by_name("clinic served")
    assert place is not None and traces.left_out == 0
    found = mlflow.search_traces(locations=[place.experiment_id], return_type="list")
    mlflow.set_tracking_uri(None)
    assert sorted(str(one.info.state.value) for one in found) == ["ERROR", "OK"]
    for one in found:
        assert one.info.trace_metadata["mlflow.modelId"] == (version.source or "").removeprefix("models:/")
        assert one.info.execution_duration in (12, 13)


def test_a_store_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    traces, begun = Traces("http://127.0.0.1:9"), time.perf_counter()
    for _ in range(5):
        traces.emit(line(event="request", model="clinic", version="", images=1, code="200", ms=1.0))
    assert time.perf_counter() - begun < 0.5
    traces.close()
    mlflow.set_tracking_uri(None)
    assert traces.left_out == 5
