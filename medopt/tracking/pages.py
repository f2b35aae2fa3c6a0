"""MLflow's pages: their addresses, what an experiment's page shows first, and `medopt ui`, which serves them.

An experiment carries three tags that the pages read: its kind (else they open as for language models), the study's
question, and a saved view whose columns are the headline figures and whose first charts are these and the losses.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from mlflow.tracking import MlflowClient

from medopt.core.errors import ConfigError
from medopt.tracking.errors import answering, uninterrupted

NOTE, KIND = "mlflow.note.content", "mlflow.experimentKind"
VIEW = "results"  # the name of the saved view in an address
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
MODE = "workflowType=machine_learning"  # else the pages open as for language models
HEADLINE = "headline"
COLUMNS = (
    *("auc_test", "auc_val", "sensitivity_test", "specificity_test"),
    *("auc_test_int8", "sensitivity_test_int8", "specificity_test_int8", "time_ms_int8"),
)
"""The headline figures of a run, as metrics `headline/NAME`: of the network as trained, and of the int8 model."""
LOSSES = ("curves/loss_train", "curves/loss_val")
START_SECONDS = 120.0


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"{_base(uri)}/#/experiments/{experiment_id}/runs/{run_id}?{MODE}"


def list_of(uri: str, experiment_id: str) -> str:
    """The address of an experiment's runs, with the headline figures as columns."""
    return f"{_base(uri)}/#/experiments/{experiment_id}/runs?{MODE}&viewStateShareKey={VIEW}"


def _base(uri: str) -> str:
    """The address of the pages without user and password, which would stand in reports and logs."""
    if not uri.startswith("http"):
        return "http://127.0.0.1:5000"
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def experiment_tags(question: str) -> dict[str, str]:
    """What an experiment's page begins with."""
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": json.dumps(_view(), separators=(",", ":"))}
    return {KIND: "custom_model_development", NOTE: question, VIEW_TAG: json.dumps(view, separators=(",", ":"))}


def _view() -> dict[str, Any]:
    """The state of MLflow's list of runs: its columns, and its charts in their sections."""
    figures = [f"metrics.`{HEADLINE}/{name}`" for name in COLUMNS]
    columns = [*figures, "params.`seed`", "tags.`gate`", "attributes.`Duration`"]
    losses = {"displayName": "loss, training and validation", "selectedMetricKeys": LOSSES, "metricSectionId": HEADLINE}
    return {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {name: 6.5 * len(name) for name in figures},  # else names are cut before what they say
        "compareRunCharts": [_line(LOSSES[0]) | losses, _line(LOSSES[1]) | {"deleted": True}],  # one chart of both
        "compareRunSections": [{"uuid": name, "name": name, "display": True} for name in (HEADLINE, "curves")],
        "isAccordionReordered": True,
    }


def _line(metric: str) -> dict[str, Any]:
    section, _, name = metric.partition("/")
    return {"type": "LINE", "uuid": name, "metricSectionId": section, "metricKey": metric, "isGenerated": True}


def serve_ui(runs: Path, uri: str, port: int, say: Callable[[str], None], *, open_page: bool) -> None:
    """MLflow's server on the runs' store, on the loopback address, job runners and telemetry off, until Ctrl-C.

    SIGTERM and the end of the terminal (SIGHUP) end it as well. Says the address of the newest study's runs, and opens
    it. Raises ConfigError where there is no store yet, where the store is a server with pages of its own, where the
    port is taken, and where the server ends by itself.
    """
    if uri.startswith("http"):
        raise ConfigError(f"The store is a server: open {_base(uri)}/#/experiments?{MODE} in a browser.")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"There is no MLflow store in {runs} yet; run a study first, or name its folder with --runs.")
    _refuse_taken(port)
    address = _first_page(uri, port)
    with tempfile.TemporaryFile("w+") as log, suppress(KeyboardInterrupt):  # this is how it ends
        server = _start(uri, port, log)
        try:
            _wait_until_ready(server, port, log)
            say(f"MLflow: {address}\nCtrl-C ends it.")
            has_display = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
            if open_page and has_display:
                webbrowser.open(address)
            code = server.wait()
            raise ConfigError(f"MLflow's server ended by itself (exit code {code}): {_last_line(log)}")
        finally:
            with uninterrupted():
                _stop(server)


def _first_page(uri: str, port: int) -> str:
    """The runs of the experiment that was worked in last, else the list of experiments."""
    client, base = MlflowClient(uri, uri), f"http://127.0.0.1:{port}"
    with answering(uri):
        known = {one.experiment_id: one.tags for one in client.search_experiments()}
        newest = client.search_runs(list(known), max_results=1, order_by=["attributes.start_time DESC"])
    if not newest:
        return f"{base}/#/experiments?{MODE}"
    experiment = newest[0].info.experiment_id
    if VIEW_TAG in known[experiment]:
        return list_of(base, experiment)
    return f"{base}/#/experiments/{experiment}/runs?{MODE}"  # of an older medopt


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"Port {port} cannot be used ({error.strerror}): name another one with --port.") from None


def _start(uri: str, port: int, log: IO[str]) -> subprocess.Popen[bytes]:
    words = ["server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet: Mapping[str, str] = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 0.6 GB instead of 2.4 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONWARNINGS": "ignore",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "mlflow", *words, "--uvicorn-opts", "--log-level warning --no-access-log"],
        env=os.environ | quiet,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the server has children, which end with it
    )


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: IO[str]) -> None:
    limit = time.monotonic() + START_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches this machine's loopback
    while time.monotonic() < limit and server.poll() is None:
        try:
            direct.open(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise ConfigError(f"MLflow's server did not start: {_last_line(log)}")


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    said = [line.strip() for line in log if line.strip()]
    return said[-1] if said else "it says nothing"


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(10)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
