"""MLflow's store: MLFLOW_TRACKING_URI, else an sqlite file in the runs folder; the experiments and runs in it.

Runs are made and written by MlflowClient and their ids alone. MLflow's own functions of the same purpose read
MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_NAME and others, and would write to the run that these name.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.store.db.utils import _initialize_tables
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from sqlalchemy import create_engine

from medopt.config import Study
from medopt.core.files import atomic
from medopt.tracking.credentials import require_encrypted
from medopt.tracking.errors import answering, deleted
from medopt.tracking.pages import VIEW_TAG, experiment_tags

PARENT = "mlflow.parentRunId"
MIGRATED_FROM = "medopt.migrated_from"  # the tag of a copy: the id of the run that it was copied from


def store_of(runs: Path) -> str:
    """`mlflow.db` in the runs folder."""
    return f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def tracking_uri(runs: Path) -> str:
    """MLFLOW_TRACKING_URI, else the store of the runs folder; raises ConfigError as `require_encrypted` does."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or store_of(runs)
    require_encrypted(uri)
    return uri


def open_store(runs: Path) -> str:
    """Let MLflow use the store of this folder, or the server that is named; returns its address."""
    uri, given = tracking_uri(runs), os.environ.get("MLFLOW_TRACKING_URI")
    use_store(uri)
    if given is None:
        with answering(uri):
            _make_whole(runs.resolve() / "mlflow.db")
    return uri


def use_store(uri: str) -> None:
    """Let MLflow use a store, quietly and with bounded waiting; raises ConfigError as `require_encrypted` does."""
    require_encrypted(uri)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they raise becomes an error of ours
    # MLflow's own bound keeps a training waiting for minutes when its server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the summary has the link
    if model := os.environ.get("MLFLOW_ACTIVE_MODEL_ID"):  # metrics would be tied to the model that it names
        mlflow.clear_active_model()
        os.environ["MLFLOW_ACTIVE_MODEL_ID"] = model  # it stays for whom it is meant
    given = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)  # a release stands in the registry of its run's store, whatever else is named
    for name, value in given.items():
        if value is None:  # MLflow writes it there, where the next run of this process would find it
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


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


def begin_run(client: MlflowClient, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    """A new run of this experiment, with the user, the program and the commit that MLflow notes."""
    known = {key: str(value) for key, value in resolve_tags(dict(tags)).items() if value is not None}
    return client.create_run(experiment_id, tags=known, run_name=name)


def find_experiment(client: MlflowClient, study: Study, uri: str, runs: Path) -> str:
    """The id of the study's experiment, made where it is not there; its page asks the study's question.

    Raises ConfigError where it was deleted.
    """
    found = client.get_experiment_by_name(study.name)
    if found is None:
        place = (runs / "mlartifacts" / study.name).resolve().as_uri() if uri.startswith("sqlite") else None
        try:
            client.create_experiment(study.name, artifact_location=place)
        except mlflow.MlflowException as error:  # another process was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(study.name)
    if found is None:
        raise mlflow.MlflowException(f"the experiment {study.name} is not there after it was made")
    if found.lifecycle_stage != "active":
        raise deleted(uri, "experiment", str(found.experiment_id), study.name)
    for key, value in experiment_tags(study.question).items():
        if key not in found.tags or (key == VIEW_TAG and found.tags[key] != value):  # a colleague's words stay
            _set_tag(client, str(found.experiment_id), key, value)
    return str(found.experiment_id)


def _set_tag(client: MlflowClient, experiment: str, key: str, value: str) -> None:
    """Set a tag of an experiment; another run that sets it at this moment does it for both."""
    try:
        client.set_experiment_tag(experiment, key, value)
    except mlflow.MlflowException:
        if key not in client.get_experiment(experiment).tags:
            raise


def is_known(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has this run, and nobody deleted it."""
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except mlflow.MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False
