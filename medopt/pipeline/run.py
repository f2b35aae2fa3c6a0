"""The ways to run a study: the whole way or training only; the folder and the MLflow run around its stages.

A run is a list of stages, one a file in `medopt/pipeline/stages`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from medopt.config import Study
from medopt.core.errors import MedoptError, Pruned, StorageError
from medopt.core.files import local_disk, write_text
from medopt.core.provenance import code_version, machine
from medopt.core.records import EpochRecord, Override
from medopt.core.reporter import Reporter
from medopt.evaluation.run_metrics import RunMetrics
from medopt.manifest.run_manifest import write_run_manifest
from medopt.pipeline.finished_run import FinishedRun
from medopt.pipeline.mlflow_summary import model_name, run_name
from medopt.pipeline.run_0_1 import study_of_checkpoints
from medopt.pipeline.run_folder import CHECKPOINT_STUDY, TRAINING, RunFolder, locked_folder, open_run
from medopt.pipeline.stage import RunContext, Stage, complete
from medopt.pipeline.stage_settings import training_key, trains_from_baseline
from medopt.pipeline.stages.baseline import BaselineStage
from medopt.pipeline.stages.compress import CompressStage
from medopt.pipeline.stages.evaluate import EvaluateStage
from medopt.pipeline.stages.explain import ExplainStage
from medopt.pipeline.stages.judge import JudgeStage
from medopt.pipeline.stages.ood_check import OutOfDomainStage
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.pipeline.stages.prune import pruning_stages, steps_to
from medopt.pipeline.stages.record import RecordStage
from medopt.pipeline.stages.release import ReleaseStage
from medopt.pipeline.stages.report import ReportStage
from medopt.pipeline.stages.robustness import RobustnessStage
from medopt.pipeline.stages.train import LINEAR, TrainStage
from medopt.pipeline.stages.tune import TuneStage
from medopt.pipeline.study_cases import StudyCases, read_source
from medopt.tracking.tracker import Tracker
from medopt.training.hardware import Hardware
from medopt.transforms.prepare import PrepareChain


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run that only trained: its score on validation (None: not defined), the epoch kept for it, and where it is."""

    score: float | None
    best_epoch: int | None
    folder: Path
    mlflow_run_id: str


def training_stages(study: Study, *, baseline: bool) -> list[Stage[Any]]:
    """The stages up to the best weights, with the linear models or without them."""
    tune = [TuneStage()] if study.training.has_auto else []
    linear = [BaselineStage()] if baseline else []
    return [PrepareStage(), *tune, *linear, TrainStage()]


def all_stages(study: Study) -> list[Stage[Any]]:
    """The whole way, from the scans to the release."""
    pruning = study.compression.pruning
    steps = pruning_stages(steps_to(pruning.target, pruning.steps)) if pruning.target else []
    compress = CompressStage(steps, covariates=bool(study.data.covariates))
    return [*training_stages(study, baseline=True), *steps, compress, *stages_of_models(study)]


def stages_of_models(study: Study) -> list[Stage[Any]]:
    """From the ONNX files to the release: judge, score the test split, release, record."""
    analyses: list[Stage[Any]] = []
    if study.evaluation.shift_cases:
        analyses.append(RobustnessStage())
    if study.evaluation.explain:
        analyses.append(ExplainStage())
    if study.domain.enabled:
        analyses.append(OutOfDomainStage())
    return [JudgeStage(), EvaluateStage(), *analyses, ReleaseStage(), ReportStage(), RecordStage()]


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
) -> FinishedRun:
    """Run a study, or go on with it, and return its figures, its folder and its link in MLflow.

    `parent` is the id of the MLflow run above this one; `override` releases a model that a verdict did not pass, now
    and when the run continues. Raises the MedoptError of the stage that refused; the MLflow run is then marked FAILED,
    or KILLED after Ctrl-C.
    """
    cases = read_source(study, study_file, data, runs)
    with opened_run(cases, runs, reporter, fresh=fresh, parent=parent, hardware=hardware, override=override) as run:
        return complete_run(run, all_stages(run.study))


def complete_run(run: RunContext, stages: Sequence[Stage[Any]]) -> FinishedRun:
    """Complete the stages of a whole run and close it."""
    complete(stages, run)
    metrics = RunMetrics.read(run.folder.path)
    end_run(run, metrics.outcome)
    return FinishedRun(metrics, run.folder.path, run.tracker.link, run.folder.seconds())


