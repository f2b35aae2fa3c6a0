"""`medopt serve --traces`: each request as a trace in MLflow, linked to the registered version that answered.

It hears what the server's log says, and so knows no more than that: counts, times, outcomes and hashes, nothing of a
patient. Written beside the serving; where the store is slow or gone, traces are left out and counted, never waited for.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import mlflow
from mlflow import MlflowClient

from medopt.tracking.credentials import require_encrypted
from medopt.tracking.fetch import DIGEST

_MOST = 1000  # traces that wait for the store
_OUTCOME = ("declined", "code", "refused", "reason")


class Traces(logging.Handler):
    """Takes the server's lines (JSON) and writes those of requests to the experiment `NAME served`."""

    def __init__(self, store: str) -> None:
        super().__init__()
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"  # it has a thread of its own here
        require_encrypted(store)
        mlflow.set_tracking_uri(store)
        self._client = MlflowClient(store, store)
        self._places: dict[tuple[str, str], tuple[str, str]] = {}
        self._waiting: queue.Queue[tuple[int, Mapping[str, Any]] | None] = queue.Queue(_MOST)
        self.left_out = 0
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits."""
        line = json.loads(record.getMessage())
        if line.get("event") == "request" and line.get("model"):
            try:
                self._waiting.put_nowait((time.time_ns(), line))
            except queue.Full:
                self.left_out += 1

    def close(self) -> None:
        """Write what waits, for as long as somebody who stops a server will wait."""
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
            self._thread.join(5)
        super().close()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._write(*item)
            except Exception:  # each kind of store has its own
                self.left_out += 1

    def _write(self, ended: int, request: Mapping[str, Any]) -> None:
        experiment, model = self._place(request["model"], request["version"])
        outcome = {key: request[key] for key in _OUTCOME if key in request}
        facts = {key: value for key, value in request.items() if key not in outcome}
        span = mlflow.start_span_no_context(
            "predict",
            inputs={"images": request["images"]},
            attributes={key: str(value) for key, value in facts.items()},
            metadata={"mlflow.modelId": model} if model else None,
            tags={"code": request["code"], "release": request["version"]},
            experiment_id=experiment,
            start_time_ns=ended - int(request["ms"] * 1e6),
        )
        span.end(outputs=outcome, status="OK" if request["code"] == "200" else "ERROR", end_time_ns=ended)

    def _place(self, name: str, version: str) -> tuple[str, str]:
        """The experiment, and the logged model of the registered version whose release it is, where there is one."""
        if (name, version) not in self._places:
            title = f"{name} served"
            found = self._client.get_experiment_by_name(title)
            experiment = found.experiment_id if found else self._client.create_experiment(title)
            model = ""
            for one in self._client.search_model_versions(f"name = '{name}'"):
                if version and one.tags.get(DIGEST, "").startswith(version):
                    model = (one.source or "").removeprefix("models:/")
            self._places[name, version] = str(experiment), model
        return self._places[name, version]
