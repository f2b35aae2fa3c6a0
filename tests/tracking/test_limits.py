"""What MLflow does not take, and what must not happen while it is talked to."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from clinic_fixtures import Finished
from mlflow import MlflowClient, MlflowException
from sqlalchemy.exc import DatabaseError, OperationalError

from medopt.config import Study
from medopt.core.errors import ConfigError, StorageError
from medopt.tracking.errors import translated
from medopt.tracking.parent import ParentRun
from medopt.tracking.registry import Registry
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


def test_the_monitor_of_the_machine_ends_before_the_run(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    real, alive = MlflowClient.set_terminated, []

    def set_terminated(*words: object, **named: object) -> None:
        alive.extend(thread.name for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor")
        real(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(MlflowClient, "set_terminated", set_terminated)
    assert any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())
    tracker.end("released")
    assert alive == []


def test_a_registry_that_the_environment_names_gets_no_release(
    runs: Path, tiny_study: Callable[..., Study], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", other)
    tracker = Tracker(tiny_study(), runs, None, "ours")
    version = tracker.log_release(finished.release)
    tracker.end("released")
    name = finished.release.parent.parent.name
    assert Registry(runs).versions(name)[0].run_id == tracker.run_id
    assert MlflowClient(tracker.uri, tracker.uri).get_model_version(name, version).run_id == tracker.run_id
    assert not (tmp_path / "other.db").exists() and os.environ["MLFLOW_REGISTRY_URI"] == other


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


def test_the_environment_takes_over_no_foreign_run(
    runs: Path, tiny_study: Callable[..., Study], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook or an `mlflow run` around medopt leaves these set; each of them once redirected a run."""
    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    foreign = client.create_experiment("foreign", artifact_location=(runs / "foreign").as_uri())
    theirs = client.create_run(foreign, run_name="theirs").info.run_id
    before = client.get_run(theirs).data.to_dictionary()
    for name, value in {
        "MLFLOW_RUN_ID": theirs,
        "MLFLOW_EXPERIMENT_NAME": "of the environment",
        "MLFLOW_EXPERIMENT_ID": foreign,
        "MLFLOW_ACTIVE_MODEL_ID": "m-0123",
    }.items():
        monkeypatch.setenv(name, value)
    tracker = Tracker(tiny_study(), runs, None, "ours")
    tracker.log_start(tiny_study(), "d" * 64, {"study": "tiny"}, {"train": 4})
    tracker.log_figures({"headline": {"auc_test": 0.5}})
    tracker.log_files({"tables": finished.folder / "predictions.csv", "figures": finished.folder / "figures"})
    tracker.log_release(finished.release)
    tracker.end("released")
    assert os.environ["MLFLOW_RUN_ID"] == theirs  # it stays for whom it is meant
    run = client.get_run(theirs)
    assert (run.info.run_name, run.info.status, run.data.to_dictionary()) == ("theirs", "RUNNING", before)
    assert not run.inputs.dataset_inputs and not run.outputs.model_outputs and not client.list_artifacts(theirs)
    assert client.get_experiment_by_name("of the environment") is None
    ours = client.get_run(tracker.run_id)
    assert ours.info.experiment_id == client.get_experiment_by_name("tiny").experiment_id
    assert ours.data.metrics["headline/auc_test"] == 0.5 and ours.inputs.dataset_inputs
    assert {item.path for item in client.list_artifacts(tracker.run_id)} == {"study.yaml", "tables", "figures"}
    (output,) = ours.outputs.model_outputs
    assert client.get_logged_model(output.model_id).experiment_id == ours.info.experiment_id
    version = client.get_model_version_by_alias(finished.release.parent.parent.name, "candidate")
    assert version.run_id == tracker.run_id


