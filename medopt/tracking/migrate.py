"""The runs of a runs folder's own store, copied to a team's server: whole, once, and by the server's API alone.

Each copy carries its origin's id as a tag (`medopt.migrated_from`), and, when all of it was there, read back and
compared, the state that the origin was in. So a copy that was cut short is gone on with, one that is whole is skipped,
and one whose origin went on since is brought up to date. MLflow takes the same parameter, tag or point of a metric
twice without keeping it twice, and files are compared by size before they are sent.
"""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Experiment, LoggedModelOutput, Metric, Run, RunTag

from medopt.core.errors import BusyError, ConfigError, listed
from medopt.core.records import batches
from medopt.core.reporter import Reporter
from medopt.tracking.errors import answering
from medopt.tracking.migrate_models import copy_models, copy_registry, local_files, send_files
from medopt.tracking.process import mark_crashed
from medopt.tracking.store import MIGRATED_FROM, PARENT, every_run, store_of, tracking_uri, use_store

MIGRATED = "mlflow.medopt.migrated"  # MLflow's pages hide tags of this beginning


@dataclass(slots=True)
class Migration:
    """From one store to another; what was done is counted by kind."""

    source: MlflowClient
    target: MlflowClient
    runs: dict[str, str] = field(default_factory=dict)  # origin's id: copy's id
    models: dict[str, str] = field(default_factory=dict)  # the same of logged models
    totals: Counter[str] = field(default_factory=Counter)
    copied: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where the copies are."""
        return str(self.target.tracking_uri)

    def table(self) -> list[dict[str, Any]]:
        """A row a kind: how many there are, how many were copied now, how many were there."""
        return [
            {"what": kind, "found": count, "copied": self.copied[kind], "there before": count - self.copied[kind]}
            for kind, count in self.totals.items()
        ]


def migrate(runs: Path, to: str | None, reporter: Reporter) -> Migration:
    """Copy all runs, their models and the registry of a runs folder's store to the server `to`, and check them.

    Raises ConfigError where there is nothing to copy from or to, where the server refuses, and where what it holds
    afterwards is not what was copied.
    """
    origin, target = store_of(runs), to or tracking_uri(runs)
    path = Path(origin.removeprefix("sqlite:///"))
    if not path.exists():
        raise ConfigError(f"There is no MLflow store in {runs}: nothing to move. Name the runs folder with --runs.")
    if target == origin:
        raise ConfigError(
            "Name the server that the runs are to go to: --to https://mlflow.example.org, or MLFLOW_TRACKING_URI."
        )
    with _alone(path.parent), answering(target):
        use_store(target)
        migration = Migration(MlflowClient(origin, origin), MlflowClient(target, target))
        _copy(migration, reporter)
    return migration


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".migrate.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"The runs of {folder} are being moved by another process; wait for it.") from None
        yield


def _copy(migration: Migration, reporter: Reporter) -> None:
    """Experiments and their runs, parents first; then the registry."""
    mark_crashed(migration.source)
    entries: list[tuple[Run, list[Path], list[str]]] = []
    experiments: dict[str, Experiment] = {}
    for experiment in migration.source.search_experiments():
        every = list(every_run(migration.source, [experiment.experiment_id]))
        if every:
            experiments[experiment.experiment_id] = experiment
        entries += [(run, local_files(run.info.artifact_uri), sorted(run.data.metrics)) for run in every]
    migration.totals.update(experiments=len(experiments), runs=len(entries))
    steps = sum(len(files) + len(keys) + 1 for _, files, keys in entries)
    advance = reporter.progress(steps, "moving")
    places = {key: _experiment(migration, one) for key, one in experiments.items()}
    copies = {run.data.tags.get(MIGRATED_FROM): run for run in every_run(migration.target, list(places.values()))}
    for run in _parents_first([run for run, _, _ in entries]):
        files, keys = next((files, keys) for other, files, keys in entries if other is run)
        if run.info.status in ("RUNNING", "SCHEDULED"):
            migration.notes.append(f"{run.info.run_name} is running; the same command moves it when it has ended")
            advance(len(files) + len(keys) + 1)
            continue
        begun = run.info.run_id
        if (copy := copies.get(begun)) and copy.data.tags.get(MIGRATED) == _state(run):
            migration.runs[begun] = copy.info.run_id
            copy_models(migration.source, migration.target, migration, run, copy, complete=True)
            advance(len(files) + len(keys) + 1)
            continue
        _run(migration, run, copy, places[run.info.experiment_id], files, keys, advance)
    copy_registry(migration.source, migration.target, migration)


def _experiment(migration: Migration, experiment: Experiment) -> str:
    target, known = migration.target, migration.target.get_experiment_by_name(experiment.name)
    if known is not None and known.lifecycle_stage != "active":
        raise ConfigError(
            f"The experiment {experiment.name} was deleted on the server; restore it there, or have it removed."
        )
    if known is None:
        migration.copied["experiments"] += 1
        return str(target.create_experiment(experiment.name, tags=dict(experiment.tags)))
    for key in experiment.tags.keys() - known.tags.keys():  # what the team wrote there stays
        target.set_experiment_tag(known.experiment_id, key, experiment.tags[key])
    return str(known.experiment_id)


def _parents_first(runs: Sequence[Run]) -> list[Run]:
    """In the order of time, but no run before the one above it."""
    by_id = {run.info.run_id: run for run in runs}

    def depth(run: Run, seen: frozenset[str] = frozenset()) -> int:
        above = by_id.get(run.data.tags.get(PARENT, ""))
        if above is None or above.info.run_id in seen:
            return 0
        return 1 + depth(above, seen | {run.info.run_id})

    return sorted(runs, key=lambda run: (depth(run), run.info.start_time))


def _state(run: Run) -> str:
    return f"{run.info.status} {run.info.end_time}"


def _run(
    migration: Migration,
    run: Run,
    copy: Run | None,
    experiment_id: str,
    files: list[Path],
    keys: list[str],
    advance: Callable[..., None],
) -> None:
    """Copy a run, or the rest of it; read it back; and only then mark it as whole."""
    source, target, begun = migration.source, migration.target, run.info.run_id
    if copy is None:
        tags = {MIGRATED_FROM: begun, "mlflow.runName": run.info.run_name}
        copy = target.create_run(experiment_id, start_time=run.info.start_time, tags=tags)
    migration.runs[begun], here = copy.info.run_id, copy.info.run_id
    if copy.info.status != "RUNNING":
        target.update_run(here, status="RUNNING")
    for some in batches(len(run.data.params), 100):
        items = list(run.data.params.items())[some]
        target.log_batch(here, params=[mlflow.entities.Param(*item) for item in items])
    tags = run.data.tags | {PARENT: migration.runs.get(run.data.tags.get(PARENT, ""), "")}
    target.log_batch(here, tags=[RunTag(key, value) for key, value in tags.items() if value and key != MIGRATED_FROM])
    _inputs(target, run, here)
    _metrics(source, target, begun, here, keys, advance)
    copy_models(source, target, migration, run, copy, complete=False)
    root = Path(mlflow.artifacts.download_artifacts(artifact_uri=run.info.artifact_uri)) if files else Path()
    send_files(target, here, root, files, advance)
    target.set_terminated(here, run.info.status, run.info.end_time)
    _refuse(differences(source, target, run, here, migration.runs, files, root), run)
    target.set_tag(here, MIGRATED, _state(run))
    migration.copied["runs"] += 1
    advance(1)


def _inputs(target: MlflowClient, run: Run, here: str) -> None:
    datasets: list[DatasetInput] = list(run.inputs.dataset_inputs) if run.inputs else []
    if datasets:
        target.log_inputs(here, datasets=datasets)


def _metrics(
    source: MlflowClient, target: MlflowClient, begun: str, here: str, keys: Sequence[str], advance: Callable[..., None]
) -> None:
    """Every point with its time and step."""
    points: list[Metric] = []
    for key in keys:
        points += source.get_metric_history(begun, key)
        while len(points) >= 1000 or (points and key == keys[-1]):
            target.log_batch(here, metrics=points[:1000])
            points = points[1000:]
        advance(1)


def _refuse(faults: Sequence[str], run: Run) -> None:
    if faults:
        raise ConfigError(
            f"{run.info.run_name} is not on the server as it is here: {listed(list(faults))}. Give the same command "
            "again; the runs here are untouched."
        )


def differences(
    source: MlflowClient,
    target: MlflowClient,
    run: Run,
    here: str,
    mapped: Mapping[str, str],
    files: Sequence[Path],
    root: Path,
) -> list[str]:
    """What a copy lacks of its origin, in words, as the server's API tells it; empty where it is the same."""
    faults = _unlike(run, target.get_run(here), mapped)
    last = {metric.key: metric.step for metric in run.data._metric_objs}
    histories = [key for key, step in last.items() if step]  # the only point of the others was compared

    def same(key: str) -> bool:
        return _points(source, run.info.run_id, key) == _points(target, here, key)

    with ThreadPoolExecutor(4) as pool:  # what takes time is to wait for each answer
        faults += [f"history of {key}" for key, is_same in zip(histories, pool.map(same, histories), strict=True)
                  if not is_same]  # fmt: skip
    there = listed_files(target, here) if files else {}
    sizes = {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
    return faults + [f"file {name}" for name, size in sizes.items() if there.get(name) != size]


def _unlike(origin: Run, copy: Run, mapped: Mapping[str, str]) -> list[str]:
    """What the records of both runs say differently."""
    faults = [
        name
        for name in ("run_name", "status", "start_time", "end_time")
        if getattr(origin.info, name) != getattr(copy.info, name)
    ]
    if origin.data.params != copy.data.params:
        faults.append("parameters")
    tags = origin.data.tags | {PARENT: mapped.get(origin.data.tags.get(PARENT, ""), "")}
    faults += [f"tag {key}" for key, value in tags.items() if copy.data.tags.get(key, "") != value]
    before, after = _last(origin), _last(copy)
    faults += [f"metric {key}" for key in before if before[key] != after.get(key)]
    if _datasets(origin) - _datasets(copy):
        faults.append("datasets")
    if len(_outputs(origin)) != len(_outputs(copy)):
        faults.append("models")
    return faults


def _last(run: Run) -> dict[str, tuple[int, int, str]]:
    return {m.key: (m.step, m.timestamp, repr(m.value)) for m in run.data._metric_objs}


def _datasets(run: Run) -> set[tuple[str, str]]:
    return {(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs} if run.inputs else set()


def _points(client: MlflowClient, run_id: str, key: str) -> set[tuple[int, int, str]]:
    return {(m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(run_id, key)}


def _outputs(run: Run) -> list[LoggedModelOutput]:
    return list(run.outputs.model_outputs) if run.outputs else []


def listed_files(client: MlflowClient, run_id: str, folder: str = "") -> dict[str, int | None]:
    """All files of a run on the server with their sizes."""
    found: dict[str, int | None] = {}
    for item in client.list_artifacts(run_id, folder or None):
        if item.is_dir:
            found |= listed_files(client, run_id, item.path)
        else:
            found[item.path] = item.file_size
    return found
