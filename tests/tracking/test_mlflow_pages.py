"""What a reviewer sees first: `medopt ui`, the list of runs with its results, and the experiment's page."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from browser import CHROMIUM, Page, browser
from clinic_fixtures import call, start, wait
from mlflow import MlflowClient
from ports import free_port

from medopt.config import Study
from medopt.core.records import EpochRecord
from medopt.tracking.pages import COLUMNS, KIND, LOSSES, NOTE, VIEW_TAG, experiment_tags, list_of, page_of
from medopt.tracking.tracker import Tracker

FIGURES = {name: 0.5 + number / 100 for number, name in enumerate(COLUMNS)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_study: Callable[..., Study]) -> Path:
    """A runs folder with one small run of the real tracker."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = Tracker(tiny_study(), folder, None, "0a1b2c3d seed 0 ResNet-26")
        tracker.log_start(tiny_study(), "d" * 64, {"study": "tiny", "gate": "passed"}, {"train": 4})
        tracker.sync_history([EpochRecord(e, 1 / (e + 1), 0.5, 0.1 * e, 1e-3, 100.0, 1.0, 0.01) for e in range(4)])
        tracker.log_figures({"headline": FIGURES})
        tracker.end("released")
    return folder


def test_an_experiment_has_its_question_its_kind_and_a_view_of_the_results(
    runs: Path, tiny_study: Callable[..., Study]
) -> None:
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    tags = client.search_experiments(filter_string="name = 'tiny'")[0].tags
    assert tags[NOTE] == tiny_study().question
    assert tags[KIND] == "custom_model_development"  # MLflow's word for training, not for language models
    envelope = json.loads(tags[VIEW_TAG])
    view = json.loads(envelope["state"])
    assert envelope["name"] == "Results" and len(tags[VIEW_TAG]) < 5000
    assert [f"metrics.`headline/{name}`" for name in COLUMNS] == view["selectedColumns"][: len(COLUMNS)]
    assert view["columnWidths"].keys() <= set(view["columnOrder"]) == set(view["selectedColumns"])
    losses = next(chart for chart in view["compareRunCharts"] if not chart.get("deleted"))
    assert tuple(losses["selectedMetricKeys"]) == LOSSES


def test_what_a_colleague_wrote_at_the_experiment_stays(
    runs: Path, tmp_path: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(runs / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    number = client.search_experiments(filter_string="name = 'tiny'")[0].experiment_id
    client.set_experiment_tag(number, NOTE, "see the wiki")
    client.set_experiment_tag(number, VIEW_TAG, "of an older version")
    Tracker(tiny_study(), tmp_path, None, "another").end("released")
    tags = client.get_experiment(number).tags
    assert tags[NOTE] == "see the wiki" and tags[VIEW_TAG] == experiment_tags("")[VIEW_TAG]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_with_its_command_whatever_proxy_is_set(runs: Path, number: signal.Signals) -> None:
    """A proxy has no way to this machine's loopback, and a terminal that closes leaves no server behind."""
    port, nowhere = free_port(), "http://127.0.0.1:9"
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # by nohup, and then by the processes that start from here
    process = start("ui", "--runs", runs, "--port", port, "--no-open", http_proxy=nowhere, HTTP_PROXY=nowhere)
    signal.signal(signal.SIGHUP, ignored)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("MLflow: http://127.0.0.1")
    process.send_signal(number)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_server_that_ends_by_itself_is_no_normal_end(runs: Path) -> None:
    process = start("ui", "--runs", runs, "--port", free_port(), "--no-open")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("MLflow: ")
    (server,) = psutil.Process(process.pid).children()
    server.kill()
    wait(process).refused(2, "ConfigError", "MLflow's server ended by itself (exit code -9)")


def test_user_and_password_of_a_server_stand_in_no_address() -> None:
    links = [
        page_of("https://ann:p@ss@mlflow.example:8443/team/", "1", "2"),
        list_of("https://ann@mlflow.example", "1"),
    ]
    assert links[0].startswith("https://mlflow.example:8443/team/#/experiments/1/runs/2")
    assert links[1].startswith("https://mlflow.example/#/experiments/1/runs")


def test_a_port_that_is_taken_is_refused(runs: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        call("ui", "--runs", runs, "--port", port).refused(2, f"Port {port} cannot be used", "--port")


@dataclass(frozen=True, slots=True)
class Ui:
    address: str
    base: str


@pytest.fixture(scope="module")
def ui(runs: Path) -> Iterator[Ui]:
    """`medopt ui` in a process of its own; it says little, and Ctrl-C ends it and its server."""
    port = free_port()
    process = start("ui", "--runs", runs, "--port", port, "--no-open")
    assert process.stdout is not None and process.stderr is not None
    said, more = process.stdout.readline(), process.stdout.readline()
    try:
        assert said.startswith(f"MLflow: http://127.0.0.1:{port}/#/experiments/"), process.stderr.read()
        yield Ui(said.split()[1], f"http://127.0.0.1:{port}")
    finally:
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, more, rest, errors) == (0, "Ctrl-C ends it.\n", "", "")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_the_page_that_opens_has_the_results_in_view(ui: Ui, tmp_path: Path) -> None:
    with browser(tmp_path / "chromium", 1900, 900) as page:
        page.open(ui.address)
        page.shows("0a1b2c3d seed 0", "headline/auc_test", "headline/auc_val", seconds=90)
        shown = [f"headline/{name}" for name in ("auc_test", "auc_val", "sensitivity_test")]
        assert all(name in str(page.run("document.body.innerText")) for name in shown)
        assert "telemetry" not in str(page.run("document.body.innerText"))
        charts(page, f"{ui.address}&compareRunsMode=CHART")
        # MLflow's own list opens experiments as for language models until "Model training" is chosen once.
        place = f"{ui.base}/#/experiments/{ui.address.split('/experiments/')[1].split('/')[0]}"
        page.open(place)
        page.until("location.hash.includes('workflowType=genai')", 60)
        page.click(
            "[...document.querySelectorAll('*')].find(one => !one.children.length && "
            "one.textContent == 'Model training')"
        )
        page.until("location.hash.includes('workflowType=machine_learning')", 60)
        page.open("about:blank")
        page.open(place)
        page.until("location.hash.includes('workflowType=machine_learning')", 60)


def charts(page: Page, address: str) -> None:
    """Both losses are lines of one chart, and the headline stands above them."""
    page.open(address)
    page.shows("curves/loss_train vs curves/loss_val", seconds=90)
    limit = time.monotonic() + 60
    lines = "[...document.querySelectorAll('.js-plotly-plot')].map(p => p.querySelectorAll('.js-line').length)"
    while max(page.run(lines) or [0]) < 2:  # each may have a smoothed one beside it
        assert time.monotonic() < limit, page.run(lines)
        time.sleep(0.5)
    text = str(page.run("document.body.innerText"))
    assert text.index("\nheadline\n") < text.index("\ncurves\n")