def test_a_run_named_by_the_environment_need_not_exist(
    runs: Path, tiny_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
    ParentRun(tiny_study(), runs, None, "group", {}).end("done")
    tracker = Tracker(tiny_study(), runs, "no id that MLflow makes", "tiny")
    tracker.end("released")
    assert tracker.run_id != "f" * 32


def test_deleted_experiment_says_how_it_is_restored(runs: Path, tiny_study: Callable[..., Study]) -> None:
    uri = f"sqlite:///{runs / 'mlflow.db'}"
    client = MlflowClient(uri)
    number = client.create_experiment("tiny")
    client.delete_experiment(number)
    for begin in (lambda: Tracker(tiny_study(), runs, None, "a"), lambda: ParentRun(tiny_study(), runs, None, "b", {})):
        with pytest.raises(ConfigError) as refused:
            begin()
        told = str(refused.value)
        command = f"MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {number}"
        assert "The experiment tiny was deleted" in told and command in told
        assert "disk" not in told and "goes on" not in told
    restored = command.partition(" mlflow ")[2].split()
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *restored], env=os.environ | {"MLFLOW_TRACKING_URI": uri}, check=False
    )
    assert done.returncode == 0
    tracker = Tracker(tiny_study(), runs, None, "a")
    tracker.end("released")
    assert tracker.experiment_id == number


def test_run_that_is_deleted_while_it_is_written_says_how_it_is_restored(tracker: Tracker) -> None:
    client = MlflowClient(tracker.uri)
    client.delete_run(tracker.run_id)
    with pytest.raises(
        ConfigError, match=rf"The run {tracker.run_id} was deleted.*mlflow runs restore --run-id"
    ) as told:
        tracker.log_figures({"headline": {"auc_test": 0.5}})
    assert "disk" not in str(told.value)
    client.restore_run(tracker.run_id)


def test_run_that_the_store_does_not_know_is_no_full_disk(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks what is asked of it: .*not found.*MLFLOW_TRACKING_URI") as told:
        Registry(runs).tables("f" * 32, tmp_path / "tables")
    assert "disk" not in str(told.value) and not isinstance(told.value, StorageError)


HERE, THERE = "sqlite:////runs/mlflow.db", "https://mlflow.example.org"


@pytest.mark.parametrize(
    ("error", "uri", "wanted", "is_storage"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), HERE, "The disk is full: make room", True),
        (OSError(errno.EROFS, "Read-only file system"), HERE, "may not be written to", True),
        (OperationalError("", {}, Exception("database or disk is full")), HERE, "The disk is full", True),
        (OperationalError("", {}, Exception("attempt to write a readonly database")), HERE, "not be written to", True),
        (OperationalError("", {}, Exception("database is locked")), HERE, "Another process writes to it", True),
        (DatabaseError("", {}, Exception("file is not a database")), HERE, "The file is damaged", True),
        (DatabaseError("", {}, Exception("database disk image is malformed")), HERE, "The file is damaged", True),
        (MlflowException("Detected out-of-date database schema (found"), HERE, "run `mlflow db upgrade sqlite", False),
        (MlflowException("Can't locate revision identified by 'abc'"), HERE, "by a newer MLflow", False),
        (MlflowException("API request to x failed: Connection refused"), THERE, "unset MLFLOW_TRACKING_URI", False),
        (MlflowException("API request failed with error code 503"), THERE, "does not answer", False),
        (MlflowException("Metric value must be a number"), THERE, "refuses what it is sent: Metric value", False),
        (OSError(errno.ENOENT, "No such file or directory"), HERE, "cannot be used: [Errno 2]", True),
    ],
)
def test_each_cause_has_its_own_way_out(error: Exception, uri: str, wanted: str, is_storage: bool) -> None:
    advice = (
        "disk is full",
        "not be written to",
        "Another process",
        "damaged",
        "db upgrade",
        "newer",
        "unset",
        "restore",
    )
    told = translated(error, uri)
    assert wanted in str(told) and isinstance(told, StorageError) is is_storage
    given = str(told).replace(str(error), "")
    assert sum(word in given for word in advice) <= 1 and "goes on" not in given


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
