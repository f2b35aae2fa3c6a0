"""The stage `tune`: numbers for the training settings that the study leaves to be found."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from medopt.config import Study, Training
from medopt.core.records import StageRecord
from medopt.pipeline.run_0_1 import is_training_record
from medopt.pipeline.stage import RunContext, Stage
from medopt.pipeline.stages.prepare import PrepareStage
from medopt.training.auto_settings import resolve_auto


@dataclass(frozen=True, slots=True)
class Tuned:
    """The training section without `auto`, and what was measured to get there."""

    training: Training
    measured: dict[str, JsonValue]


class TuneStage(Stage[Tuned]):
    """Measure batch size and learning rate once, and keep them for the whole run."""

    name = "tune"
    inputs = ("prepare",)
    result_type = Tuned

    def is_current(self, record: StageRecord, context: RunContext, key: str) -> bool:
        """Also a record of version 0.1.0."""
        return record.inputs == key or is_training_record(record, training_identity(context))

    def run(self, context: RunContext) -> Tuned:
        """Numbers for `auto`; raises TrainingError where none suits."""
        train = context.result(PrepareStage)["train"]
        study, measured = resolve_auto(context.study, train.cases, train.files, context.reporter)
        return Tuned(study.training, measured)

    def finish(self, context: RunContext, result: Tuned, *, skipped: bool) -> None:
        """Log the numbers."""
        size, micro = result.training.resolved_sizes
        figures = {"lr": result.training.optimizer.rate, "batch_size": size, "micro_batch": micro}
        context.say(context.tracker.log_early({"tuned": figures}))


def training_identity(context: RunContext) -> dict[str, str]:
    """What tells a run's checkpoints from those of another training: the digests of settings, chain and data."""
    prepared = context.result(PrepareStage)
    study = context.folder.checkpoint_study or context.study.training_digest()
    return {"study": study, "chain": prepared.chain, "data": prepared.content}


def resolved_study(context: RunContext) -> Study:
    """The study as it is trained: with the numbers of `tune` where it left any to be found."""
    if TuneStage.name not in context.results:
        return context.study
    return context.study.model_copy(update={"training": context.result(TuneStage).training})
