"""Logged models, registered models, their versions and aliases, and the files of both, copied to a server."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run
from mlflow.entities.model_registry import ModelVersion

from medopt.core.records import batches

ORIGIN = "mlflow.medopt.migrated_from"
_MADE_THERE = ("mlflow.modelVersions",)  # tags that the server writes when a version is made


class MigrationCounts(Protocol):
    """What a migration counts and remembers."""

    runs: dict[str, str]
    models: dict[str, str]
    totals: Any
    copied: Any
    notes: list[str]


def local_files(artifact_uri: str) -> list[Path]:
    """All files below a local artifact folder, none where there is no such folder."""
    try:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=artifact_uri))
    except (OSError, mlflow.MlflowException):
        return []  # nothing was ever logged
    return sorted(path for path in root.rglob("*") if path.is_file())


def send_files(target: MlflowClient, run_id: str, root: Path, files: list[Path], advance: Callable[..., None]) -> None:
    """Upload the files that the server has not with the same size, folder by folder."""
    there: dict[str, dict[str, int | None]] = {}
    for path in files:
        place = path.parent.relative_to(root).as_posix()
        place = "" if place == "." else place
        if place not in there:
            there[place] = {item.path: item.file_size for item in target.list_artifacts(run_id, place or None)}
        if there[place].get((PurePosixPath(place) / path.name).as_posix()) != path.stat().st_size:
            target.log_artifact(run_id, str(path), place or None)
        advance(1)


def copy_models(
    source: MlflowClient, target: MlflowClient, counts: MigrationCounts, run: Run, copy: Run, *, complete: bool
) -> None:
    """A run's models as models of its copy; with `complete` they are there and only have to be known."""
    outputs = list(run.outputs.model_outputs) if run.outputs else []
    linked = {output.model_id for output in copy.outputs.model_outputs} if copy.outputs else set()
    there = {model.tags.get(ORIGIN): model for model in _models(target, copy)}
    for output in outputs:
        model = source.get_logged_model(output.model_id)
        counts.totals["models"] += 1
        model_copy = there.get(model.model_id)
        if model_copy is None and not complete:
            model_copy = _model(target, model, copy)
        if model_copy is None:
            continue
        counts.models[model.model_id] = model_copy.model_id
        if complete:
            continue
        if str(model_copy.status) != str(model.status):
            _fill(target, model, model_copy, copy)
            counts.copied["models"] += 1
        if model_copy.model_id not in linked:
            target.log_outputs(copy.info.run_id, [LoggedModelOutput(model_copy.model_id, output.step)])


def _models(target: MlflowClient, copy: Run) -> Iterator[LoggedModel]:
    token = None
    while True:
        page = target.search_logged_models(
            [copy.info.experiment_id], filter_string=f"source_run_id = '{copy.info.run_id}'", page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _model(target: MlflowClient, model: LoggedModel, copy: Run) -> LoggedModel:
    tags = {key: value for key, value in model.tags.items() if key not in _MADE_THERE}
    tags[ORIGIN] = model.model_id
    where = (copy.info.experiment_id, model.name, copy.info.run_id)
    return target.create_logged_model(*where, tags=tags, params=dict(model.params), model_type=model.model_type)


def _fill(target: MlflowClient, model: LoggedModel, model_copy: LoggedModel, copy: Run) -> None:
    """Files (with the ids of the copy in MLmodel), metrics, and last the status."""
    root = Path(mlflow.artifacts.download_artifacts(artifact_uri=model.artifact_location))
    with tempfile.TemporaryDirectory() as work:
        for path in sorted(root.iterdir()):
            if path.is_dir():
                target._tracking_client.log_model_artifacts(model_copy.model_id, str(path), path.name)
            elif path.name == "MLmodel":
                text = path.read_text()
                text = text.replace(model.model_id, model_copy.model_id).replace(
                    str(model.source_run_id), copy.info.run_id
                )
                text = re.sub(
                    r"^artifact_path: .*$", f"artifact_path: {model_copy.artifact_location}", text, flags=re.M
                )
                changed = Path(work) / path.name
                changed.write_text(text)
                target.log_model_artifact(model_copy.model_id, str(changed))
            else:
                target.log_model_artifact(model_copy.model_id, str(path))
    metrics = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=model_copy.model_id, run_id=copy.info.run_id)
        for m in model.metrics or []
    ]
    for part in batches(len(metrics), 1000):
        target.log_batch(copy.info.run_id, metrics=metrics[part])
    target.finalize_logged_model(model_copy.model_id, model.status)


def copy_registry(source: MlflowClient, target: MlflowClient, counts: MigrationCounts) -> None:
    """Registered models with their versions in order and their aliases; what the team set there stays."""
    known = {model.name: model for model in target.search_registered_models(max_results=1000)}
    for model in source.search_registered_models(max_results=1000):
        counts.totals["registered models"] += 1
        if model.name not in known:
            target.create_registered_model(model.name, tags=dict(model.tags), description=model.description)
            counts.copied["registered models"] += 1
        numbers = _versions(source, target, model.name, counts)
        aliases = dict(known[model.name].aliases) if model.name in known else {}
        for alias, version in model.aliases.items():
            counts.totals["aliases"] += 1
            version_there, present = numbers.get(str(version)), aliases.get(alias)
            if version_there is None or str(present) == version_there:
                continue
            if present is not None and str(present) not in numbers.values():
                counts.notes.append(f"{model.name}@{alias} stays with the server's own version {present}")
                continue
            target.set_registered_model_alias(model.name, alias, version_there)
            counts.copied["aliases"] += 1


def _versions(source: MlflowClient, target: MlflowClient, name: str, counts: MigrationCounts) -> dict[str, str]:
    """The version's number here: its number there."""
    there = {
        version.tags[ORIGIN]: str(version.version)
        for version in target.search_model_versions(f"name='{name}'", max_results=10000)
        if ORIGIN in version.tags
    }
    numbers: dict[str, str] = {}
    every = source.search_model_versions(f"name='{name}'", max_results=10000)
    for version in sorted(every, key=lambda one: int(one.version)):
        counts.totals["versions"] += 1
        origin = f"{version.source} {version.version}"
        if origin in there:
            numbers[str(version.version)] = there[origin]
            continue
        place = _source(version, target, counts)
        if place is None:
            counts.notes.append(f"{name} version {version.version} is left out: the run or model behind it is gone")
            continue
        version_copy = target.create_model_version(
            name,
            place,
            run_id=counts.runs.get(version.run_id or ""),
            tags=version.tags | {ORIGIN: origin},
            description=version.description,
            model_id=place.removeprefix("models:/") if place.startswith("models:/") else None,
        )
        numbers[str(version.version)] = str(version_copy.version)
        counts.copied["versions"] += 1
    return numbers


def _source(version: ModelVersion, target: MlflowClient, counts: MigrationCounts) -> str | None:
    """Where the copy's files are: a logged model, or a folder among a run's artifacts."""
    source = version.source or ""
    if source.startswith("models:/"):
        model_id = counts.models.get(source.removeprefix("models:/"))
        return f"models:/{model_id}" if model_id else None
    here = counts.runs.get(version.run_id or "")
    _, separator, rest = source.partition(f"{version.run_id}/artifacts/")
    return f"{target.get_run(here).info.artifact_uri}/{rest}" if here and separator else None
