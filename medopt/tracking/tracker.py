"""What a run says to MLflow.

A server that is gone for a while stops nothing: the history is compared with what the store holds, and what is missing
is logged at the next epoch.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowException
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made when mlflow is imported
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.files import file_digest
from medopt.core.records import EpochRecord, PretrainingRecord, batches
from medopt.release.layout import CARD, SUMS, read_info
from medopt.tracking.errors import answering
from medopt.tracking.fetch import DIGEST
from medopt.tracking.pages import NOTE, page_of
from medopt.tracking.process import PROCESS, mark_crashed, this_process
from medopt.tracking.registry import CANDIDATE, GATE, MODEL, OVERRIDDEN, PASSED
from medopt.tracking.release import log_release
from medopt.tracking.settings import STUDY_FILE, changes, flatten, parameters, study_text
from medopt.tracking.store import MIGRATED_FROM, PARENT, begin_run, find_experiment, open_store, resumed
from medopt.tracking.writer import Writer

Epoch = EpochRecord | PretrainingRecord
CHANGED = "settings changed"  # tag: what a continued run is judged or described by otherwise than it was begun
MOST = 1000  # metrics that MLflow takes at once
LAST_WAIT = 10.0  # seconds for what is still to be written where a run did not reach its end
_CONTEXT = "mlflow.data.context"  # which part of the data a dataset input is
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
            self._client = MlflowClient(self.uri, self.uri)
            self.experiment_id = find_experiment(self._client, study, self.uri, runs)
            mark_crashed(self._client)
            run = resumed(self._client, self.experiment_id, run_id, run_name)
            tags = {PROCESS: this_process()} | ({PARENT: parent} if parent else {})
            if run is None:
                run = begin_run(self._client, self.experiment_id, run_name, tags)
            else:
                self._client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
                self._client.update_run(run.info.run_id, status="RUNNING")
        self.run_id: str = run.info.run_id
        self.origin: str = run.data.tags.get(MIGRATED_FROM, self.run_id)
        """The id that the run was begun under: where it was moved to a server, stages that are done stay done."""
        self._system = self._watch_system()

    @property
    def link(self) -> str:
        """Where the run's page is, below the address that `medopt ui` prints."""
        return page_of(self.uri, self.experiment_id, self.run_id)

    def log_start(self, study: Study, digest: str, tags: Mapping[str, str], splits: Mapping[str, int]) -> None:
        """What differs from the defaults as parameters, the whole study as a file, the manifest as dataset input, tags.

        A run that is continued keeps what it was begun with, code version and machine included; settings that differ
        from then stand in the tag `settings changed`.
        """
        with answering(self.uri):
            self._client.set_tag(self.run_id, "outcome", "running")
            run = self._client.get_run(self.run_id)
            known = {item.dataset.name for item in run.inputs.dataset_inputs} if run.inputs else set()
            if known >= {f"{study.name}-{split}" for split in splits}:
                changed = changes(run.data.params, study)
                if changed or CHANGED in run.data.tags:
                    self._client.set_tag(self.run_id, CHANGED, "\n".join(changed)[:5000])
                return
            params = [Param(*setting) for setting in parameters(study).items()]
            notes = [RunTag(NOTE, study.question), *(RunTag(*tag) for tag in tags.items())]
            self._client.log_batch(self.run_id, params=params, tags=notes)
            self._client.log_text(self.run_id, study_text(study), STUDY_FILE)
            source = LocalArtifactDatasetSource(study.data.manifest)
            inputs = []
            for split in splits:
                name = f"{study.name}-{split}"
                dataset = MetaDataset(source, name, digest[:16])  # type: ignore[abstract]  # it has a profile
                about = [InputTag(_CONTEXT, split), InputTag("images", str(splits[split]))]
                inputs.append(DatasetInput(dataset._to_mlflow_entity(), about))
            self._client.log_inputs(self.run_id, datasets=inputs)

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
                    self._go_on_watching()
                missing = history[self._logged :]
                for part in batches(len(missing), 100):  # whole epochs, and no more than MLflow takes at once
                    metrics = [one for record in missing[part] for one in _epoch_metrics(record, self._score)]
                    self._client.log_batch(self.run_id, metrics=metrics)
                    self._logged += len(missing[part])
        except ConfigError:
            self._logged = None
            raise

    def _watch_system(self) -> SystemMetricsMonitor | None:
        """Let MLflow measure processor, memory and GPU; where it cannot, the run goes on without."""
        with contextlib.suppress(MlflowException, OSError):
            monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.uri)
            monitor.start()
            return monitor
        return None

    def _go_on_watching(self) -> None:
        """The monitor stops for good when the store was away once."""
        if self._system is not None and self._system._process is not None and not self._system._process.is_alive():
            self._system = self._watch_system()

    def _end_watching(self) -> None:
        """Before the run ends, to which the monitor writes; where its store hangs, it is not waited for longer."""
        monitor, self._system = self._system, None
        if monitor is not None and (thread := monitor._process) is not None:
            monitor._shutdown_event.set()
            thread.join(LAST_WAIT)
            if not thread.is_alive():
                monitor.finish()

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
                log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
                log(self.run_id, str(path), place or None)

    def log_release(self, release: Path) -> str:
        """The release as a model that answers scans, registered under the study's name; returns its version.

        It gets the alias `candidate` only if both verdicts passed it; an overridden one has no alias.
        """
        info = read_info(release)
        name, model = info.study, info.figures.verdict
        gate = PASSED if info.gate.passed else f"{OVERRIDDEN}: {info.gate.outcome}"
        tags = {GATE: gate, DIGEST: file_digest(release / SUMS)}
        if model:
            tags[MODEL] = model.word if model.better_than_chance else f"{OVERRIDDEN}: {model.word}"
        with answering(self.uri), contextlib.redirect_stderr(io.StringIO()):  # "Successfully registered ..."
            version = log_release(release, self._client, self.run_id)
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
                finally:
                    self._end_watching()
                    self._client.set_terminated(self.run_id, status)
        except ConfigError:
            if status == "FINISHED":
                raise


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
        gpu = {"epoch/gpu_utilisation": record.gpu_use, "epoch/gpu_gib": record.gpu_gib}
        own = {"curves/loss_val": record.val_loss, score: record.val_metric}
        own |= {name: value for name, value in gpu.items() if value is not None}
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
