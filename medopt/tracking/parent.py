"""The MLflow run above many others: that of seeds and folds, or of a sweep.

It is written by its id alone, so that the runs below it may be the active ones of the same process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param

from medopt.config import Study
from medopt.core.errors import ConfigError
from medopt.core.records import batches
from medopt.tracking.errors import answering
from medopt.tracking.pages import NOTE, page_of
from medopt.tracking.process import PROCESS, mark_crashed, this_process
from medopt.tracking.settings import STUDY_FILE, parameters, study_text
from medopt.tracking.store import begin_run, find_experiment, open_store, resumed
from medopt.tracking.tracker import metrics_of


class ParentRun:
    """One MLflow run that others name as their parent, begun or continued."""

    def __init__(self, study: Study, runs: Path, run_id: str | None, run_name: str, tags: Mapping[str, str]) -> None:
        self.uri = open_store(runs)
        with answering(self.uri):
            self._client = MlflowClient(self.uri, self.uri)
            self.experiment_id = find_experiment(self._client, study, self.uri, runs)
            mark_crashed(self._client)
            if known := resumed(self._client, self.experiment_id, run_id, run_name):
                self.run_id = known.info.run_id
                self._client.update_run(self.run_id, status="RUNNING")
            else:
                run = begin_run(self._client, self.experiment_id, run_name, {**tags, NOTE: study.question})
                self.run_id = run.info.run_id
                self._client.log_batch(self.run_id, params=[Param(*setting) for setting in parameters(study).items()])
                self._client.log_text(self.run_id, study_text(study), STUDY_FILE)
            self._client.set_tag(self.run_id, PROCESS, this_process())
            self._client.set_tag(self.run_id, "outcome", "running")

    @property
    def link(self) -> str:
        """Where the run's page is, below the address that `medopt ui` prints."""
        return page_of(self.uri, self.experiment_id, self.run_id)

    def log_figures(self, figures: Mapping[str, object]) -> None:
        """Numbers of a nested mapping as metrics `a/b_c`; what is not a number is left out."""
        metrics = metrics_of(figures)
        with answering(self.uri):
            for part in batches(len(metrics), 1000):
                self._client.log_batch(self.run_id, metrics=metrics[part])

    def describe(self, text: str) -> None:
        """Markdown that the run's page shows as its description."""
        with answering(self.uri):
            self._client.set_tag(self.run_id, NOTE, text)

    def log_files(self, paths: Mapping[Path, str]) -> None:
        """Files as artifacts, each with the folder it is to stand in ('' is the top)."""
        with answering(self.uri):
            for path, place in paths.items():
                self._client.log_artifact(self.run_id, str(path), place or None)

    def log_table(self, rows: Mapping[str, list[Any]], name: str) -> None:
        """Columns as a table that MLflow's pages show and compare."""
        with answering(self.uri):
            self._client.log_table(self.run_id, dict(rows), name)

    def end(self, outcome: str, status: str = "FINISHED") -> None:
        """Close the run: FINISHED, FAILED, or KILLED (to be continued); `outcome` says it in a word.

        Raises ConfigError where a finished run cannot be closed; a failed one has a worse thing to tell.
        """
        try:
            with answering(self.uri):
                self._client.set_tag(self.run_id, "outcome", outcome)
                self._client.set_terminated(self.run_id, status)
        except ConfigError:
            if status == "FINISHED":
                raise
