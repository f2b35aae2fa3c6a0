"""What a run says to MLflow.

A server that is gone for a while stops nothing: the history is compared with what the store holds, and what is missing
is logged at the next epoch.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made when mlflow is imported
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.files import file_digest
from medopt.core.records import EpochRecord, PretrainingRecord, batches
from medopt.release.layout import CARD, SUMS, read_info
from medopt.tracking.fetch import DIGEST
from medopt.tracking.process import PROCESS, mark_crashed, this_process
from medopt.tracking.registry import CANDIDATE, GATE, MODEL, OVERRIDDEN, PASSED
from medopt.tracking.release import log_release
from medopt.tracking.store import (
    MIGRATED_FROM,
    PARENT,
    answering,
    find_experiment,
    open_store,
    page_of,
    resumed,
    tracking_uri,
    watch_system,
)
from medopt.tracking.writer import Writer

Epoch = EpochRecord | PretrainingRecord
CHANGED = "settings changed"  # tag: what a continued run is judged or described by otherwise than it was begun
MOST = 1000  # metrics that MLflow takes at once
LAST_WAIT = 10.0  # seconds for what is still to be written where a run did not reach its end
_BREAK = "\n"  # between the keys of a nested figure: no site has it in its name


class Tracker:
    """One MLflow run, begun or continued."""

    def __init__(self, study: Study, runs: Path, run_id: str | None, run_name: str, parent: str = "") -> None:
        """Begin a run, or continue `run_id` where the store knows it; below the run `parent` where one is given."""
        self.uri = open_store(runs)
        self._logged: int | None = None
        self._score = "curves/auc_val" if study.training.metric == "auc" else "curves/score_val"
        self._history: tuple[Epoch, ...] = ()
        self._early: list[list[Metric]] = []
        self._writer: Writer[Sequence[Epoch]] = Writer(self._write_history)
        with answering(self.uri):
            self._client = MlflowClient(self.uri)
            self.experiment_id = find_experiment(self._client, study.name, self.uri, runs)
            mark_crashed(self._client)
            known = resumed(self._client, self.experiment_id, run_id, run_name)
            run = mlflow.start_run(
                run_id=known.info.run_id if known else None,
                experiment_id=self.experiment_id,
                run_name=None if known else run_name,
                tags={PROCESS: this_process()} | ({PARENT: parent} if parent else {}),
                log_system_metrics=True,
            )
        self.run_id: str = run.info.run_id
        self.origin: str = run.data.tags.get(MIGRATED_FROM, self.run_id)
        """The id that the run was begun under: where it was moved to a server, stages that are done stay done."""

    @property
    def link(self) -> str:
        """Where the run's page is, below the address that `medopt ui` prints."""
        return page_of(self.uri, self.experiment_id, self.run_id)

    def log_start(self, study: Study, digest: str, tags: Mapping[str, str], splits: Mapping[str, int]) -> None:
        """The resolved study as parameters, the manifest as dataset input, and where the run comes from as tags.

        A run that is continued keeps what it was begun with, code version and machine included; settings that differ
        from then stand in the tag `settings changed`.
        """
        with answering(self.uri):
            self._client.set_tag(self.run_id, "outcome", "running")
            settings = {key: str(value)[:6000] for key, value in flatten(study.model_dump(mode="json")).items()}
            run = self._client.get_run(self.run_id)
            known = {item.dataset.name for item in run.inputs.dataset_inputs} if run.inputs else set()
            if known >= {f"{study.name}-{split}" for split in splits}:
                before = run.data.params
                changed = [
                    f"{key}: {before[key]} -> {settings[key]}"
                    for key in settings
                    if key != "data.manifest" and before.get(key, settings[key]) != settings[key]
                ]
                if changed or CHANGED in run.data.tags:
                    self._client.set_tag(self.run_id, CHANGED, "\n".join(changed)[:5000])
                return
            params = [Param(*setting) for setting in settings.items()]
            notes = [RunTag("mlflow.note.content", study.question), *(RunTag(*tag) for tag in tags.items())]
            self._client.log_batch(self.run_id, params=params, tags=notes)
            source = LocalArtifactDatasetSource(study.data.manifest)
            for split in splits:
                name = f"{study.name}-{split}"
                dataset = MetaDataset(source, name, digest[:16])  # type: ignore[abstract]  # it has a profile
                mlflow.log_input(dataset, context=split, tags={"images": str(splits[split])})

    def sync_history(self, history: Sequence[Epoch]) -> str | None:
        """Log the epochs that the store does not hold yet: no gap and no double point, also after a crash.

        Waits for the store no longer than training can bear. Returns why it could not, where the store does not answer;
        the next call makes up for it, and so does what is logged at the end.
        """
        self._history = tuple(history)
        return self._written()

    def log_early(self, figures: Mapping[str, object]) -> str | None:
        """Figures from between two trainings, as `log_figures` but waited for as `sync_history` does."""
        metrics = metrics_of(figures)
        self._early += [metrics[part] for part in batches(len(metrics), MOST)]
        return self._written()

    def _written(self) -> str | None:
        trouble = self._writer.put(self._history)
        return f"Training goes on, and MLflow is caught up later. {trouble}" if trouble else None

    def _write_history(self, history: Sequence[Epoch]) -> None:
        try:
            with answering(self.uri):
                while self._early:  # sent twice they are kept once: their time is that of their making
                    self._client.log_batch(self.run_id, metrics=self._early[0])
                    self._early.pop(0)
                if self._logged is None:
                    self._logged = len(self._client.get_metric_history(self.run_id, "curves/loss_train"))
                    watch_system(self.run_id)
                missing = history[self._logged :]
                for part in batches(len(missing), 100):  # whole epochs, and no more than MLflow takes at once
                    metrics = [one for record in missing[part] for one in _epoch_metrics(record, self._score)]
                    self._client.log_batch(self.run_id, metrics=metrics)
                    self._logged += len(missing[part])
        except ConfigError:
            self._logged = None
            raise

    def log_figures(self, figures: Mapping[str, object]) -> None:
        """Numbers of a nested mapping as metrics `a/b_c`; what is not a number is left out."""
        metrics = metrics_of(figures)
        self._writer.finish()
        with answering(self.uri):
            for part in batches(len(metrics), MOST):
                self._client.log_batch(self.run_id, metrics=metrics[part])

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """What a reviewer reads and searches by; `mlflow.note.content` is the description, in Markdown."""
        with answering(self.uri):
            self._client.log_batch(self.run_id, tags=[RunTag(*tag) for tag in tags.items()])

    def log_files(self, paths: Mapping[str, Path]) -> None:
        """Files and folders as artifacts, by the folder they are to stand in ('' is the top)."""
        with answering(self.uri):
            for place, path in paths.items():
                if path.is_dir():
                    mlflow.log_artifacts(str(path), place)
                else:
                    mlflow.log_artifact(str(path), place or None)

    def log_release(self, release: Path) -> str:
        """The release as a model that answers scans, registered under the study's name; returns its version.

        With alias `candidate` where both verdicts let it pass; one that somebody answers for is there without.
        """
        info = read_info(release)
        name, model = info.study, info.figures.verdict
        gate = PASSED if info.gate.passed else f"{OVERRIDDEN}: {info.gate.outcome}"
        tags = {GATE: gate, DIGEST: file_digest(release / SUMS)}
        if model:
            tags[MODEL] = model.word if model.better_than_chance else f"{OVERRIDDEN}: {model.word}"
        with answering(self.uri), contextlib.redirect_stderr(io.StringIO()):  # "Successfully registered ..."
            version = log_release(release)
            if not self._client.get_registered_model(name).description:  # what a colleague wrote there stays
                self._client.update_registered_model(name, info.question)
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, value)
            self._client.update_model_version(name, version, description=(release / CARD).read_text()[:5000])
            if info.gate.passed and (model is None or model.better_than_chance):
                self._client.set_registered_model_alias(name, CANDIDATE, version)
        return version

    def end(self, outcome: str, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED, or KILLED (to be continued); `outcome` says it in a word.

        Raises ConfigError where a finished run cannot be closed; a failed one has a worse thing to tell.
        """
        try:
            with answering(self.uri):
                try:
                    self._writer.finish(None if status == "FINISHED" else LAST_WAIT)
                    self._client.set_tag(self.run_id, "outcome", outcome)
                finally:  # else MLflow itself would call the run FINISHED when this process ends
                    mlflow.end_run(status)
        except ConfigError:
            if status == "FINISHED":
                raise


def flatten(value: Mapping[str, object], prefix: str = "", separator: str = ".") -> dict[str, object]:
    """Nested mappings as one with joined keys."""
    flat: dict[str, object] = {}
    for key, item in value.items():
        name = f"{prefix}{separator}{key}" if prefix else str(key)
        flat |= flatten(item, name, separator) if isinstance(item, Mapping) else {name: item}
    return flat


def metrics_of(figures: Mapping[str, object]) -> list[Metric]:
    """Numbers of a nested mapping as metrics `a/b_c`; what is not a number is left out."""
    now = int(time.time() * 1000)
    return [
        Metric(_metric_name(key), float(value), now, 0)
        for key, value in flatten(figures, separator=_BREAK).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _metric_name(key: str) -> str:
    """`test, float, auc, value` reads `test_float/auc` in the UI, which groups by the part before the slash."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in key.removesuffix(f"{_BREAK}value").split(_BREAK)]
    if len(parts) < 3:
        return "/".join(parts)
    return f"{'_'.join(parts[:2])}/{'_'.join(parts[2:])}"


def _epoch_metrics(record: Epoch, score: str) -> list[Metric]:
    """The UI groups by the part before the slash, and draws the groups in the order of the alphabet."""
    if isinstance(record, EpochRecord):
        own = {"curves/loss_val": record.val_loss, score: record.val_metric}
    else:
        own = {"embeddings/deviation": record.deviation, "embeddings/rank": record.rank}
        own |= {} if record.neighbours is None else {"curves/auc_neighbours": record.neighbours}
    values = {
        "curves/loss_train": record.train_loss,
        **own,
        "epoch/learning_rate": record.learning_rate,
        "epoch/images_per_second": record.images_per_second,
        "epoch/data_wait_share": record.data_wait,
        "epoch/seconds": record.seconds,
    }
    now = int(time.time() * 1000)
    return [Metric(name, value, now, record.epoch + 1) for name, value in values.items()]


def serve_ui(runs: Path, port: int) -> None:
    """Replace this process by MLflow's server on the runs' store, on the loopback address, job runners off.

    Raises ConfigError where there is no store yet, or where the store is a server with pages of its own.
    """
    uri = tracking_uri(runs)
    if uri.startswith("http"):
        raise ConfigError(f"The store is a server: open {uri}/?workflowType=machine_learning in a browser.")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise ConfigError(f"There is no MLflow store in {runs} yet; run a study first, or name its folder with --runs.")
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # 0.6 GB instead of 2.4 GB
    words = ["server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *words])
