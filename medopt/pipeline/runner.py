"""The ways to run a study: the whole way, training only, or an ensemble of runs; the folder and MLflow around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from medopt.config import Study
from medopt.core.errors import MedoptError, Pruned, StorageError
from medopt.core.files import write_text
from medopt.core.records import Override
from medopt.core.reporter import Reporter
from medopt.manifest.table import write_run_manifest
from medopt.pipeline.mlflow_summary import run_name
from medopt.pipeline.run import Run, Watch
from medopt.pipeline.run_folder import held, open_run
from medopt.pipeline.study_cases import StudyCases, read_source
from medopt.tracking.tracker import Tracker
from medopt.training.hardware import Hardware


def run_study(
    study: Study,
    study_file: Path,
    data: Path,
    runs: Path,
    reporter: Reporter,
    fresh: bool = False,
    parent: str = "",
    hardware: Hardware | None = None,
    override: Override | None = None,
) -> dict[str, Any]:
    """Run a study, or go on with it, and return its summary: `metrics.json` with the folder and the MLflow link.

    `parent` is the id of an MLflow run that this one is to stand below; `override` releases what the gate refuses, now
    and when the run is gone on with. Raises the MedoptError of the stage that
    refused; the MLflow run is then marked FAILED, or KILLED after Ctrl-C.
    """
    source = read_source(study, study_file, data)
    with opened_run(source, runs, reporter, fresh=fresh, parent=parent, hardware=hardware) as run:
        if override:
            run.folder.write_facts(override=asdict(override))
        summary = run.all_stages(runs)
        run.end(outcome_of(summary))
        return summary


def outcome_of(summary: Mapping[str, Any]) -> str:
    """How a whole run ended, in a word."""
    gate = summary["gate"]
    return "released" if gate["passed"] else "released against the gate" if gate["override"] else "gate refused"


def train_study(
    study: Study, study_file: Path, data: Path, runs: Path, reporter: Reporter, parent: str, watch: Watch
) -> dict[str, Any]:
    """Only train a study, or go on with it: nothing is compressed, and the test split is not looked at.

    `watch` hears of every epoch and may raise Pruned, which is no failure of the run. The folder is that of the same
    study's whole run, which would find its training done. Returns the best score on validation, its epoch, and where.
    """
    source = read_source(study, study_file, data)
    with opened_run(source, runs, reporter, parent=parent, watch=watch) as run:
        history = run.training(runs)[2]
        scores = [record["val_metric"] for record in history]
        best = max((score for score in scores if not math.isnan(score)), default=None)
        run.end("trained")
        where = {"folder": str(run.folder.path), "mlflow_run_id": run.tracker.run_id}
        return where | {"score": best, "best_epoch": scores.index(best) + 1 if best is not None else None}


@contextmanager
def opened_run(
    source: StudyCases,
    runs: Path,
    reporter: Reporter,
    *,
    fresh: bool = False,
    parent: str = "",
    watch: Watch | None = None,
    place: Path | None = None,
    hardware: Hardware | None = None,
) -> Iterator[Run]:
    """The study's folder and its MLflow run, which is closed as failed where what is done in it fails."""
    study = source.study
    opening = held(place, is_new=not place.exists()) if place else open_run(runs, study, source.digest, fresh)
    with opening as folder:
        write_text(folder.path / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        write_run_manifest(folder.path / "manifest.csv", source.cases, study)
        name = run_name(study, folder.path, place.parent if place else None)
        tracker = Tracker(study, runs, folder.facts().get("mlflow_run_id"), name, parent)
        try:
            folder.write_facts(mlflow_run_id=tracker.run_id, outcome="running")
            yield Run(source, folder, tracker, reporter, hardware or Hardware(1), watch)
        except BaseException as error:
            outcome, status = _ending(error)
            tracker.end(outcome, status)
            with suppress(StorageError):  # what ended the run is the news
                folder.write_facts(outcome=outcome)
            raise


def _ending(error: BaseException) -> tuple[str, str]:
    """What a run that did not reach its end is called, and its status in MLflow."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "KILLED"
    if isinstance(error, Pruned):
        return "pruned", "FINISHED"
    return type(error).__name__ if isinstance(error, MedoptError) else "crashed", "FAILED"
