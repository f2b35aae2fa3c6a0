"""MLflow's store: MLFLOW_TRACKING_URI, else an sqlite file in the runs folder. What it raises becomes our error."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.store.db.utils import _initialize_tables
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from medopt.core.errors import ConfigError, StorageError, first_line
from medopt.core.files import atomic

PARENT = "mlflow.parentRunId"
MIGRATED_FROM = "medopt.migrated_from"  # the tag of a copy: the id of the run that it was copied from


def store_of(runs: Path) -> str:
    """`mlflow.db` in the runs folder."""
    return f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def tracking_uri(runs: Path) -> str:
    """MLFLOW_TRACKING_URI, else the store of the runs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or store_of(runs)


def open_store(runs: Path) -> str:
    """Let MLflow use the store of this folder, or the server that is named; returns its address."""
    uri, given = tracking_uri(runs), os.environ.get("MLFLOW_TRACKING_URI")
    use_store(uri)
    if given is None:
        with answering(uri):
            _make_whole(runs.resolve() / "mlflow.db")
    return uri


def use_store(uri: str) -> None:
    """Let MLflow use a store, quietly and with bounded waiting."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they raise becomes an error of ours
    # MLflow's own bound keeps a training waiting for minutes when its server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the summary has the link
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if given is None:  # MLflow writes it there, where the next run of this process would find it
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = given


def _make_whole(path: Path) -> None:
    """Make an empty store, whole or not at all: MLflow cannot use one whose tables are there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    with (path.parent / ".mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():  # another process was faster
            for left in path.parent.glob(".mlflow.db.*.part*"):  # by one that was killed
                left.unlink()
            with atomic(path) as part:
                engine = create_engine(f"sqlite:///{part}")
                _initialize_tables(engine)
                engine.dispose()


def every_run(client: MlflowClient, experiment_ids: Sequence[str], filter_string: str = "") -> Iterator[Run]:
    """All active runs of some experiments."""
    token = None
    while True:
        page = client.search_runs(list(experiment_ids), filter_string, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def find_copy(client: MlflowClient, experiment_id: str, run_id: str) -> Run | None:
    """The run that was copied here from another store's run of this id."""
    return next(every_run(client, [experiment_id], f"tags.`{MIGRATED_FROM}` = '{run_id}'"), None)


def resumed(client: MlflowClient, experiment_id: str, run_id: str | None, name: str) -> Run | None:
    """The run to go on with: that of this id, the copy of one that was moved here, or the one of this name."""
    if run_id and is_known(client, run_id):
        return client.get_run(run_id)
    if run_id and (copy := find_copy(client, experiment_id, run_id)):
        return copy
    found = find_run(client, experiment_id, name)
    return client.get_run(found) if found else None


def find_run(client: MlflowClient, experiment_id: str, name: str) -> str | None:
    """The id of the run of this name: of a process that was killed before it could write the id down."""
    found = client.search_runs([experiment_id], f"attributes.run_name = '{name}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def find_experiment(client: MlflowClient, name: str, uri: str, runs: Path) -> str:
    """The id of the experiment of this name, made where it is not there."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = (runs / "mlartifacts" / name).resolve().as_uri() if uri.startswith("sqlite") else None
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except mlflow.MlflowException as error:
        found = client.get_experiment_by_name(name)  # another process was faster
        if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(found.experiment_id)


def is_known(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has this run, and nobody deleted it."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def watch_system(run_id: str) -> None:
    """Let MLflow go on measuring processor, memory and GPU: it stops for good when the store was away once."""
    monitors = mlflow.tracking.fluent.run_id_to_system_metrics_monitor
    before = monitors.get(run_id)
    if before is not None and before._process is not None and not before._process.is_alive():
        monitors[run_id] = SystemMetricsMonitor(run_id, resume_logging=True)
        monitors[run_id].start()


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page."""
    base = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


@contextlib.contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what MLflow, its database and its artifact store raise into a ConfigError with the way out."""
    try:
        with _uninterrupted():
            yield
    except (mlflow.MlflowException, SQLAlchemyError, OSError) as error:
        reason = first_line(error)
        if uri.startswith("sqlite"):
            raise StorageError(
                f"MLflow's store {uri.removeprefix('sqlite:///')} cannot be used: {reason}. Look whether the disk is "
                "full or may not be written to, then give the same command again: it goes on where it was."
            ) from error
        if way_in := _refused_at_the_door(error):
            raise ConfigError(f"MLflow at {uri} {way_in}") from error
        raise ConfigError(
            f"MLflow at {uri} does not take what it is sent: {reason}. Look whether its server runs, or unset "
            "MLFLOW_TRACKING_URI to track into the runs folder; the same command then goes on where it was."
        ) from error


def _refused_at_the_door(error: Exception) -> str:
    """What to do where the server wants to know who is asking, refuses this one, or is not trusted; else nothing."""
    text = str(error)
    if "error code 401" in text or getattr(error, "error_code", "") == "UNAUTHENTICATED":
        return (
            "does not know this user or password, or was told none (401): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write mlflow_tracking_username and mlflow_tracking_password below [mlflow] "
            "in ~/.mlflow/credentials. The same command then goes on where it was."
        )
    if "error code 403" in text or getattr(error, "error_code", "") == "PERMISSION_DENIED":
        return (
            "does not allow this user to do that (403): have its administrator give the user EDIT on the experiment "
            "and on the registered model, or sign in as another one (MLFLOW_TRACKING_USERNAME, "
            "MLFLOW_TRACKING_PASSWORD). The same command then goes on where it was."
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return (
            "has a certificate that nobody known here vouches for: name the file of its authority (PEM), export "
            "MLFLOW_TRACKING_SERVER_CERT_PATH=/etc/ssl/certs/hospital.pem. The same command then goes on where it was."
        )
    return ""


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done.

    An SQLite session that is torn in the middle keeps the store locked, so that the run could not be closed.
    """
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda found, _frame: held.append(found))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for found in held[:1]:
            signal.raise_signal(found)
