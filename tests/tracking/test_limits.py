"""What MLflow does not take, and what must not happen while it is talked to."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from clinic_fixtures import Finished
from mlflow import MlflowClient

from medopt.config import Study
from medopt.core.errors import ConfigError, StorageError
from medopt.tracking.tracker import Tracker


@pytest.fixture
def runs(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with a store: copied, since to make one takes seconds."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(finished.runs / "mlflow.db", tmp_path)
    return tmp_path


@pytest.fixture
def tracker(runs: Path, tiny_study: Callable[..., Study]) -> Iterator[Tracker]:
    found = Tracker(tiny_study(), runs, None, "tiny")
    yield found
    found.end("released")


def metrics_of(tracker: Tracker) -> dict[str, float]:
    found: dict[str, float] = MlflowClient(tracker.uri).get_run(tracker.run_id).data.metrics
    return found


def test_figures_of_many_sites_are_more_than_it_takes_at_once(tracker: Tracker) -> None:
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 9, "note": "a text is no metric"}
    tracker.log_figures({"sites": {f"site {n}": {"int8": {f"m{k}": figure for k in range(10)}} for n in range(40)}})
    found = metrics_of(tracker)
    assert len(found) == 40 * 10 * 4
    assert found["sites_site 39/int8_m9"] == 0.5
    assert found["sites_site 39/int8_m9_low"] == 0.25


@pytest.mark.parametrize(
    ("site", "name"),
    [("St. Mary's (A&E)", "St. Mary_s _A_E_"), ("north/south", "north_south"), ("../up", ".._up"), ("Köln", "Köln")],
)
def test_sites_with_any_name_can_be_recorded(tracker: Tracker, site: str, name: str) -> None:
    tracker.log_figures({"sites": {site: {"int8": {"auc": {"value": 0.5}}}}})
    assert metrics_of(tracker) == {f"sites_{name}/int8_auc": 0.5}


def test_store_of_one_run_is_not_that_of_the_next(tracker: Tracker) -> None:
    """MLflow writes the address into the environment, where it would go before every other folder."""
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_ctrl_c_waits_until_the_store_has_been_told(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn session keeps SQLite locked against the process itself, so that the run could not be closed."""
    real, done = MlflowClient.log_batch, []

    def log_batch(*words: object, **named: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(*words, **named)  # type: ignore[arg-type]
        done.append("logged")

    # A test worker may have no handler of its own: the signal would end it.
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
        with pytest.raises(KeyboardInterrupt):
            tracker.log_figures({"latency_ms": {"float": 2.0}})
        assert done == ["logged"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outer)


def test_experiment_that_another_process_makes_first(
    runs: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MlflowClient.create_experiment
    made: list[str] = []

    def create(client: MlflowClient, name: str, **named: object) -> str:
        made.append(real(client, name, **named))  # the other process
        return real(client, name, **named)

    monkeypatch.setattr(MlflowClient, "create_experiment", create)
    tracker = Tracker(tiny_study(), runs, None, "tiny")
    tracker.end("released")
    assert tracker.experiment_id == made[0]


def test_deleted_experiment_is_refused_with_its_reason(runs: Path, tiny_study: Callable[..., Study]) -> None:
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    client.delete_experiment(client.create_experiment("tiny"))
    with pytest.raises(StorageError, match=r"mlflow.db cannot be used: .*deleted"):
        Tracker(tiny_study(), runs, None, "tiny")
    assert mlflow.active_run() is None


def test_failed_run_that_cannot_be_closed_keeps_its_own_error(
    runs: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a finished one says that it could not be closed."""

    def set_tag(*_: object, **__: object) -> None:
        raise OSError("the store is gone")

    monkeypatch.setattr(MlflowClient, "set_tag", set_tag)
    Tracker(tiny_study(), runs, None, "tiny").end("DataError", "FAILED")
    assert mlflow.active_run() is None
    with pytest.raises(ConfigError, match="the store is gone"):
        Tracker(tiny_study(), runs, None, "tiny again").end("released")
    assert mlflow.active_run() is None
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED", "FAILED"]
