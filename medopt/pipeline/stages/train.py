"""The stage `train`: the network's weights, a checkpoint an epoch, and the history."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medopt.core import signals
from medopt.core.records import EpochRecord, StageRecord
from medopt.data.images_seen import images_seen, write_seen
from medopt.pipeline.predict import validation_score
from medopt.pipeline.run_0_1 import is_training_record
from medopt.pipeline.run_folder import RunFolder
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages.baseline import BaselineStage, start_weights, teacher_weights
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.pipeline.stages.tune import resolved_study, training_identity
from medopt.pipeline.start import start_file
from medopt.training.job import TrainingCallbacks, TrainingJob
from medopt.training.launch import dismiss, train

LINEAR = -1  # in place of an epoch


@dataclass(frozen=True, slots=True)
class Training:
    """What a training came to: the epoch whose weights are kept, counted from 0, and why; the device; every epoch.

    The epoch is LINEAR where the linear model on the start's features was not beaten. `reason` is "" in version 0.1.0.
    """

    best_epoch: int
    device: str
    history: tuple[EpochRecord, ...]
    reason: str = ""


class TrainStage(Stage[Training]):
    """Train, or go on at the last whole epoch, on one process or on several."""

    name = "train"
    inputs = ("prepare",)
    result_type = Training

    def outputs(self, folder: RunFolder) -> Sequence[Path]:
        """The weights that are kept."""
        return [folder.best_weights]

    def is_current(self, record: StageRecord, context: RunContext, key: str) -> bool:
        """Also a record of version 0.1.0."""
        return record.inputs == key or is_training_record(record, training_identity(context))

    def run(self, context: RunContext) -> Training:
        """Raises TrainingError where the loss is not a number, or a process or all checkpoints are lost."""
        prepared, study = context.result(PrepareStage), resolved_study(context)
        learnt_from = [*prepared["train"].cases, *prepared["val"].cases]
        write_seen(context.folder.best_weights.parent, learnt_from, context.cases.root, _seen_before(context))
        if study.model.has_start and study.training.fine_tune.freeze == "all":
            shutil.copyfile(start_weights(context.folder), context.folder.best_weights)
            return Training(LINEAR, "cpu", (), "the linear model on the start's features, as all stages are frozen")
        folder = context.folder.best_weights.parent
        facts = training_identity(context) | _start_identity(context)
        job = TrainingJob(study, prepared["train"], prepared["val"], folder, facts)
        if study.model.has_start:
            job = replace(job, start=start_weights(context.folder), tunes_start=True)
        if study.training.teachers:
            teacher, share = teacher_weights(context.folder), study.training.teacher_share
            job = replace(job, teacher=teacher, teacher_share=share)
        score = validation_score(study, prepared["val"])
        callbacks = TrainingCallbacks(score, lambda history: _on_epoch(context, history), context.reporter)
        trained = train(job, callbacks, context.hardware)
        if trained.speeds:
            context.say(context.tracker.log_early({"pace": trained.speeds}))
        return _better(context, Training(trained.best, trained.device, trained.history, trained.reason))

    def depends_on(self, context: RunContext) -> Mapping[str, object]:
        """The weights that it begins with."""
        return _start_identity(context)

    def finish(self, context: RunContext, result: Training, *, skipped: bool) -> None:
        """Let the processes go that a launcher started to help, and log what the store lacks."""
        if skipped or not result.history:  # nothing was trained that they could have helped with
            dismiss(resolved_study(context).training, context.hardware)
        _on_epoch(context, result.history)


def _start_identity(context: RunContext) -> dict[str, str]:
    """The digests of the weights that training begins with and learns from; nothing from scratch without a teacher."""
    found = {}
    if context.study.model.has_start:
        found["start"] = context.result(BaselineStage).weights
    if context.study.training.teachers:
        found["teacher"] = context.result(BaselineStage).teacher
    return found


def _seen_before(context: RunContext) -> frozenset[bytes]:
    """What the start and the teachers of the study have seen, and their own starts before them."""
    starts = [context.study.model.start] if context.study.model.has_start else []
    starts += context.study.training.teachers
    files = [file for start in starts if (file := start_file(start, context.runs))]
    return frozenset[bytes]().union(*map(images_seen, files))


def _better(context: RunContext, trained: Training) -> Training:
    """What goes on: the tuned weights, or the linear model on the start's features where it is better on validation."""
    if not context.study.model.has_start:
        return trained
    linear = context.result(BaselineStage).models["start"].validation_auc
    tuned = trained.history[trained.best_epoch].val_metric
    if context.study.training.metric == "auc" and not tuned > linear:
        shutil.copyfile(start_weights(context.folder), context.folder.best_weights)
        context.reporter.message(
            f"training did not beat the linear model on the start's features (validation AUC {tuned:.4f}, not above "
            f"{linear:.4f}): the linear model goes on"
        )
        reason = "the linear model on the start's features, which training did not beat on validation"
        return replace(trained, best_epoch=LINEAR, reason=reason)
    return trained


def _on_epoch(context: RunContext, history: Sequence[EpochRecord]) -> None:
    signals.raise_if_interrupted()
    context.say(context.tracker.sync_history(history))
    if context.on_history is not None:
        context.on_history(history)


def history_of(context: RunContext) -> tuple[EpochRecord, ...]:
    """The record of every epoch; none where nothing was trained, as for an ensemble."""
    return context.result(TrainStage).history if TrainStage.name in context.results else ()