def train_study(
    study: Study,
    study_file: Path,
    data: Path,
    runs: Path,
    reporter: Reporter,
    parent: str,
    on_history: Callable[[Sequence[EpochRecord]], None],
) -> TrainedRun:
    """Only train a study, or go on with it: nothing is compressed, and no figure of the test split is made.

    `on_history` hears of every epoch and may raise Pruned, which is no failure of the run. The folder is that of the
    same study's whole run, which would find its training done.
    """
    cases = read_source(study, study_file, data, runs)
    with opened_run(cases, runs, reporter, parent=parent, on_history=on_history) as run:
        complete(training_stages(run.study, baseline=trains_from_baseline(run.study)), run)
        score, epoch = _score(run)
        if run.study.training.metric == "auc":
            run.tracker.log_figures({"headline": {"auc_val": score}})
        end_run(run, "trained")
        return TrainedRun(score, epoch, run.folder.path, run.tracker.run_id)


def _score(run: RunContext) -> tuple[float | None, int | None]:
    """The validation score of the epoch that training kept, which by its highest epoch would flatter itself; and it."""
    trained = run.result(TrainStage)
    if trained.best_epoch == LINEAR:  # the linear model on the start's features is the network
        return run.result(BaselineStage).models["start"].validation_auc, None
    return trained.history[trained.best_epoch].val_metric, trained.best_epoch + 1


@contextmanager
def opened_run(
    cases: StudyCases,
    runs: Path,
    reporter: Reporter,
    *,
    fresh: bool = False,
    parent: str = "",
    on_history: Callable[[Sequence[EpochRecord]], None] | None = None,
    place: Path | None = None,
    networks: tuple[Path, ...] = (),
    notes: Sequence[str] = (),
    hardware: Hardware | None = None,
    override: Override | None = None,
) -> Iterator[RunContext]:
    """The study's folder and its MLflow run, which is closed as failed where what is done in it fails.

    `place` is a folder to work in instead of the study's own; `networks` are trained weights from elsewhere. An
    `override` is kept in the folder: who releases the model although a verdict did not pass it.
    """
    study = cases.study
    training_digest = cases.training_digest
    opening = (
        locked_folder(place, is_new=not place.exists()) if place else open_run(runs, study, training_digest, fresh)
    )
    with opening as folder:
        facts = {} if place else _training_facts(folder, training_key(study, training_digest))
        write_text(folder.path / "study.yaml", yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False))
        write_run_manifest(folder.path / "manifest.csv", cases.cases, study)
        name = run_name(study, folder.path, place.parent if place else None)
        tracker = Tracker(study, runs, folder.facts().get("mlflow_run_id"), name, parent)
        weights = networks or (folder.best_weights,)
        try:
            named = {"override": asdict(override)} if override else {}
            folder.write_facts(mlflow_run_id=tracker.run_id, outcome="running", **facts, **named)
            run = RunContext(
                cases, folder, tracker, reporter, runs, weights, list(notes), hardware or Hardware(1), on_history
            )
            with local_disk():
                _log_start(run)
                yield run
        except BaseException as error:
            outcome, status = _ending(error)
            tracker.end(outcome, status)
            with suppress(StorageError):  # what ended the run is the news
                folder.write_facts(outcome=outcome)
            raise


def end_run(run: RunContext, outcome: str) -> None:
    """Close a run that did what was asked of it."""
    run.folder.write_facts(outcome=outcome)
    run.tracker.end(outcome)


def _training_facts(folder: RunFolder, key: str) -> dict[str, str]:
    """By which key the folder is found; one of version 0.1.0 also keeps the study's digest of its checkpoints."""
    if folder.is_new or TRAINING in folder.facts():
        return {TRAINING: key}
    return {TRAINING: key, CHECKPOINT_STUDY: study_of_checkpoints(folder.path)}


def _log_start(run: RunContext) -> None:
    """Where the run comes from, to MLflow."""
    code, study = code_version(), run.study
    tags = {
        "study": study.name,
        "model": model_name(study),
        "seed": str(study.seed),
        "manifest_digest": run.cases.digest,
        "chain_fingerprint": PrepareChain(study.prepare).fingerprint,
        "code": code.commit or code.version,
        "code_clean": "unknown" if code.clean is None else str(code.clean),
        "machine": machine().cpu,
        "run_folder": run.folder.path.name,
    }
    splits = Counter(str(case.split) for case in run.cases.cases)
    run.tracker.log_start(study, run.cases.digest, tags, splits)


def _ending(error: BaseException) -> tuple[str, str]:
    """What a run that did not reach its end is called, and its status in MLflow."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "KILLED"
    if isinstance(error, Pruned):
        return "pruned", "FINISHED"
    return type(error).__name__ if isinstance(error, MedoptError) else "crashed", "FAILED"
